// The strip below, step by step: the bytes that are kept for backward, or how large the values and gradients are.

const STRIPS = {
  memory: ["memory kept for backward", (step) => step.live, (x, top) => x / top, bytes],
  sizes: ["size of values and gradients", rootMeanSquare, (x, top, low) => (x ? (Math.log10(x) - Math.log10(low)) / (Math.log10(top / low) || 1) : 0), brief],
};
const strip = { of: "memory", heights: [] };

// The root mean square of what a step makes: an output, a gradient or a sum. null: nothing, or not finite.
function rootMeanSquare(step) {
  const number = step.kind === "sum" ? step.total : step.kind === "forward" ? nodes[step.node].outputs[0] : nodes[step.node].LX[step.gradient];
  const array = arrays[number];
  return !array || array.bad ? null : array.norm / Math.sqrt(array.shape.reduce((a, b) => a * b, 1) || 1);
}

function drawStrip() {
  const [, of, place, format] = STRIPS[strip.of];
  const values = steps.map(of);
  const shown = values.filter((x) => x !== null && x > 0);
  const [top, low] = [Math.max(...shown, strip.of === "memory" ? 1 : 0) || 1, Math.min(...shown, Infinity)];
  const n = Math.max(1, steps.length);
  strip.heights = values.map((x) => (x === null ? null : 50 - 46 * Math.max(0.02, place(x, top, low))));
  const flat = (i) => strip.heights[i] ?? 50;
  const outline = steps.map((_, i) => `L${i} ${flat(i)} L${i + 1} ${flat(i)}`).join(" ");
  const turn = firstBackward > 0 ? [make("line", { class: "turn", x1: firstBackward, x2: firstBackward, y1: 0, y2: 52 })] : [];
  const bad = strip.of === "sizes" ? steps.map((_, i) => i).filter((i) => values[i] === null) : [];
  const svg = make("svg", { viewBox: `0 0 ${n} 52`, preserveAspectRatio: "none", "aria-hidden": "true" },
    make("path", { class: "area", d: `M0 50 ${outline} L${n} 50 z` }), ...bad.map((i) => make("rect", { class: "bad", x: i, y: 4, width: 1, height: 46 })), ...turn,
    make("line", { class: "now", id: "now", x1: 0, x2: 0, y1: 0, y2: 52 }));
  const at = (event) => { const frame = svg.getBoundingClientRect(); return Math.max(0, Math.min(steps.length - 1, Math.floor(((event.clientX - frame.left) / frame.width) * n))); };
  const plot = make("div", { id: "plot", role: "slider", tabindex: "0", "aria-label": `step, with the ${STRIPS[strip.of][0]}`, "aria-valuemin": 1, "aria-valuemax": n,
    onclick: (event) => goTo(at(event)), onpointermove: (event) => tipOfStep(at(event), event.clientX), onpointerleave: stopReading }, svg, make("i", { id: "dot" }));
  const percent = (i) => `left:${(100 * i) / n}%`;
  const highest = values.indexOf(top);
  if (highest >= 0) plot.append(make("i", { class: "peak", style: percent(highest + 0.5) }));
  const axis = make("div", { id: "axis" }, ...(shown.length ? [format(top), strip.of === "memory" ? "0 B" : format(low)] : ["", ""]).map((text) => make("span", {}, text)));
  const below = make("p", { class: "phases" }, firstBackward > 0 ? make("span", { style: percent(0) }, "forward →") : "", firstBackward >= 0 ? make("span", { style: percent(firstBackward) }, "backward →") : "");
  const choose = Object.entries(STRIPS).map(([name, [title]]) => make("button", { "aria-pressed": name === strip.of, "data-strip": name, onclick: () => setStrip(name) }, title));
  const words = make("div", { class: "words" }, make("span", { class: "set" }, ...choose), make("span", { id: "live" }),
    highest < 0 ? "" : make("span", { class: "push" }, strip.of === "memory" ? "peak " : "largest ", link(`${format(top)}, ${placeOfStep(highest)}`, highest)));
  byId("strip").replaceChildren(words, axis, plot, below);
}

function setStrip(name) {
  const focused = byId("strip").contains(document.activeElement);
  strip.of = name;
  drawStrip();
  markStrip();
  if (focused) byId("strip").querySelector(`[data-strip="${name}"]`).focus();
}

const placeOfStep = (i) => `${steps[i].kind === "forward" ? "forward" : "backward"} ${counted(steps[i])}`;

// What a step keeps or makes, in words.
function saidOf(i) {
  const x = STRIPS[strip.of][1](steps[i]);
  if (strip.of === "memory") return `${bytes(x)} kept`;
  return x === null ? "not finite" : `root mean square ${brief(x)}`;
}

function tipOfStep(i, x) {
  if (!steps[i]) return;
  const step = steps[i];
  const change = strip.of === "memory" ? step.live - (steps[i - 1]?.live ?? 0) : 0;
  const key = keyOf(step);
  const made = step.kind === "gradient" ? `L_${nodes[step.node].names[step.gradient]} of ` : step.kind === "sum" ? "sum for " : "";
  const { top } = byId("plot").getBoundingClientRect();
  tip({ left: x, right: x, top, bottom: top }, [`${placeOfStep(i)}: ${made}${nameOf(key)}  ${key[0] === "n" ? nodes[numberOf(key)].module : ""}`,
    `${saidOf(i)}${change ? ` (${change > 0 ? "+" : "−"}${bytes(Math.abs(change))})` : ""}`].join("\n"));
}

function markStrip() {
  if (!steps.length) return;
  for (const end of ["x1", "x2"]) byId("now").setAttribute(end, state.step + 0.5);
  byId("dot").style.cssText = `left:${(100 * (state.step + 0.5)) / steps.length}%;top:${strip.heights[state.step] ?? 4}px`;
  byId("live").textContent = `${saidOf(state.step)} ${strip.of === "memory" ? "after this step" : "in this step; the scale is logarithmic"}`;
  byId("plot").setAttribute("aria-valuenow", state.step + 1);
  byId("plot").setAttribute("aria-valuetext", `${placeOfStep(state.step)}, ${saidOf(state.step)}`);
}
