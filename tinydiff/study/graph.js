// The rest of the page: the graph, the strip of memory, the bar, the keys. page.js, above, shows the current step.

const WIDE = 158, HIGH = 40, GAP_X = 20, GAP_Y = 26, FEW = 60, COLUMN = 24;
const graph = { items: new Map(), arrows: new Map(), of: new Map() };

// ---------------------------------------------------------------- the graph

// The box that stands for an operation or a leaf: itself, or the outermost folded module around it.
function itemOf(key) {
  if (key === null || key === undefined || key[0] !== "n") return key;
  const number = Number(key.slice(1));
  const around = groups.findIndex((group, g) => state.folded.has(g) && group.first <= number && number <= group.last);
  return around < 0 ? key : `g${around}`;
}

// Folds the modules of a large graph, the innermost first, until few boxes are left.
function foldAtFirst() {
  const inside = (a, b) => a !== b && b.first <= a.first && a.last <= b.last;
  for (let depth = Math.max(0, ...groups.map((group) => group.depth)); depth > 0; depth--) {
    const visible = new Set(boxes.map((box) => itemOf(box.k)));
    if (visible.size <= FEW) return;
    const shallow = groups.filter((group) => group.depth <= depth);
    state.folded = new Set(shallow.filter((group) => !shallow.some((other) => inside(other, group))).map((group) => groups.indexOf(group)));
  }
}

// Draws the graph anew, after something was folded or unfolded.
function drawGraph() {
  graph.items.clear();
  graph.arrows.clear();
  graph.of.clear();
  const gathered = new Map();
  for (const box of boxes) {
    const key = itemOf(box.k);
    graph.of.set(box.k, key);
    if (!gathered.has(key)) gathered.set(key, []);
    gathered.get(key).push(box);
  }
  const items = [...gathered].map(([key, members]) => ({
    key, members, x: mean(members.map((b) => b.x)) * (WIDE + GAP_X) / 1.25, layer: mean(members.map((b) => b.layer)),
  }));
  const rank = new Map([...new Set(items.map((item) => item.layer))].sort((a, b) => a - b).map((layer, i) => [layer, i]));
  const rows = new Map();
  for (const item of items) {
    item.y = rank.get(item.layer) * (HIGH + GAP_Y);
    if (!rows.has(item.y)) rows.set(item.y, []);
    rows.get(item.y).push(item);
  }
  const column = items.length > COLUMN;
  for (const row of rows.values()) spread(row, column);
  const scene = make("g", { id: "scene" });
  for (const item of items) graph.items.set(item.key, item);
  groups.forEach((group, g) => { const frame = frameOf(group, g, items); if (frame) scene.append(frame); });
  const pairs = new Map();
  for (const [a, b] of arrows) {
    const [from, to] = [graph.of.get(boxes[a].k), graph.of.get(boxes[b].k)];
    if (from !== to) pairs.set(`${from}>${to}`, [graph.items.get(from), graph.items.get(to)]);
  }
  const lanes = new Map();
  const shortFirst = [...pairs].sort(([, [a, b]], [, [c, d]]) => b.y - a.y - (d.y - c.y));
  for (const [id, [from, to]] of shortFirst) {
    graph.arrows.set(id, arrow(from, to, rows, lanes));
    scene.append(graph.arrows.get(id));
  }
  for (const item of items) scene.append(drawItem(item));
  const svg = byId("graph").querySelector("svg");
  svg.replaceChildren(make("defs", {}, marker("tip-of-arrow", "var(--node-line)", 8), marker("tip-now", "var(--accent)", 12)), scene);
  graph.bounds = boundsOf(items, lanes);
  markGraph();
}

const marker = (id, fill, size) => make("marker", { id, markerUnits: "userSpaceOnUse", markerWidth: size, markerHeight: size, refX: size - 1, refY: size / 2, orient: "auto-start-reverse" },
  make("path", { d: `M0 0 L${size} ${size / 2} L0 ${size} z`, fill }));
const mean = (numbers) => numbers.reduce((a, b) => a + b, 0) / numbers.length;

// Keeps boxes of a row apart, as near to their places as that allows. column: the rows of a long graph are centred instead,
// so that its boxes stand below each other.
function spread(row, column) {
  row.sort((a, b) => a.x - b.x);
  const wanted = column ? 0 : mean(row.map((item) => item.x));
  if (column) for (const item of row) item.x = 0;
  for (let i = 1; i < row.length; i++) row[i].x = Math.max(row[i].x, row[i - 1].x + WIDE + GAP_X);
  const shift = wanted - mean(row.map((item) => item.x));
  for (const item of row) item.x += shift;
}

function boundsOf(items, lanes) {
  const xs = [...items.map((item) => item.x), ...[...lanes.values()].map((x) => x - WIDE)], ys = items.map((item) => item.y);
  const [left, top] = [Math.min(0, ...xs) - 30, Math.min(0, ...ys) - 30];
  return { x: items.length ? Math.min(...xs) - 30 : left, y: top, width: items.length ? Math.max(...xs) - Math.min(...xs) + WIDE + 60 : 400, height: (items.length ? Math.max(...ys) : 0) - top + HIGH + 40 };
}

// An arrow goes straight down where nothing is in its way, else in a lane at the right of what is. lanes: how far right
// each row is taken.
function arrow(from, to, rows, lanes) {
  const [xa, ya, xb, yb] = [from.x + WIDE / 2, from.y + HIGH, to.x + WIDE / 2, to.y - 2];
  const between = [...rows.keys()].filter((y) => y > from.y && y < to.y);
  const crosses = between.some((y) => {
    const x = xa + ((xb - xa) * (y - from.y)) / (to.y - from.y);
    return rows.get(y).some((item) => item.x - 10 < x && x < item.x + WIDE + 10);
  });
  let d = `M${xa} ${ya} C${xa} ${ya + Math.max(14, (yb - ya) / 2)} ${xb} ${yb - Math.max(14, (yb - ya) / 2)} ${xb} ${yb}`;
  if (crosses) {
    const lane = Math.max(...between.map((y) => lanes.get(y) ?? Math.max(...rows.get(y).map((item) => item.x + WIDE)))) + 14;
    for (const y of between) lanes.set(y, lane);
    const [first, last] = [Math.min(...between), Math.max(...between) + HIGH];
    d = `M${xa} ${ya} C${xa} ${ya + 22} ${lane} ${first - 22} ${lane} ${first} L${lane} ${last} C${lane} ${last + 22} ${xb} ${yb - 22} ${xb} ${yb}`;
  }
  return make("path", { class: "arrow", d });
}

function drawItem(item) {
  const [kind, number] = [item.key[0], Number(item.key.slice(1))];
  let title, small, type = "";
  if (kind === "g") {
    const saved = nodes.slice(groups[number].first, groups[number].last + 1).reduce((sum, node) => sum + node.saved, 0);
    [title, small, type] = [groups[number].path, `${groups[number].last - groups[number].first + 1} operations, keeps ${bytes(saved)}`, "module"];
  } else if (kind === "l") {
    const leaf = leaves[number];
    [title, small, type] = [leaf.name || "array", written(leaf.shape), leaf.weight ? "weight" : "leaf"];
  } else {
    const node = nodes[number];
    const shape = node.outputs.length ? written(arrays[node.outputs[0]].shape) : "";
    [title, small] = [node.name, `${node.module ? `${short(node.module, 14)}  ` : ""}${shape}`];
  }
  const round = kind === "l" ? HIGH / 2 : 6;
  const group = make("g", { class: `box ${type}`, transform: `translate(${item.x} ${item.y})`, "data-key": item.key, onclick: () => pick(item.key) },
    make("title", {}, kind === "g" ? `${title}: click to unfold` : kind === "n" ? `${title} ${nodes[number].module}` : title),
    make("rect", { width: WIDE, height: HIGH, rx: round }),
    make("text", { x: WIDE / 2, y: 17 }, short(title, 22)), make("text", { class: "small", x: WIDE / 2, y: 32 }, short(small, 32)));
  item.drawn = group;
  return group;
}

// The frame around an unfolded module, with its name; a click on the name folds it.
function frameOf(group, g, items) {
  const inside = items.filter((item) => item.key[0] === "n" && group.first <= Number(item.key.slice(1)) && Number(item.key.slice(1)) <= group.last);
  const covered = groups.some((other, o) => state.folded.has(o) && other.first <= group.first && group.last <= other.last);
  if (covered || inside.length < 2) return null;
  const [left, top] = [Math.min(...inside.map((i) => i.x)) - 12, Math.min(...inside.map((i) => i.y)) - 16];
  const [right, bottom] = [Math.max(...inside.map((i) => i.x)) + WIDE + 12, Math.max(...inside.map((i) => i.y)) + HIGH + 6];
  return make("g", { class: "frame" }, make("rect", { x: left, y: top, width: right - left, height: bottom - top, rx: 8 }),
    make("text", { x: left + 6, y: top + 11, "data-group": g, onclick: () => fold(g) }, `▾ ${group.path}`));
}

const short = (text, n) => (text.length <= n ? text : `…${text.slice(text.length - n + 1)}`);

// A click on a box: unfolds a module, goes to the backward step of an operation or of what made a leaf's gradient.
function pick(key) {
  if (key[0] === "g") { fold(Number(key.slice(1))); return; }
  const number = Number(key.slice(1));
  const found = key[0] === "n" ? nearest((step) => step[0] !== "s" && step[1] === number)
    : nearest((step) => (step[0] === "s" ? step[1] === key : step[0] === "b" && nodes[step[1]].from[step[2]] === key));
  if (found >= 0) goTo(found);
}

// The backward step of that kind, or a forward step if there is none.
function nearest(test) {
  const back = steps.findIndex((step) => step[0] !== "f" && test(step));
  return back >= 0 ? back : steps.findIndex(test);
}

function fold(g) {
  if (state.folded.has(g)) state.folded.delete(g); else state.folded.add(g);
  drawGraph();
  showCurrent();
}

// Classes of boxes and arrows for the current step; nothing is made anew.
function markGraph() {
  const step = steps[state.step];
  const done = new Set(), now = new Set(), target = new Set();
  const inBackward = step && step[0] !== "f";
  for (let i = inBackward ? firstBackward : 0; i < state.step; i++) if (steps[i][0] === (inBackward ? "b" : "f")) done.add(itemOf(`n${steps[i][1]}`));
  let lit = null;
  if (step) {
    const key = step[0] === "s" ? step[1] : `n${step[1]}`;
    now.add(itemOf(key));
    if (step[0] === "b") {
      const to = nodes[step[1]].from[step[2]];
      if (to) { target.add(itemOf(to)); lit = `${itemOf(to)}>${itemOf(key)}`; }
    } else if (step[0] === "s" && step[7] !== null) lit = `${itemOf(key)}>${itemOf(`n${step[7]}`)}`;
  }
  const wrong = data.bad && steps[data.bad.step] && data.bad.step !== null ? itemOf(steps[data.bad.step][0] === "s" ? steps[data.bad.step][1] : `n${steps[data.bad.step][1]}`) : null;
  for (const [key, item] of graph.items) {
    const kind = item.key[0] === "g" ? "module" : item.key[0] === "l" ? (leaves[item.key.slice(1)].weight ? "weight" : "leaf") : "";
    const text = `box ${kind}${done.has(key) ? " done" : ""}${target.has(key) ? " target" : ""}${now.has(key) ? " now" : ""}${wrong === key ? " bad" : ""}`;
    if (item.drawn.getAttribute("class") !== text) item.drawn.setAttribute("class", text);
  }
  for (const [id, path] of graph.arrows) {
    const text = id !== lit ? "arrow" : inBackward ? "arrow now back" : "arrow now";
    if (path.getAttribute("class") !== text) path.setAttribute("class", text);
  }
}

// ---------------------------------------------------------------- looking at the graph

function setView(view) {
  state.view = view;
  byId("graph").querySelector("svg").setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
}

// All of a small graph; of a large one a part in which boxes can be read.
function fit() {
  const frame = byId("graph").getBoundingClientRect();
  const ratio = frame.width / Math.max(1, frame.height);
  const { x, y, width, height } = graph.bounds;
  const wide = Math.min(Math.max(width, height * ratio), frame.width * 1.5);
  setView({ x: x + (width - wide) / 2, y, width: wide, height: wide / ratio });
  showCurrent();
}

function zoom(factor, px = 0.5, py = 0.5) {
  const { x, y, width, height } = state.view;
  setView({ x: x + width * px * (1 - factor), y: y + height * py * (1 - factor), width: width * factor, height: height * factor });
}

// Moves the graph if the current box lies outside of what is seen.
function showCurrent() {
  const step = steps[state.step];
  const item = step && graph.items.get(itemOf(step[0] === "s" ? step[1] : `n${step[1]}`));
  if (!item || !state.view) return;
  const { x, y, width, height } = state.view;
  const margin = Math.min(60, height / 5);
  const seen = item.x > x && item.x + WIDE < x + width && item.y > y + margin && item.y + HIGH < y + height - margin;
  if (!seen) setView({ x: item.x + WIDE / 2 - width / 2, y: item.y + HIGH / 2 - height / 2, width, height });
}

function watchPointer(svg) {
  let start = null;
  svg.addEventListener("pointerdown", (event) => { start = { x: event.clientX, y: event.clientY, view: state.view, moved: false }; });
  svg.addEventListener("pointermove", (event) => {
    if (!start || !event.buttons) return;
    const [dx, dy] = [event.clientX - start.x, event.clientY - start.y];
    if (!start.moved && Math.abs(dx) + Math.abs(dy) < 4) return;
    if (!start.moved) { start.moved = true; svg.setPointerCapture(event.pointerId); svg.classList.add("pulled"); }
    const scale = start.view.width / svg.getBoundingClientRect().width;
    setView({ ...start.view, x: start.view.x - dx * scale, y: start.view.y - dy * scale });
  });
  svg.addEventListener("pointerup", () => { start = null; svg.classList.remove("pulled"); });
  svg.addEventListener("wheel", (event) => {
    event.preventDefault();
    const frame = svg.getBoundingClientRect();
    zoom(event.deltaY > 0 ? 1.12 : 1 / 1.12, (event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height);
  }, { passive: false });
}

// ---------------------------------------------------------------- memory

function drawStrip() {
  const peak = Math.max(1, ...steps.map((step) => step[3]));
  const n = Math.max(1, steps.length);
  const points = steps.map((step, i) => `L${i} ${50 - (46 * step[3]) / peak} L${i + 1} ${50 - (46 * step[3]) / peak}`).join(" ");
  const svg = make("svg", { viewBox: `0 0 ${n} 52`, preserveAspectRatio: "none", role: "img", "aria-label": "memory kept for backward, step by step",
    onclick: (event) => { const frame = svg.getBoundingClientRect(); goTo(Math.floor(((event.clientX - frame.left) / frame.width) * n)); } },
    make("path", { class: "area", d: `M0 50 ${points} L${n} 50 z` }),
    firstBackward > 0 ? make("line", { class: "turn", x1: firstBackward, x2: firstBackward, y1: 0, y2: 52 }) : "",
    make("line", { class: "now", id: "now", x1: 0, x2: 0, y1: 0, y2: 52 }));
  byId("strip").append(make("p", {}, make("span", { id: "live" }), make("span", {}, `kept for backward; at most ${bytes(steps.length ? peak : 0)}`)), svg);
}

function markStrip() {
  const now = byId("now");
  now.setAttribute("x1", state.step + 0.5);
  now.setAttribute("x2", state.step + 0.5);
  byId("live").textContent = steps.length ? `${bytes(steps[state.step][3])} after this step` : "";
}

// ---------------------------------------------------------------- the bar and the keys

function goTo(i) {
  if (!steps.length) return;
  const began = performance.now();
  state.step = Math.max(0, Math.min(steps.length - 1, i));
  hideTip();
  showPanel();
  markGraph();
  showCurrent();
  markStrip();
  markBar();
  document.body.offsetHeight;  // so that the time counts the layout, too
  state.paint = performance.now() - began;
  history.replaceState(null, "", `#${state.step}`);
}

// The next or previous operation or sum; the steps between are gradients of the same operation.
function goOperation(direction) {
  const same = (i) => steps[i] && steps[i][0] === steps[state.step][0] && steps[i][0] !== "s" && steps[i][1] === steps[state.step][1];
  let i = state.step;
  while (same(i)) i += direction;
  if (i === state.step) i += direction;
  goTo(i);
}

function play() {
  if (state.playing) { clearInterval(state.playing); state.playing = 0; } else {
    if (state.step >= steps.length - 1) goTo(Math.max(0, firstBackward));
    state.playing = setInterval(() => { if (state.step >= steps.length - 1) play(); else goTo(state.step + 1); }, 900);
  }
  markBar();
}

function markBar() {
  const backward = steps.length > 0 && steps[state.step][0] !== "f";
  byId("forward").setAttribute("aria-pressed", !backward);
  byId("backward").setAttribute("aria-pressed", backward);
  byId("play").textContent = state.playing ? "❚❚" : "▶ play";
  const phase = (step) => (step[0] !== "f") === backward;  // with several backward passes, those of one kind count together
  byId("count").textContent = steps.length ? `step ${steps.slice(0, state.step + 1).filter(phase).length} of ${steps.filter(phase).length}` : "no steps";
}

// Operations whose name, module or line has the words, those found by name or module first; Enter goes to the first.
function search(text) {
  const list = byId("found");
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const has = (whole) => words.every((word) => whole.toLowerCase().includes(word));
  const rank = (node, i) => (has(`${node.name} #${i + data.first} ${node.module}`) ? 0 : has(`${node.name} #${i + data.first} ${node.module} ${node.line} ${node.text}`) ? 1 : 2);
  const hits = !words.length ? [] : nodes.map((node, i) => [node, i, rank(node, i)]).filter((hit) => hit[2] < 2).sort((a, b) => a[2] - b[2]);
  list.replaceChildren(...hits.slice(0, 60).map(([node, i]) => make("li", { onmousedown: () => { pick(`n${i}`); closeSearch(); } }, `${node.name} #${i + data.first}  ${node.module}`)));
  list.hidden = !hits.length;
  list.dataset.first = hits.length ? hits[0][1] : "";
}
function closeSearch() { byId("found").hidden = true; byId("search").value = ""; byId("search").blur(); }

function setTheme(dark) {
  document.documentElement.classList.toggle("dark", dark);
  readPalette();
  byId("theme").textContent = dark ? "☀ light" : "☾ dark";
  showPanel();
}

function goToBad() {
  if (data.bad && data.bad.step !== null) goTo(data.bad.step);
}

function foldCurrent() {
  const step = steps[state.step];
  const key = step && (step[0] === "s" ? step[1] : `n${step[1]}`);
  if (!key || key[0] !== "n") return;
  const item = itemOf(key);
  if (item[0] === "g") { fold(Number(item.slice(1))); return; }
  const number = Number(key.slice(1));
  const around = groups.map((group, g) => [group, g]).filter(([group]) => group.first <= number && number <= group.last);
  if (around.length) fold(around[around.length - 1][1]);
}

const KEYS = {
  ArrowRight: ["the next step", () => goTo(state.step + 1)],
  ArrowLeft: ["the step before", () => goTo(state.step - 1)],
  ArrowDown: ["the next operation", () => goOperation(1)],
  ArrowUp: ["the operation before", () => goOperation(-1)],
  Home: ["the first step of forward", () => goTo(0)],
  End: ["the last step", () => goTo(steps.length - 1)],
  b: ["the first step of backward", () => goTo(Math.max(0, firstBackward))],
  " ": ["play, pause", play],
  "/": ["search for an operation, a module or a line", () => byId("search").focus()],
  n: ["the first value that is not finite", goToBad],
  f: ["fold or unfold the module of this step", foldCurrent],
  "+": ["zoom in", () => zoom(1 / 1.25)],
  "-": ["zoom out", () => zoom(1.25)],
  0: ["the whole graph", fit],
  t: ["light or dark", () => setTheme(!document.documentElement.classList.contains("dark"))],
  "?": ["this help", () => { byId("help").hidden = !byId("help").hidden; }],
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") { closeSearch(); byId("help").hidden = true; return; }
  if (event.target === byId("search")) {
    if (event.key === "Enter" && byId("found").dataset.first) { pick(`n${byId("found").dataset.first}`); closeSearch(); }
    return;
  }
  if (event.key === " " && event.target.tagName === "BUTTON") return;
  const action = KEYS[event.key];
  if (action) { event.preventDefault(); action[1](); }
}

function begin() {
  const button = (id, text, title, onclick, more = {}) => make("button", { id, title, onclick, ...more }, text);
  byId("app").append(
    make("header", {}, make("h1", { title: data.title }, data.title),
      make("span", { class: "set" }, button("forward", "Forward", "from the inputs to the loss", () => goTo(0)), button("backward", "Backward", "from the loss to the weights", () => goTo(Math.max(0, firstBackward)))),
      make("span", { class: "set" }, button("before", "←", "the step before (left arrow)", KEYS.ArrowLeft[1]), button("play", "▶ play", "play, pause (space)", play), button("next", "→", "the next step (right arrow)", KEYS.ArrowRight[1])),
      make("span", { id: "count" }),
      make("span", {}, make("input", { id: "search", placeholder: "search  /", "aria-label": "search", autocomplete: "off", oninput: (event) => search(event.target.value), onblur: () => { byId("found").hidden = true; } }), make("ul", { id: "found", hidden: "" })),
      data.bad ? button("bad", "first non-finite value", data.bad.text, goToBad) : "",
      make("span", { class: "push" }), button("theme", "", "light or dark (t)", KEYS.t[1]), button("asked", "?", "keys (?)", KEYS["?"][1])),
    make("section", { id: "graph", "aria-label": "the graph" }, make("svg"),
      make("div", { id: "zoom" }, button("in", "+", "zoom in", KEYS["+"][1]), button("out", "−", "zoom out", KEYS["-"][1]), button("whole", "⤢", "the whole graph (0)", fit))),
    make("main", { id: "panel", tabindex: "0", "aria-live": "polite" }),
    make("footer", { id: "strip" }));
  document.body.append(make("div", { id: "tip", class: "mono", hidden: "" }),
    make("div", { id: "help", hidden: "", role: "dialog" }, make("h3", {}, "keys"), make("dl", { class: "facts" },
      ...Object.entries(KEYS).flatMap(([key, [what]]) => [make("dt", {}, make("kbd", {}, key === " " ? "space" : key.replace("Arrow", ""))), make("dd", {}, what)])),
      make("p", { class: "note" }, "Drag and wheel move and zoom the graph. A click on a module unfolds it, a click on a frame's name folds it. The colours of arrays: red is positive, blue negative, the background zero. Hover to read a value.")));
  byId("help").addEventListener("click", () => { byId("help").hidden = true; });
  document.addEventListener("keydown", onKey);
  watchPointer(byId("graph").querySelector("svg"));
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => setTheme(event.matches));
  drawStrip();
  foldAtFirst();
  drawGraph();
  fit();
  goTo(location.hash ? Number(location.hash.slice(1)) || 0 : state.step);
}

begin();
