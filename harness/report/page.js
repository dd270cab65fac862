// Draws the charts of report.html from the data in it. Text enters by textContent alone, never as markup.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#4269d0", "#c2410c", "#15803d", "#a21caf", "#0e7490", "#b45309", "#be123c", "#4d7c0f", "#6d28d9", "#475569"];
const NS = "http://www.w3.org/2000/svg";
const MAX_LINES = 300;

function node(parent, tag, attributes = {}, text = null, svg = true) {
  const made = svg ? document.createElementNS(NS, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
}
const html = (parent, tag, attributes, text = null) => node(parent, tag, attributes, text, false);
const finite = (value) => typeof value === "number" && Number.isFinite(value);
function spell(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return value.toLocaleString("en");
  if (Math.abs(value) >= 1e6) return value.toExponential(2).replace("e+", "e");
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(1).replace(".0e", "e");
  return String(Number(value.toPrecision(4)));
}

function scale(values, from, to, log = false, pad = 0.05) {
  const known = values.filter((value) => finite(value) && (!log || value > 0));
  const map = log ? Math.log10 : (value) => value;
  let low = Math.min(...known.map(map)), high = Math.max(...known.map(map));
  if (!known.length) [low, high] = [0, 1];
  if (low === high) [low, high] = [low - (log ? 0.3 : Math.abs(low) * 0.1 || 1), high + (log ? 0.3 : Math.abs(high) * 0.1 || 1)];
  const margin = (high - low) * pad;
  [low, high] = [low - margin, high + margin];
  const at = (value) => from + ((map(value) - low) / (high - low)) * (to - from);
  at.ticks = log ? logTicks(low, high) : linearTicks(low, high);
  return at;
}
function linearTicks(low, high) {
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + 1e-12; tick += step) ticks.push(Number(tick.toPrecision(12)));
  return ticks;
}
function logTicks(low, high) {
  const factors = high - low > 3 ? [1] : high - low > 1.2 ? [1, 3] : [1, 2, 3, 5, 7];
  const ticks = [];
  for (let power = Math.floor(low); power <= high; power++)
    for (const factor of factors) if (Math.log10(factor) + power >= low && Math.log10(factor) + power <= high) ticks.push(Number((factor * 10 ** power).toPrecision(6)));
  return ticks;
}
const spread = (values) => values.length && Math.min(...values) > 0 && Math.max(...values) > 20 * Math.min(...values);

function chart(id, width = 600, height = 340, right = 20) {
  const home = document.getElementById(id);
  home.replaceChildren();
  const svg = node(home, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  return { svg, left: 76, right: width - right, top: 14, bottom: height - 46 };
}
function axesOf(box, x, y, xName, yName) {
  for (const tick of y.ticks) {
    node(box.svg, "line", { x1: box.left, x2: box.right, y1: y(tick), y2: y(tick), class: "grid" });
    node(box.svg, "text", { x: box.left - 8, y: y(tick) + 4, class: "tick end" }, spell(tick));
  }
  for (const tick of x.ticks) {
    node(box.svg, "line", { x1: x(tick), x2: x(tick), y1: box.bottom, y2: box.bottom + 5, class: "axis" });
    node(box.svg, "text", { x: x(tick), y: box.bottom + 18, class: "tick middle" }, spell(tick));
  }
  node(box.svg, "line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "axis" });
  node(box.svg, "text", { x: (box.left + box.right) / 2, y: box.bottom + 38, class: "label middle" }, xName);
  const middle = (box.top + box.bottom) / 2;
  node(box.svg, "text", { x: 16, y: middle, class: "label middle", transform: `rotate(-90 16 ${middle})` }, yName);
}
const path = (points) => "M" + points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");
function empty(id, why) {
  const home = document.getElementById(id);
  home.replaceChildren();
  html(home, "p", { class: "none" }, why);
}
function legend(id, names) {
  const list = html(document.getElementById(id), "p", { class: "legend" });
  names.slice(0, 20).forEach((name, index) => {
    const entry = html(list, "span", {});
    html(entry, "i", { style: `background:${COLOURS[index % COLOURS.length]}` });
    entry.append(name);
  });
  if (names.length > 20) html(list, "span", {}, `and ${names.length - 20} more`);
}

function drawRates() {
  const rates = data.rates;
  if (!rates || !rates.lines.length) return empty("rates", "No learning rate was varied.");
  const points = rates.lines.flatMap((line) => line.points);
  const box = chart("rates");
  const x = scale(points.map((p) => p.x), box.left, box.right, spread(points.map((p) => p.x)));
  const wide = rates.lines.length <= 6;
  const y = scale(points.flatMap((p) => (wide ? [p.low ?? p.mean, p.high ?? p.mean, p.mean] : [p.mean])), box.bottom, box.top);
  axesOf(box, x, y, rates.axis, data.metric);
  rates.lines.forEach((line, index) => {
    const colour = COLOURS[index % COLOURS.length];
    node(box.svg, "path", { d: path(line.points.map((p) => [x(p.x), y(p.mean)])), stroke: colour, class: "line" });
    for (const p of line.points) {
      const nudge = (index - (rates.lines.length - 1) / 2) * Math.min(4, 40 / rates.lines.length);
      if (wide && finite(p.low)) node(box.svg, "line", { x1: x(p.x) + nudge, x2: x(p.x) + nudge, y1: y(p.low), y2: y(p.high), stroke: colour, class: "bar" });
      const dot = node(box.svg, "circle", { cx: x(p.x), cy: y(p.mean), r: 4, fill: colour });
      node(dot, "title", {}, `${line.name}, ${rates.axis} ${spell(p.x)}: ${spell(p.mean)}`);
    }
  });
  legend("rates", rates.lines.map((line) => line.name));
}

function shade(share) {
  const light = [239, 246, 255], dark = [30, 64, 175];
  return `rgb(${light.map((part, index) => Math.round(part + (dark[index] - part) * share)).join(",")})`;
}
function drawHeat() {
  const [first, second] = ["heat-x", "heat-y"].map((id) => document.getElementById(id).value);
  if (!first || !second || first === second) return empty("heat", "Two axes are needed.");
  const [across, down] = [first, second].map((key) => data.axes.find((axis) => axis.key === key));
  const best = new Map();
  for (const cell of data.cells) {
    const key = JSON.stringify([cell.axes[across.key], cell.axes[down.key]]);
    const before = best.get(key);
    if (before === undefined || (data.lower ? cell.mean < before : cell.mean > before)) best.set(key, cell.mean);
  }
  const values = [...best.values()].filter(finite), low = Math.min(...values), high = Math.max(...values);
  const height = Math.min(46, Math.max(16, 420 / down.levels.length));
  const box = chart("heat", 600, down.levels.length * height + 66);
  const width = (box.right - box.left - 20) / across.levels.length;
  down.levels.forEach((row, j) => {
    const y = box.top + (down.levels.length - 1 - j) * height;
    node(box.svg, "text", { x: box.left - 8, y: y + height / 2 + 4, class: "tick end" }, spell(row));
    across.levels.forEach((column, i) => {
      const value = best.get(JSON.stringify([column, row])), x = box.left + i * width;
      const good = high === low ? 1 : (data.lower ? high - value : value - low) / (high - low);
      node(box.svg, "rect", { x: x + 1, y: y + 1, width: width - 2, height: height - 2, fill: finite(value) ? shade(good) : "#f1f5f9" });
      if (width > 44) node(box.svg, "text", { x: x + width / 2, y: y + height / 2 + 4, class: "tick middle", fill: finite(value) && good > 0.5 ? "#fff" : "#111" }, spell(value));
    });
  });
  const every = Math.ceil(46 / width);
  across.levels.forEach((column, i) => i % every || node(box.svg, "text", { x: box.left + (i + 0.5) * width, y: box.bottom + 18, class: "tick middle" }, spell(column)));
  node(box.svg, "text", { x: (box.left + box.right) / 2, y: box.bottom + 38, class: "label middle" }, across.label);
  const middle = (box.top + box.bottom) / 2;
  node(box.svg, "text", { x: 16, y: middle, class: "label middle", transform: `rotate(-90 16 ${middle})` }, down.label);
}

function shown() {
  const words = document.getElementById("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = [...document.querySelectorAll("#filters select[data-axis]")].filter((choice) => choice.value !== "");
  const status = document.getElementById("status").value;
  return data.trials.filter((trial) =>
    wanted.every((choice) => JSON.stringify(trial.axes[choice.dataset.axis] ?? null) === choice.value) &&
    (status === "" || trial.status === status) &&
    words.every((word) => trial.text.includes(word)));
}
function colourOf(trial) { return COLOURS[Math.max(0, trial.colour) % COLOURS.length]; }

function drawCurves(trials) {
  const kind = document.getElementById("curve").value;
  const lines = trials.filter((trial) => trial.curves[kind] && trial.curves[kind][0].length).slice(0, MAX_LINES);
  if (!lines.length) return empty("curves", "No curve to show.");
  const box = chart("curves", 600, 380);
  const steps = lines.flatMap((trial) => trial.curves[kind][0]), values = lines.flatMap((trial) => trial.curves[kind][1]);
  const x = scale(steps, box.left, box.right, false, 0.01), y = scale(values, box.bottom, box.top, spread(values));
  axesOf(box, x, y, "optimiser step", kind);
  for (const trial of lines) {
    const [at, value] = trial.curves[kind];
    const line = node(box.svg, "path", { d: path(at.map((step, index) => [x(step), y(value[index])])), stroke: colourOf(trial), class: lines.length > 30 ? "line faint" : "line thin" });
    node(line, "title", {}, trial.name);
  }
  const note = lines.length < trials.length ? `${lines.length} curves of ${trials.length} trials. ` : "";
  html(document.getElementById("curves"), "p", { class: "note" }, `${note}Colours are those of ${data.colourBy}.`);
}

function drawParallel(trials) {
  const known = trials.filter((trial) => finite(trial.value));
  if (!known.length || !data.axes.length) return empty("parallel", "No completed trial to show.");
  const box = chart("parallel", 600, 380, 70);
  const columns = [...data.axes, { key: null, label: data.metric, numeric: true, levels: data.trials.map((trial) => trial.value).filter(finite) }];
  const gap = (box.right - box.left - 20) / (columns.length - 1);
  const values = columns.at(-1).levels, low = Math.min(...values), high = Math.max(...values);
  const places = columns.map((column, index) => {
    const x = box.left + 10 + index * gap;
    node(box.svg, "line", { x1: x, x2: x, y1: box.top + 12, y2: box.bottom, class: "axis" });
    node(box.svg, "text", { x, y: box.bottom + 22, class: "label middle" }, column.label);
    let at;
    if (column.key === null) {
      at = scale(values, data.lower ? box.top + 14 : box.bottom, data.lower ? box.bottom : box.top + 14, false, 0.02);
      for (const tick of at.ticks) node(box.svg, "text", { x: x + 8, y: at(tick) + 4, class: "tick" }, spell(tick));
      return (trial) => [x, at(trial.value)];
    }
    const share = new Map(column.levels.map((level, place) => [JSON.stringify(level), place / Math.max(1, column.levels.length - 1)]));
    at = (level) => box.bottom - (share.get(JSON.stringify(level ?? null)) ?? 0) * (box.bottom - box.top - 14);
    const every = Math.ceil(column.levels.length / 12);
    column.levels.forEach((level, place) => { if (place % every === 0) node(box.svg, "text", { x: x - 8, y: at(level) + 4, class: "tick end halo" }, spell(level)); });
    return (trial) => [x, at(trial.axes[column.key])];
  });
  const order = [...known].sort((a, b) => (data.lower ? b.value - a.value : a.value - b.value));
  for (const trial of order.slice(-1000)) {
    const good = high === low ? 1 : (data.lower ? high - trial.value : trial.value - low) / (high - low);
    const line = node(box.svg, "path", { d: path(places.map((place) => place(trial))), stroke: shade(0.25 + 0.75 * good), "stroke-opacity": 0.3 + 0.6 * good, class: "line thin" });
    node(line, "title", {}, `${trial.name}: ${spell(trial.value)}`);
  }
}

function drawPareto() {
  const key = document.getElementById("cost").value;
  const known = data.cells.filter((cell) => finite(cell.mean) && finite(cell.budget[key]));
  if (!known.length) return empty("pareto", "No cell has this figure.");
  const box = chart("pareto");
  const costs = known.map((cell) => cell.budget[key]);
  const x = scale(costs, box.left, box.right, spread(costs)), y = scale(known.map((cell) => cell.mean), box.bottom, box.top);
  axesOf(box, x, y, data.budgets[key], data.metric);
  const front = [];
  for (const cell of [...known].sort((a, b) => a.budget[key] - b.budget[key] || (data.lower ? a.mean - b.mean : b.mean - a.mean)))
    if (!front.length || (data.lower ? cell.mean < front.at(-1).mean : cell.mean > front.at(-1).mean)) front.push(cell);
  const corners = front.flatMap((cell, index) => (index ? [[x(cell.budget[key]), y(front[index - 1].mean)], [x(cell.budget[key]), y(cell.mean)]] : [[x(cell.budget[key]), y(cell.mean)]]));
  if (front.length > 1) node(box.svg, "path", { d: path(corners), class: "line front" });
  for (const cell of known) {
    const on = front.includes(cell);
    const dot = node(box.svg, "circle", { cx: x(cell.budget[key]), cy: y(cell.mean), r: on ? 6 : 4, fill: on ? "#c2410c" : "#94a3b8" });
    node(dot, "title", {}, `${cell.name}: ${spell(cell.mean)} at ${spell(cell.budget[key])}`);
  }
  const names = html(document.getElementById("pareto"), "p", { class: "note" });
  names.textContent = "On the front, cheapest first: " + front.slice(0, 12).map((cell) => cell.name).join("; ") + (front.length > 12 ? "; …" : "");
}

function drawImportance() {
  if (!data.importance.length) return empty("importance", "Three cells or more are needed.");
  const box = chart("importance", 600, 30 * data.importance.length + 30);
  data.importance.forEach(([name, share], index) => {
    const y = box.top + index * 30;
    node(box.svg, "text", { x: 200, y: y + 15, class: "label end" }, name);
    node(box.svg, "rect", { x: 210, y, width: Math.max(1, share * 330), height: 20, fill: index < data.importance.length - 1 ? COLOURS[0] : "#cbd5e1" });
    node(box.svg, "text", { x: 216 + share * 330, y: y + 15, class: "tick" }, `${(100 * share).toFixed(0)} %`);
  });
}

function update() {
  const trials = shown();
  document.getElementById("shown").textContent = `${trials.length} of ${data.trials.length} trials`;
  drawCurves(trials);
  drawParallel(trials);
  const kept = new Set(trials.map((trial) => trial.number));
  for (const row of document.querySelectorAll("#trials tbody tr")) row.hidden = !kept.has(Number(row.dataset.trial));
}
for (const id of ["heat-x", "heat-y"]) document.getElementById(id).addEventListener("change", drawHeat);
document.getElementById("cost").addEventListener("change", drawPareto);
for (const control of document.querySelectorAll("#filters select, #filters input")) control.addEventListener("input", update);
document.getElementById("reset").addEventListener("click", () => {
  for (const control of document.querySelectorAll("#filters select:not(#curve), #filters input")) control.value = "";
  update();
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-copy]");
  if (button) navigator.clipboard?.writeText(button.dataset.copy);
});
drawRates(); drawHeat(); drawPareto(); drawImportance(); update();
document.body.dataset.ready = "yes";
