// The bar on top, the keys, the search, the help; and the start.

function goTo(i) {
  if (!steps.length) return;
  const began = performance.now();
  state.step = Math.max(0, Math.min(steps.length - 1, i));
  setCosts(false);
  stopReading();
  showPanel();
  markGraph();
  showCurrent();
  markStrip();
  markBar();
  document.body.offsetHeight;  // so that the time counts the layout, too
  state.paint = performance.now() - began;
  if (location.protocol !== "about:") history.replaceState(null, "", `#${state.step}`);  // a notebook's frame has no address
}

// The next or previous operation or sum; the entries between are gradients of the same operation.
function goOperation(direction) {
  let i = state.step;
  while (steps[i]?.pass === steps[state.step].pass) i += direction;
  goTo(direction > 0 || !steps[i] ? i : steps.findIndex((step) => step.pass === steps[i].pass));
}

function play() {
  if (state.playing) { clearInterval(state.playing); state.playing = 0; } else {
    if (state.step >= steps.length - 1) goTo(Math.max(0, firstBackward));
    state.playing = setInterval(() => { if (state.step >= steps.length - 1) play(); else goTo(state.step + 1); }, 900);
  }
  markBar();
}

function markBar() {
  const step = steps[state.step];
  byId("forward").setAttribute("aria-pressed", Boolean(step) && step.kind === "forward");
  byId("backward").setAttribute("aria-pressed", Boolean(step) && step.kind !== "forward");
  byId("costs").setAttribute("aria-pressed", state.costs);
  byId("play").textContent = state.playing ? "❚❚ pause" : "▶ play";
  byId("count").textContent = step ? counted(step) : "no steps";
}

function setCosts(shown) {
  if (state.costs === shown) return;
  state.costs = shown;
  showPanel();
  markBar();
}

function goToBad() {
  if (data.bad && data.bad.step !== null) goTo(data.bad.step);
}

function setTheme(dark) {
  document.documentElement.classList.toggle("dark", dark);
  readPalette();
  byId("theme").textContent = dark ? "☀ light" : "☾ dark";
  showPanel();
}

// ---------------------------------------------------------------- search

// What can be found: [key, what stands in the list, what else is searched].
const findable = [
  ...nodes.map((node, i) => [`n${i}`, `${titleOf(i)}  ${node.module}`, `${node.line} ${node.text}`]),
  ...leaves.map((leaf, i) => [`l${i}`, nameOf(`l${i}`), ""]),
];

// Operations, weights and data that have all the words, those found by name or module first.
function search(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const has = (whole) => words.every((word) => whole.toLowerCase().includes(word));
  const hits = words.length ? findable.filter(([, shown, more]) => has(`${shown} ${more}`)) : [];
  hits.sort(([, a], [, b]) => has(b) - has(a));
  const items = hits.slice(0, 60).map(([key, shown], i) => make("li", { role: "option", "data-key": key, class: i ? null : "on", "aria-selected": i === 0, onmousedown: () => { closeSearch(); visit(key); } }, shown));
  byId("found").replaceChildren(...items);
  byId("found").hidden = !hits.length;
  byId("search").setAttribute("aria-expanded", hits.length > 0);
}

// Goes to what was found, and unfolds the modules around it.
function visit(key) {
  pick(key);
  reveal(key[0] === "n" ? key : keyOf(steps[state.step]));
}

function onSearchKey(event) {
  const items = [...byId("found").children];
  const at = items.findIndex((item) => item.className === "on");
  if (event.key === "Enter" && items[at]) { const { key } = items[at].dataset; closeSearch(); visit(key); }
  const to = { ArrowDown: at + 1, ArrowUp: at - 1 }[event.key];
  if (!items[to]) return;
  event.preventDefault();
  items.forEach((item, i) => { item.className = i === to ? "on" : ""; item.setAttribute("aria-selected", i === to); });
  items[to].scrollIntoView({ block: "nearest" });
}

function closeSearch() {
  byId("search").value = "";
  search("");
  byId("search").blur();
}

// ---------------------------------------------------------------- keys

const KEYS = new Map([
  ["ArrowRight", ["the next step", () => goTo(state.step + 1)]],
  ["ArrowLeft", ["the step before", () => goTo(state.step - 1)]],
  ["ArrowDown", ["the next operation", () => goOperation(1)]],
  ["ArrowUp", ["the operation before", () => goOperation(-1)]],
  ["Home", ["the first step of forward", () => goTo(0)]],
  ["End", ["the last step", () => goTo(steps.length - 1)]],
  ["b", ["the first step of backward", () => goTo(Math.max(0, firstBackward))]],
  [" ", ["play, pause", play]],
  ["/", ["search for an operation, a module, a weight or a line", () => byId("search").focus()]],
  ["n", ["the first value that is not finite", goToBad]],
  ["c", ["costs: what keeps most memory, what computes most", () => setCosts(!state.costs)]],
  ["f", ["fold or unfold the module of this step", foldCurrent]],
  ["F", ["unfold all modules, fold them again", foldAll]],
  ["+", ["zoom in", () => zoom(1 / 1.25)]],
  ["-", ["zoom out", () => zoom(1.25)]],
  ["0", ["the whole graph", () => fit(0)]],
  ["m", ["memory or sizes in the strip below", () => setStrip(strip.of === "memory" ? "sizes" : "memory")]],
  ["t", ["light or dark", () => setTheme(!document.documentElement.classList.contains("dark"))]],
  ["?", ["this help", () => byId("help").showModal()]],
]);

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (byId("help").open) { if (event.key === "?") byId("help").close(); return; }  // Escape closes it, too
  if (event.key === "Escape") { closeSearch(); setCosts(false); return; }
  if (event.target === byId("search")) { onSearchKey(event); return; }
  if (event.key === " " && event.target.closest("button, summary")) return;
  const action = KEYS.get(event.key);
  if (action && (steps.length || !/^(Arrow|Home|End| |b$)/.test(event.key))) { event.preventDefault(); action[1](); }
}

// ---------------------------------------------------------------- the page

const button = (id, text, title, onclick, more = {}) => make("button", { id, title, onclick, ...more }, text);
const press = (key) => () => KEYS.get(key)[1]();

function header() {
  return make("header", {}, make("h1", { title: data.title }, data.title),
    make("span", { class: "set" }, button("forward", "Forward", "from the inputs to the loss (Home)", press("Home")), button("backward", "Backward", "from the loss to the weights (b)", press("b"))),
    make("span", { class: "set" }, button("before", "←", "the step before (left arrow)", press("ArrowLeft"), { "aria-label": "the step before" }), button("play", "▶ play", "play, pause (space)", play), button("next", "→", "the next step (right arrow)", press("ArrowRight"), { "aria-label": "the next step" })),
    make("span", { id: "count" }),
    make("span", {}, make("input", { id: "search", placeholder: "search  /", "aria-label": "search", role: "combobox", "aria-controls": "found", "aria-expanded": "false", autocomplete: "off", oninput: (event) => search(event.target.value), onblur: () => { byId("found").hidden = true; } }),
      make("ul", { id: "found", role: "listbox", "aria-label": "what was found", hidden: "" })),
    data.bad ? button("bad", "first non-finite value", data.bad.text, goToBad) : "",
    make("span", { class: "push" }), button("costs", "costs", "what keeps most memory, what computes most (c)", press("c")),
    button("theme", "", "light or dark (t)", press("t")), button("asked", "?", "keys (?)", press("?"), { "aria-label": "keys and colours" }));
}

function help() {
  const names = { " ": "space", ArrowRight: "→", ArrowLeft: "←", ArrowDown: "↓", ArrowUp: "↑" };
  return make("dialog", { id: "help", "aria-label": "help", onclick: () => byId("help").close() }, make("h3", {}, "what is seen"),
    make("p", {}, "L_X is the derivative of the loss with respect to X: how much the loss grows for a small step of each element of X. A step of backward takes L_Y, the gradient of an operation's output, and makes one of its inputs' gradients. Where a value was used several times, its gradients are added, in a step of their own."),
    make("p", {}, "The colours of arrays: red is positive, blue negative, the background zero; |x| is the norm, the root of the sum of squares. Point at a value to read it and what it was made of; or reach an array with Tab and walk in it with the arrow keys."),
    make("p", {}, "In the graph, a click on a box goes to its step, a click on a module unfolds it, a click on a frame's name folds it. Drag and wheel move and zoom."),
    make("h3", {}, "keys"), make("dl", { class: "facts" }, ...[...KEYS].flatMap(([key, [what]]) => [make("dt", {}, make("kbd", {}, names[key] ?? key)), make("dd", {}, what)])));
}

function begin() {
  byId("app").append(header(),
    make("section", { id: "graph", "aria-label": "the graph" }, make("svg"),
      make("div", { id: "zoom" }, button("in", "+", "zoom in", press("+")), button("out", "−", "zoom out", press("-")), button("whole", "⤢", "the whole graph (0)", press("0")))),
    make("main", { id: "panel", tabindex: "0", "aria-live": "polite" }),
    make("footer", { id: "strip" }));
  document.body.append(make("div", { id: "tip", class: "mono", role: "status", hidden: "" }), help());
  document.addEventListener("keydown", onKey);
  watchPointer(byId("graph").querySelector("svg"));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches);
  dark.addEventListener("change", (event) => setTheme(event.matches));
  drawStrip();
  openAtFirst();
  drawGraph();
  fit();
  addEventListener("resize", () => fit());
  goTo(location.hash ? Number(location.hash.slice(1)) || 0 : state.step);
  markBar();
}

begin();
