// Wires the data to the charts. Every string of the data is text.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const css = (name) => `var(--${name})`;
const policyColour = (stage) => css("p" + Math.max(0, data.stages.indexOf(stage)) % 6);
const splitColour = (split) => (["train", "validation", "heldout", "real"].includes(split) ? css(split) : css("p4"));
const OVERALL = "all environments";
const unique = (values) => [...new Set(values)];

// A choice: few options as buttons, many as a list. `changed` gets the value, now and whenever it changes.
function choice(host, label, options, value, changed) {
  options = options.map((o) => (typeof o === "object" ? o : { value: o, label: String(o) }));
  if (!options.some((o) => o.value === value)) value = options[0] && options[0].value;
  const letters = options.reduce((sum, o) => sum + o.label.length, 0);
  if (options.length > 1) {
    if (options.length <= 5 && letters <= 60) {
      const buttons = options.map((o) => make("button", { type: "button", "aria-pressed": String(o.value === value), onclick: () => {
        buttons.forEach((b, i) => b.setAttribute("aria-pressed", String(options[i] === o)));
        changed(o.value);
      } }, o.label));
      host.append(make("span", { class: "field" }, label, make("span", { class: "seg", role: "group", "aria-label": label }, buttons)));
    } else {
      const select = make("select", { onchange: () => changed(options[select.selectedIndex].value) }, options.map((o) => make("option", { selected: o.value === value }, o.label)));
      host.append(make("label", {}, label, select));
    }
  }
  changed(value);
}

const envLabel = (env) => ({ value: env, label: env === "all" ? OVERALL : env });
const evaluated = data.stages.filter((s) => data.figures.some((f) => f.stage === s));
const last = evaluated[evaluated.length - 1];
const mainSplit = data.splits.includes("heldout") ? "heldout" : data.splits[data.splits.length - 1];

function legend(entries, toggle) {
  return make("div", { class: "legend" }, entries.map((e) => {
    const swatch = make("span", { class: "swatch" + (e.square ? " square" : ""), style: { background: e.colour } });
    if (!toggle) return make("span", { class: "key" }, swatch, e.label);
    const button = make("button", { type: "button", "aria-pressed": String(!e.hidden), onclick: () => button.setAttribute("aria-pressed", String(toggle(e))) }, swatch, e.label);
    return button;
  }));
}

// 1. Success by policy, split and environment.
function successPanels() {
  const host = byId("success-chart"), envs = unique(data.figures.map((f) => f.env));
  const shown = envs.length === 2 ? envs.filter((e) => e !== OVERALL) : envs;
  const panels = data.splits.map((split) => {
    const rows = [];
    for (const env of shown) {
      rows.push({ head: true, label: env });
      const agent = data.logger && data.logger.split === split && data.logger.cells[env];
      if (agent) rows.push({ label: "logging agent", value: agent.success, low: agent.low, high: agent.high, colour: css("faint"), shape: "diamond", tip: `logging agent\n${env}, ${split}\nsuccess ${share(agent.success)}${span(agent.low, agent.high)}\nn = ${agent.episodes}` });
      for (const stage of evaluated) {
        const f = data.figures.find((r) => r.stage === stage && r.split === split && r.env === env);
        if (f) rows.push({ label: stage, value: f.success, low: f.low, high: f.high, colour: policyColour(stage), tip: `${stage}\n${env}, ${split}\nsuccess ${share(f.success)}${span(f.low, f.high)}\nn = ${f.episodes}\nmean reward ${share(f.reward)}, mean turns ${share(f.turns)}\nmalformed replies per episode ${share(f.malformed)}` });
      }
    }
    const body = make("div", {});
    host.append(make("div", {}, make("h4", {}, split), body));
    return [body, rows];
  });
  for (const [body, rows] of panels) drawn(body, dotChart({ rows, domain: [0, 1], labelWidth: 96 }));  // once the columns are known
}

// 2. Learning curves.
function curves() {
  const state = { hidden: new Set() }, chart = byId("curve-chart"), controls = byId("curve-controls"), all = data.curves.series;
  if (!all.length) return void chart.append(make("p", { class: "none" }, "No episode was evaluated or trained on yet."));
  const key = make("div", {}), plot = make("div", {});
  chart.append(key, plot);
  const { bands } = data.curves, ends = bands.map((b) => b.from).filter((v) => v > 0);
  const colourOf = (s) => (s.kind === "training" ? css("training") : splitColour(s.name));
  const again = () => {
    if (!state.ready) return;
    const mine = all.filter((s) => s.env === state.env && s.measure === state.measure && (s.kind === "eval" || s.window === state.window));
    const name = (s) => (s.kind === "training" ? "training episodes" : `evaluation: ${s.name}`);
    key.replaceChildren(legend(mine.map((s) => ({ label: name(s), colour: colourOf(s), id: name(s), hidden: state.hidden.has(name(s)) })), (e) => {
      const visible = state.hidden.delete(e.id) || void state.hidden.add(e.id) || false;
      draw();
      return visible;
    }));
    const draw = () => {
      const kept = mine.filter((s) => !state.hidden.has(name(s)));
      if (!kept.length) return void plot.replaceChildren(make("p", { class: "none" }, "Nothing is chosen."));
      const shifts = kept.filter((s) => s.kind === "eval");
      state.draw = lineChart({
        series: kept.map((s) => ({ name: name(s), colour: colourOf(s), points: s.points, style: s.kind === "eval" ? "dots" : "line", breaks: s.kind === "training" ? ends : null, shift: s.kind === "eval" ? (shifts.indexOf(s) - (shifts.length - 1) / 2) * 4 : 0 })),
        bands, equal: state.equal, xDomain: [0, Math.max(...bands.map((b) => b.to), 1)], yDomain: state.measure === "success" ? [0, 1] : null,
      });
      plot.replaceChildren(state.draw(Math.max(260, plot.clientWidth)));
    };
    draw();
  };
  choice(controls, "environment", data.curves.envs.length > 2 ? data.curves.envs.map(envLabel) : [envLabel("all")], "all", (v) => { state.env = v; again(); });
  choice(controls, "measure", [{ value: "success", label: "success" }, { value: "reward", label: "reward" }], "success", (v) => { state.measure = v; again(); });
  if (all.some((s) => s.kind === "training")) choice(controls, "pool training over", data.curves.windows.map((w) => ({ value: w, label: w === 1 ? "1 step" : `${w} steps` })), 5, (v) => { state.window = v; again(); });
  if (bands.filter((b) => b.to > b.from).length > 1) choice(controls, "stages", [{ value: true, label: "equally wide" }, { value: false, label: "by steps" }], true, (v) => { state.equal = v; again(); });
  state.ready = true;
  again();
  redraws.push(again);
}

// 3. Gap and paired differences.
function differences(id, rows, titleOf, colourOf, extra) {
  const host = byId(id + "-chart");
  if (!rows.length) return void host.append(make("p", { class: "none" }, "Not measured."));
  const splits = data.splits.filter((s) => rows.some((r) => r.split === s));
  let chosen = splits[0];
  const again = drawn(host, (width) => {
    const mine = rows.filter((r) => r.split === chosen), out = [], envs = unique(mine.map((r) => r.env));
    for (const env of envs.length === 2 ? envs.filter((e) => e !== OVERALL) : envs) {
      out.push({ head: true, label: env });
      for (const r of mine.filter((m) => m.env === env)) out.push({ label: titleOf(r), value: r.mean, low: r.low, high: r.high, colour: colourOf(r), tip: `${titleOf(r)}\n${env}, ${r.split}\n${signed(r.mean)}${span(r.low, r.high, signed)}\nn = ${r.episodes}${extra(r)}` });
    }
    const reach = Math.min(1, Math.max(0.1, ...mine.flatMap((r) => [Math.abs(r.low), Math.abs(r.high)])) * 1.04);
    return dotChart({ rows: out, domain: [-reach, reach], zero: true, labelWidth: 150, count: 6, format: (v) => (v > 0 ? "+" : "") + brief(v) })(width);
  });
  choice(byId(id + "-controls"), id === "gap" ? "train minus" : "split", splits, mainSplit, (v) => { chosen = v; again(); });
}

// 4. Sensitivity.
function sensitivity() {
  const found = data.sensitivity.filter((e) => e.factors.length), controls = byId("sensitivity-controls"), host = byId("sensitivity-cards"), state = {};
  if (!found.length) return;
  const again = () => {
    if (!state.ready) return;
    const env = found.find((e) => e.env === state.env), result = env.results.find((r) => r.stage === state.stage && r.split === state.split);
    const cards = (result ? result.rows : []).map((row) => factorCard(env.factors[row.factor], row, state.stage));
    const fixed = env.fixed.length ? make("p", { class: "fine", style: { "grid-column": "1 / -1" } }, `One value only, or too many to compare: ${env.fixed.join(", ")}`) : null;
    host.replaceChildren(...(cards.length ? cards.map((c) => c.node) : [make("p", { class: "none" }, "No factor varied here.")]), ...(fixed ? [fixed] : []));
    cards.forEach((c) => c.draw());
  };
  choice(controls, "environment", found.map((e) => e.env), found[0].env, (v) => { state.env = v; again(); });
  choice(controls, "policy", unique(found.flatMap((e) => e.results.map((r) => r.stage))), last, (v) => { state.stage = v; again(); });
  choice(controls, "split", [{ value: "all", label: "all splits" }, ...data.splits.map((s) => ({ value: s, label: s }))], "all", (v) => { state.split = v; again(); });
  state.ready = true;
  again();
  redraws.push(again);
}

function wilson(n, s) {
  const z = 1.959963984540054, p = s / n, c = (p + (z * z) / (2 * n)) / (1 + (z * z) / n), h = (z / (1 + (z * z) / n)) * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n));
  return [Math.max(0, c - h), Math.min(1, c + h)];
}

function factorCard(factor, row, stage) {
  const clear = row.p < 0.05, body = make("div", {});
  const cost = row.cost ? `costs ${row.cost[0].toFixed(2)} [${row.cost[1].toFixed(2)}, ${row.cost[2].toFixed(2)}]` : "bins too small for a cost";
  const verdict = clear ? `beyond chance, p = ${row.p < 0.001 ? "< 0.001" : row.p}`.replace("= <", "<") : "within chance";
  const rows = row.counts.map(([n, s], i) => {
    const label = factor.labels[i] + (factor.unseen[i] ? " *" : "");
    if (!n) return null;
    const [low, high] = wilson(n, s);
    return { label, value: s / n, low, high, colour: clear ? policyColour(stage) : css("faint"), shape: factor.unseen[i] ? "hollow" : "", tip: `${factor.name} = ${factor.labels[i]}${factor.unseen[i] ? "\nnever in the train split" : ""}\nsuccess ${share(s / n)}${span(low, high)}\n${s} of ${n} episodes` };
  }).filter(Boolean);
  const node = make("div", { class: "factor" + (clear ? "" : " quiet") },
    make("h4", {}, factor.name, make("span", { class: "badge" }, factor.kind)),
    make("p", { class: "about" }, `${cost} · ${verdict}${factor.unseen.some((u, i) => u && row.counts[i][0]) ? " · * never in train" : ""}`), body);
  return { node, draw: () => body.replaceChildren(dotChart({ rows, domain: [0, 1], labelWidth: 118, rowHeight: 19 })(Math.max(220, body.clientWidth))) };
}

// 5. Episodes.
const STOPS = { terminated: "p2", agent_stopped: "p1", turn_limit: "p4", token_limit: "p3", context_limit: "p5", agent_limit: "bad" };
function episodes() {
  const all = data.episodes, controls = byId("episode-controls"), state = {};
  if (!all.length) return;
  const again = () => {
    if (!state.ready) return;
    const mine = all.filter((e) => e.env === state.env);
    const stops = unique(mine.flatMap((e) => e.stops.map((s) => s[0])));
    const colourOf = (stop) => (STOPS[stop] ? css(STOPS[stop]) : css("faint"));
    const plot = make("div", {});
    byId("stops-chart").replaceChildren(legend(stops.map((s) => ({ label: s.replaceAll("_", " "), colour: colourOf(s), square: true }))), plot);
    plot.replaceChildren(stackedBars({ rows: mine.map((e) => ({ label: e.phase, note: `n = ${e.episodes}`, parts: e.stops.map(([stop, n, ok]) => ({ value: n, colour: colourOf(stop), tip: `${e.phase}\n${stop.replaceAll("_", " ")}: ${n} of ${e.episodes} (${((100 * n) / e.episodes).toFixed(1)} %)${ok ? "" : "\nnot counted"}` })) })) })(Math.max(260, plot.clientWidth)));
    const host = byId("length-charts");
    host.replaceChildren();
    for (const e of mine) {
      const what = e[state.what];
      if (!what.bars.length) continue;
      const body = make("div", {}), stage = data.stages.find((s) => e.phase.startsWith(s + ", "));
      host.append(make("div", {}, make("h4", {}, e.phase), make("p", { class: "about" }, `median ${brief(what.median)}, longest ${brief(what.most)}`), body));
      body.append(histogram({ bars: what.bars, colour: stage ? policyColour(stage) : css("faint"), what: state.what })(Math.max(220, body.clientWidth)));
    }
  };
  choice(controls, "environment", unique(all.map((e) => e.env)).map(envLabel), "all", (v) => { state.env = v; again(); });
  choice(controls, "length in", [{ value: "turns", label: "turns" }, { value: "tokens", label: "sampled tokens" }], "turns", (v) => { state.what = v; again(); });
  state.ready = true;
  again();
  redraws.push(again);
}

// 6. Health and 7. time.
function health() {
  const host = byId("health-charts"), stages = unique(data.health.map((m) => m.stage));
  if (!stages.length) return void host.append(make("p", { class: "none" }, "No step was made yet."));
  let chosen;
  const again = () => {
    const made = data.health.filter((m) => m.stage === chosen).map((m) => [m, make("div", {})]);
    host.replaceChildren(...made.map(([m, body]) => make("div", {}, make("h4", {}, m.title), make("p", { class: "about" }, m.note || "\u00a0"), body)));
    for (const [m, body] of made) {
      const ys = m.points.map((p) => p[1]), yDomain = m.share ? [0, Math.max(0.05, ...ys)] : Math.min(...ys) === 0 ? [0, Math.max(...ys) || 1] : null;
      body.append(lineChart({ series: [{ name: "", colour: policyColour(chosen), points: m.points, style: "line" }], yDomain, height: 138, labels: false, format: brief })(Math.max(220, body.clientWidth)));
    }
  };
  choice(byId("health-controls"), "stage", stages, stages[stages.length - 1], (v) => { chosen = v; again(); });
  redraws.push(again);
}
function time() {
  const host = byId("wall-chart");
  if (!host || !data.wall.length) return;
  const words = (s) => (s < 60 ? s.toFixed(1) + " s" : `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`);
  const names = { logs: "making logs", rollout: "acting (training)", train: "updating", eval: "evaluating", install: "installing" };
  drawn(host, stackedBars({ normal: false, labelWidth: 130, rows: data.wall.map(([name, s]) => ({ label: names[name] || name, note: words(s), parts: [{ value: s, colour: css("accent"), tip: `${names[name] || name}: ${words(s)}` }] })) }));
}

successPanels();
curves();
differences("gap", data.gaps, (r) => r.stage, (r) => policyColour(r.stage), (r) => `\ntrain ${share(r.train)}, ${r.split} ${share(r.other)}`);
differences("paired", data.paired, (r) => r.pair, (r) => (r.low > 0 ? css("good") : r.high < 0 ? css("bad") : css("faint")), () => "");
sensitivity();
episodes();
health();
time();
