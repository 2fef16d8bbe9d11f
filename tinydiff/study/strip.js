// The strip below: how many bytes are kept for backward after each step.

function drawStrip() {
  const peak = Math.max(1, ...steps.map((step) => step.live));
  const n = Math.max(1, steps.length);
  const top = (live) => 50 - (46 * live) / peak;
  const outline = steps.map((step, i) => `L${i} ${top(step.live)} L${i + 1} ${top(step.live)}`).join(" ");
  const highest = steps.findIndex((step) => step.live === peak);
  const turn = firstBackward > 0 ? [make("line", { class: "turn", x1: firstBackward, x2: firstBackward, y1: 0, y2: 52 })] : [];
  const svg = make("svg", { viewBox: `0 0 ${n} 52`, preserveAspectRatio: "none", "aria-hidden": "true" },
    make("path", { class: "area", d: `M0 50 ${outline} L${n} 50 z` }), ...turn, make("line", { class: "now", id: "now", x1: 0, x2: 0, y1: 0, y2: 52 }));
  const at = (event) => { const frame = svg.getBoundingClientRect(); return Math.max(0, Math.min(steps.length - 1, Math.floor(((event.clientX - frame.left) / frame.width) * n))); };
  const plot = make("div", { id: "plot", role: "slider", tabindex: "0", "aria-label": "step, with the memory kept for backward", "aria-valuemin": 1, "aria-valuemax": n,
    onclick: (event) => goTo(at(event)), onpointermove: (event) => tipOfStep(at(event), event.clientX), onpointerleave: stopReading }, svg,
    make("i", { id: "dot" }));
  const percent = (i) => `left:${(100 * i) / n}%`;
  if (highest >= 0) plot.append(make("i", { class: "peak", style: percent(highest + 0.5) }));
  const axis = make("div", { id: "axis" }, make("span", {}, steps.length ? bytes(peak) : ""), make("span", {}, "0 B"));
  const below = make("p", { class: "phases" }, firstBackward > 0 ? make("span", { style: percent(0) }, "forward →") : "", firstBackward >= 0 ? make("span", { style: percent(firstBackward) }, "backward →") : "");
  const title = make("p", { class: "words" }, make("b", {}, "memory kept for backward"), make("span", { id: "live" }),
    highest < 0 ? "" : make("span", { class: "push" }, "peak ", link(`${bytes(peak)}, ${placeOfStep(highest)}`, highest)));
  byId("strip").append(title, axis, plot, below);
}

const placeOfStep = (i) => `${steps[i].kind === "forward" ? "forward" : "backward"} ${counted(steps[i])}`;

function tipOfStep(i, x) {
  if (!steps[i]) return;
  const step = steps[i];
  const change = step.live - (steps[i - 1]?.live ?? 0);
  const where = keyOf(step)[0] === "n" ? nodes[numberOf(keyOf(step))].module : "";
  const { top } = byId("plot").getBoundingClientRect();
  tip({ left: x, right: x, top, bottom: top }, `${placeOfStep(i)}: ${step.kind === "sum" ? "sum for " : ""}${nameOf(keyOf(step))}  ${where}\n${bytes(step.live)} kept${change ? ` (${change > 0 ? "+" : "−"}${bytes(Math.abs(change))})` : ""}`);
}

function markStrip() {
  if (!steps.length) return;
  const { live } = steps[state.step];
  const peak = Math.max(1, ...steps.map((step) => step.live));
  byId("now").setAttribute("x1", state.step + 0.5);
  byId("now").setAttribute("x2", state.step + 0.5);
  byId("dot").style.cssText = `left:${(100 * (state.step + 0.5)) / steps.length}%;top:${4 + 46 * (1 - live / peak)}px`;
  byId("live").textContent = `${bytes(live)} after this step`;
  byId("plot").setAttribute("aria-valuenow", state.step + 1);
  byId("plot").setAttribute("aria-valuetext", `${placeOfStep(state.step)}, ${bytes(live)} kept`);
}
