"use strict";
// Small SVG charts. Text goes in through textContent alone, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const redraws = [];

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "rect", "circle", "text"].includes(tag);
  const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}

// Draws now, and again whenever the width changes. `draw(width)` returns one element.
function drawn(host, draw) {
  const again = () => host.replaceChildren(draw(Math.max(260, host.clientWidth)));
  redraws.push(again);
  again();
  return again;
}
let pending = 0, lastWidth = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === lastWidth) return;
  lastWidth = innerWidth;
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(() => redraws.forEach((again) => again()));
});

const tip = document.getElementById("tip");
function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth - 8 ? x - box.width - 14 : x + 14;
  const top = y + 14 + box.height > innerHeight - 8 ? y - box.height - 14 : y + 14;
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = Math.max(8, top) + "px";
}
function hideTip() { tip.hidden = true; }
function tipped(node, text) {
  node.setAttribute("tabindex", "0");
  node.setAttribute("aria-label", text);
  node.addEventListener("pointermove", (e) => showTip(text, e.clientX, e.clientY));
  node.addEventListener("pointerleave", hideTip);
  node.addEventListener("blur", hideTip);
  node.addEventListener("focus", () => { const b = node.getBoundingClientRect(); showTip(text, b.right, b.bottom); });
  return node;
}
addEventListener("scroll", hideTip, { passive: true });

const share = (v) => (v === null || v === undefined ? "–" : v.toFixed(3));
const signed = (v) => (v === null || v === undefined ? "–" : (v < 0 ? "−" : "+") + Math.abs(v).toFixed(3));
const span = (lo, hi, f = share) => (lo === null || lo === undefined ? "" : ` [${f(lo)}, ${f(hi)}]`);
function brief(v) {
  if (v === 0) return "0";
  const a = Math.abs(v);
  if (a >= 1e6) return +(v / 1e6).toPrecision(3) + "M";
  if (a >= 1e4) return +(v / 1e3).toPrecision(3) + "k";
  return a < 1e-3 ? v.toExponential(1) : String(+v.toPrecision(3));
}

function ticks(low, high, count) {
  const rough = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough - 1e-12);
  const out = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) out.push(Math.abs(v) < step * 1e-6 ? 0 : v);
  return out;
}
const scale = (low, high, from, to) => (v) => from + ((v - low) / (high - low || 1)) * (to - from);
const clip = (text, most) => (text.length <= most ? text : text.slice(0, most - 1) + "…");

// A horizontal axis on which every stage that has steps is equally wide: step -> 0 .. 1.
function stretched(bands) {
  const wide = bands.filter((b) => b.to > b.from);
  return (v) => {
    const i = Math.max(0, wide.findIndex((b) => v <= b.to));
    return (i + (v - wide[i].from) / (wide[i].to - wide[i].from)) / wide.length;
  };
}

// Lines with intervals. series: [{name, colour, points: [[x, y, low, high, n]], style: "line" | "dots"}], bands: [{name, from, to}]
function lineChart({ series, bands = [], height = 320, yDomain = null, xDomain = null, labels = true, format = share, xName = "optimizer steps", equal = false }) {
  return (width) => {
    const m = { left: 46, right: 12, top: labels ? 24 : 8, bottom: labels ? 38 : 22 };
    const all = series.flatMap((s) => s.points);
    const ys = all.flatMap((p) => [p[1], p[2], p[3]]).filter((v) => v !== null && v !== undefined);
    let [low, high] = yDomain || [Math.min(...ys), Math.max(...ys)];
    if (low === high) { low -= Math.abs(low) * 0.1 || 0.5; high += Math.abs(high) * 0.1 || 0.5; }
    const [first, last] = xDomain || [Math.min(...all.map((p) => p[0])), Math.max(...all.map((p) => p[0]))];
    const place = equal ? stretched(bands) : null;
    const x = place ? (v) => scale(0, 1, m.left + 8, width - m.right - 8)(place(v)) : scale(first, last, m.left + 8, width - m.right - 8), y = scale(low, high, height - m.bottom, m.top);
    const root = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
    bands.forEach((band, i) => {
      const a = Math.max(x(band.from), m.left), b = Math.min(x(band.to), width - m.right);
      if (i % 2 === 0) root.append(make("rect", { class: "band", x: a, y: m.top, width: Math.max(0, b - a), height: height - m.top - m.bottom }));
      if (labels && b - a > 7 * Math.min(band.name.length, 4)) root.append(make("text", { x: (a + b) / 2, y: 14, "text-anchor": "middle" }, clip(band.name, Math.floor((b - a) / 6.5))));
    });
    for (const t of ticks(low, high, height / (height < 200 ? 36 : 60))) {
      root.append(make("line", { class: "grid", x1: m.left, x2: width - m.right, y1: y(t), y2: y(t) }));
      root.append(make("text", { x: m.left - 7, y: y(t) + 4, "text-anchor": "end" }, brief(t)));
    }
    const spans = place ? bands.filter((b) => b.to > b.from).map((b) => [b.from, b.to]) : [[first, last]];
    const marks = spans.flatMap(([a, b]) => ticks(a, b, Math.max(2, width / 90 / spans.length)));
    for (const t of marks.filter((t, i) => !i || x(t) - x(marks[i - 1]) > 30)) root.append(make("text", { x: x(t), y: height - m.bottom + 16, "text-anchor": "middle" }, brief(t)));
    if (labels) root.append(make("text", { x: (m.left + width - m.right) / 2, y: height - 3, "text-anchor": "middle" }, xName));
    for (const s of series) root.append(drawSeries(s, x, y));
    const guide = make("line", { class: "guide", y1: m.top, y2: height - m.bottom, visibility: "hidden" });
    const catcher = make("rect", { x: m.left, y: m.top, width: width - m.left - m.right, height: height - m.top - m.bottom, fill: "transparent" });
    const xs = [...new Set(all.map((p) => p[0]))];
    catcher.addEventListener("pointermove", (e) => {
      const at = e.clientX - root.getBoundingClientRect().left;
      const near = xs.reduce((best, v) => (Math.abs(x(v) - at) < Math.abs(x(best) - at) ? v : best), xs[0]);
      guide.setAttribute("x1", x(near)); guide.setAttribute("x2", x(near)); guide.setAttribute("visibility", "visible");
      const lines = series.flatMap((s) => s.points.filter((p) => p[0] === near).map((p) => `${s.name ? s.name + ": " : ""}${format(p[1])}${span(p[2], p[3], format)}${p[4] ? `  n = ${p[4]}` : ""}`));
      const band = bands.filter((b) => b.from <= near && near <= b.to && b.to > b.from).map((b) => b.name)[0];
      showTip(`step ${near}${band ? `, ${band}` : ""}\n${lines.join("\n")}`, e.clientX, e.clientY);
    });
    catcher.addEventListener("pointerleave", () => { guide.setAttribute("visibility", "hidden"); hideTip(); });
    root.append(guide, catcher);
    return root;
  };
}

function drawSeries(s, x, y) {
  const group = make("g", {}), points = s.points.filter((p) => p[1] !== null), dots = s.style === "dots";
  const runs = [];  // a line is broken where the stage changes
  points.forEach((p, i) => (i && s.breaks && s.breaks.some((b) => points[i - 1][0] < b && b <= p[0]) ? runs.push([p]) : (runs[runs.length - 1] || (runs.push([]), runs[0])).push(p)));
  for (const run of dots ? [] : runs) {
    const within = run.filter((p) => p[2] !== null && p[2] !== undefined);
    if (within.length > 1) {
      const outline = [...within.map((p) => [p[0], p[3]]), ...within.slice().reverse().map((p) => [p[0], p[2]])];
      group.append(make("path", { d: "M" + outline.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join("L") + "Z", fill: s.colour, opacity: 0.16 }));
    }
  }
  for (const run of runs) group.append(make("path", { d: "M" + run.map((p) => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join("L"), fill: "none", stroke: s.colour, "stroke-width": dots ? 1.4 : 1.8, "stroke-linejoin": "round" }));
  if (dots || points.length === 1) {
    for (const p of points) {
      const at = x(p[0]) + (s.shift || 0);
      if (p[2] !== null && p[2] !== undefined) group.append(make("line", { x1: at, x2: at, y1: y(p[2]), y2: y(p[3]), stroke: s.colour, "stroke-width": 1.4 }));
      group.append(make("circle", { cx: at, cy: y(p[1]), r: 3.6, fill: s.colour }));
    }
  }
  return group;
}

// Dots with intervals, one a row. rows: [{label, head}] or {label, value, low, high, colour, tip, shape}
function dotChart({ rows, domain, zero = false, labelWidth = 110, rowHeight = 21, count = 4, format = brief }) {
  return (width) => {
    const m = { left: Math.min(labelWidth, width * 0.42), right: 14, top: 4, bottom: 22 };
    const height = m.top + rows.length * rowHeight + m.bottom;
    const x = scale(domain[0], domain[1], m.left + 6, width - m.right);
    const root = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
    for (const t of ticks(domain[0], domain[1], width < 420 ? Math.min(count, 4) : count)) {
      root.append(make("line", { class: zero && t === 0 ? "zero" : "grid", x1: x(t), x2: x(t), y1: m.top, y2: height - m.bottom }));
      root.append(make("text", { x: x(t), y: height - 6, "text-anchor": "middle" }, format(t)));
    }
    rows.forEach((row, i) => {
      const y = m.top + (i + 0.5) * rowHeight;
      const most = Math.floor((row.head ? width : m.left) / 6.4);
      root.append(make("text", { x: row.head ? 0 : m.left - 6, y: y + 4, "text-anchor": row.head ? "start" : "end", class: row.head ? "strong" : "" }, clip(row.label, most)));
      if (row.head || row.value === null || row.value === undefined) return;
      const mark = make("g", {});
      mark.append(make("rect", { x: m.left, y: y - rowHeight / 2, width: width - m.left, height: rowHeight, fill: "transparent" }));
      const inside = (v) => Math.min(Math.max(v, domain[0]), domain[1]);
      mark.append(make("line", { x1: x(inside(row.low)), x2: x(inside(row.high)), y1: y, y2: y, stroke: row.colour, "stroke-width": 2.4, opacity: 0.6 }));
      mark.append(row.shape === "diamond"
        ? make("path", { d: `M${x(row.value)},${y - 5.5}l5.5,5.5l-5.5,5.5l-5.5,-5.5Z`, fill: row.colour })
        : make("circle", { cx: x(row.value), cy: y, r: 4.6, fill: row.shape === "hollow" ? "var(--panel)" : row.colour, stroke: row.colour, "stroke-width": 1.6 }));
      root.append(tipped(mark, row.tip));
    });
    return root;
  };
}

// Vertical bars. bars: [[low, high, count]]
function histogram({ bars, colour, what }) {
  return (width) => {
    const height = 128, m = { left: 34, right: 6, top: 6, bottom: 20 }, most = Math.max(...bars.map((b) => b[2]));
    const y = scale(0, most, height - m.bottom, m.top), each = (width - m.left - m.right) / bars.length;
    const root = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
    for (const t of ticks(0, most, 3).filter(Number.isInteger)) {
      root.append(make("line", { class: "grid", x1: m.left, x2: width - m.right, y1: y(t), y2: y(t) }), make("text", { x: m.left - 6, y: y(t) + 4, "text-anchor": "end" }, brief(t)));
    }
    const every = Math.ceil(bars.length / Math.max(1, Math.floor(width / 46)));
    bars.forEach(([low, high, count], i) => {
      const bar = make("g", {}, make("rect", { x: m.left + i * each, y: m.top, width: each, height: height - m.top - m.bottom, fill: "transparent" }),
        make("rect", { x: m.left + i * each + 1, y: y(count), width: Math.max(1, Math.min(each - 2, 46)), height: height - m.bottom - y(count), fill: colour, opacity: 0.85 }));
      root.append(tipped(bar, `${low === high ? low : `${low} to ${high}`} ${what}: ${count} episodes`));
      if (i % every === 0) root.append(make("text", { x: m.left + i * each + Math.min(each, 46) / 2, y: height - 5, "text-anchor": "middle" }, brief(low)));
    });
    return root;
  };
}

// Horizontal bars in parts, each row scaled to its sum or to the largest. rows: [{label, parts: [{value, colour, tip}], note}]
function stackedBars({ rows, normal = true, labelWidth = 150 }) {
  return (width) => {
    const each = 26, left = Math.min(labelWidth, width * 0.38), right = 64, height = rows.length * each + 4;
    const sum = (row) => row.parts.reduce((a, p) => a + p.value, 0), most = Math.max(...rows.map(sum));
    const root = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
    rows.forEach((row, i) => {
      let at = left + 6;
      root.append(make("text", { x: left - 2, y: i * each + 17, "text-anchor": "end" }, clip(row.label, Math.floor(left / 6.4))));
      for (const part of row.parts) {
        const wide = (part.value / ((normal ? sum(row) : most) || 1)) * (width - left - 6 - right);
        root.append(tipped(make("rect", { x: at, y: i * each + 4, width: Math.max(wide - 1, 0.5), height: each - 8, fill: part.colour }), part.tip));
        at += wide;
      }
      root.append(make("text", { x: at + 6, y: i * each + 17 }, row.note));
    });
    return root;
  };
}
