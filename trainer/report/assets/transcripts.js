// Transcripts, token by token. What an environment or a model wrote is hostile until shown otherwise: text nodes only.

const facts = new WeakMap();  // token element -> what its tooltip says

// The colour of a token that was sampled at this logprob: unmarked when certain, then warmer.
function heat(logprob) {
  const stops = [[-0.1, "transparent", 0], [-0.7, "#e6c229", 28], [-1.6, "#f08c2e", 42], [-3, "#e2572b", 52], [-Infinity, "#d1264a", 62]];
  const [, colour, amount] = stops.find(([least]) => logprob >= least);
  return { "--heat": colour === "transparent" ? "#808080" : colour, "--amount": (colour === "transparent" ? 7 : amount) + "%" };
}

function tokenSpans(node) {
  const out = [];
  let sampled = 0;
  node.ids.forEach((id, i) => {
    const was = node.mask[i] === "1", logprob = was ? node.logprobs[sampled++] : null;
    const text = node.text[i];
    const shown = (text === "" ? "·" : was ? text.replaceAll("\n", "⏎\n") : text);
    const token = make("span", { class: was ? "t s" : "t", style: was ? heat(logprob) : {} }, shown);
    const version = node.versions.filter(([start]) => start <= i).map(([, v]) => v).pop();
    facts.set(token, `${text === "" ? "(a byte of the next character)" : JSON.stringify(text)}   token ${id}\n` + (was
      ? `logprob ${logprob.toFixed(4)}, probability ${Math.exp(logprob).toFixed(4)}\nsampled by ${version}\n${node.sampling}`
      : "not sampled: prompt or template"));
    out.push(token);
  });
  return out;
}

function message(role, said, body, note) {
  return make("div", { class: "message" + (said ? " said" : "") }, make("div", { class: "who" }, role + (note ? ` · ${note}` : "")), body);
}

function branchNodes(branch, index, count) {
  const out = [];
  if (count > 1) out.push(make("h3", {}, `Branch ${index + 1} of ${count}`, branch.forked_at >= 0 ? `, forked after ${branch.forked_at} messages (${branch.reason})` : ""));
  for (const node of branch.nodes) {
    const sampled = node.logprobs.length;
    const total = node.logprobs.reduce((a, b) => a + b, 0);
    const note = sampled ? `turn ${node.turn + 1}, ${sampled} sampled of ${node.ids.length} tokens, sum of logprobs ${total.toFixed(2)}` : `${node.ids.length} tokens`;
    out.push(message(node.role, sampled > 0, make("div", { class: "tokens" }, tokenSpans(node)), note));
  }
  if (branch.left_out) out.push(make("p", { class: "none" }, `${branch.left_out} more tokens are in the store`));
  return out;
}

function episodeNode(e) {
  const fact = (name, value, cls) => make("span", {}, name + " ", make("b", { class: cls || "" }, value));
  const list = (name, lines) => (lines.length ? make("details", {}, make("summary", {}, `${name} (${lines.length})`), make("pre", { class: "plain" }, lines.join("\n"))) : null);
  return make("article", { class: "episode" },
    make("div", { class: "head" }, fact("", e.success ? "success" : "failure", e.success ? "good" : "bad"), fact("reward", String(e.reward)), fact("ended", e.stop.replaceAll("_", " ")), fact("turns", String(e.turns)), fact("split", e.split), fact("seat", e.seat), fact("policy", e.policy)),
    make("div", { class: "id" }, `${e.id} · instance ${e.hash}`),
    make("details", {}, make("summary", {}, "Instance"), make("pre", { class: "plain" }, JSON.stringify(e.instance, null, 1))),
    list("Perturbation events", e.events),
    list("Rewards", e.rewards.map(([seat, turn, component, value]) => `${seat}, after action ${turn + 1}: ${component} ${value}`)),
    e.branches.flatMap((b, i) => branchNodes(b, i, e.branches.length)),
    e.messages.map((m) => message(m.role, m.role === "assistant", make("pre", { class: "tokens" }, m.text), (m.malformed ? "malformed, " : "") + "not tokenized: a script acted")),
    e.final && !e.branches.length ? message("user", false, make("pre", { class: "tokens" }, e.final), "last observation") : null);
}

function transcripts() {
  const all = data.transcripts, host = byId("transcript"), controls = byId("transcript-controls"), state = {};
  if (!all.length) return;
  const rest = make("span", { class: "controls" });
  const show = () => {
    const mine = all.filter((e) => e.env === state.env && e.phase === state.phase && (state.outcome === "both" || e.success === (state.outcome === "success")));
    host.replaceChildren(...(mine.length ? mine.map(episodeNode) : [make("p", { class: "none" }, "There was no such episode.")]));
    host.classList.toggle("outlined", outline.checked);
  };
  const outline = make("input", { type: "checkbox", onchange: show });
  choice(controls, "environment", unique(all.map((e) => e.env)), all[0].env, (v) => {
    state.env = v;
    rest.replaceChildren();
    const phases = unique(all.filter((e) => e.env === v).map((e) => e.phase)), wanted = state.phase || `${last}, evaluation`;
    state.phase = null;
    choice(rest, "who acted", phases, phases.includes(wanted) ? wanted : phases[phases.length - 1], (p) => { state.phase = p; if (state.outcome) show(); });
    if (state.outcome) show();
  });
  controls.append(rest);
  choice(controls, "outcome", ["both", "success", "failure"], "both", (v) => { state.outcome = v; show(); });
  const marks = [["certain", 0], ["0.6", -0.5], ["0.3", -1.2], ["0.1", -2.3], ["0.02", -4]];
  controls.append(make("label", {}, outline, "outline tokens"), make("span", { class: "scale" }, "probability of a sampled token", marks.map(([name, lp]) => make("i", { class: "t s", style: heat(lp) }, name))));
  const point = (e) => { const said = facts.get(e.target); if (said) showTip(said, e.clientX, e.clientY); else hideTip(); };
  host.addEventListener("pointermove", point);
  host.addEventListener("click", point);
  host.addEventListener("pointerleave", hideTip);
}
transcripts();
