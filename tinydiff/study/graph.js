// The graph: which modules are folded to one box, where boxes stand, arrows, what is lit.

const WIDE = 140, HIGH = 40, GAP_X = 16, GAP_Y = 26, LABEL = 16;
const graph = { items: new Map(), arrows: new Map(), of: new Map() };

// The groups (runs of operations in one module) around each operation, the outermost first.
const around = nodes.map(() => []);
groups.forEach((group, g) => { for (let i = group.first; i <= group.last; i++) around[i].push(g); });
const levelOf = (g) => around[groups[g].first].indexOf(g);

// ---------------------------------------------------------------- folding

// The box that stands for an operation or a leaf: itself, or the outermost folded module around it.
function itemOf(key) {
  if (!key || key[0] !== "n") return key;
  const folded = around[numberOf(key)].find((g) => !state.open.has(g));
  return folded === undefined ? key : `g${folded}`;
}

// Opens as many levels of modules as leave the whole graph readable in its panel.
function openAtFirst() {
  for (let level = Math.max(0, ...around.map((chain) => chain.length)); level >= 0; level--) {
    state.open = new Set([...groups.keys()].filter((g) => levelOf(g) < level));
    arrange();
    if (scaleToFit() >= LEAST) return;
  }
}

function fold(g) {
  if (state.open.has(g)) state.open.delete(g); else state.open.add(g);
  drawGraph();
  lookAt(state.open.has(g) ? `n${groups[g].first}` : `g${g}`);
  byId("graph").querySelector(`[data-group="${g}"]`)?.focus({ preventScroll: true });
}

// Unfolds the modules around an operation.
function reveal(key) {
  const hidden = key && key[0] === "n" ? around[numberOf(key)].filter((g) => !state.open.has(g)) : [];
  for (const g of hidden) state.open.add(g);
  if (hidden.length) drawGraph();
  lookAt(key);
}

// Folds or unfolds the module of the current step.
function foldCurrent() {
  const item = itemOf(keyOf(steps[state.step]));
  if (!item || item[0] === "l") return;
  const g = item[0] === "g" ? numberOf(item) : around[numberOf(item)].at(-1);
  if (g !== undefined) fold(g);
}

function foldAll() {
  if (state.open.size === groups.length) openAtFirst(); else state.open = new Set(groups.keys());
  drawGraph();
  fit();
}

// ---------------------------------------------------------------- places

// Finds the boxes to draw and where they stand. Rows follow from the order of computation: a box stands below all that it was
// computed from. The order within a row is that of the layout that came with the page.
function arrange() {
  const { items, of } = graph;
  items.clear();
  for (const box of boxes) {
    const key = itemOf(box.k);
    of.set(box.k, key);
    if (!items.has(key)) items.set(key, { key, seeds: [], layer: 0, above: new Set(), below: new Set(), isLeaf: key[0] === "l" });
    items.get(key).seeds.push(box.x);
  }
  for (const [a, b] of arrows) {
    const [from, to] = [items.get(of.get(boxes[a].k)), items.get(of.get(boxes[b].k))];
    if (from !== to) { from.below.add(to); to.above.add(from); }
  }
  for (const [key, item] of items) {  // weights that a folded module alone uses are folded with it
    const [user] = item.below;
    if (item.isLeaf && leaves[numberOf(key)].weight && item.below.size === 1 && user.key[0] === "g") { items.delete(key); user.above.delete(item); }
  }
  const last = (item) => (item.isLeaf ? -1 : item.key[0] === "g" ? groups[numberOf(item.key)].last : numberOf(item.key));
  const inOrder = [...items.values()].sort((a, b) => last(a) - last(b));
  for (const item of inOrder) item.layer = item.isLeaf ? 0 : Math.max(1, ...[...item.above].map((other) => other.layer + 1));
  for (const item of inOrder.reverse()) if (item.below.size) item.layer = Math.min(...[...item.below].map((other) => other.layer)) - 1;  // as low as it can
  graph.rows = placeRows(inOrder);
  graph.lanes = new Map();
  graph.bounds = boundsOf();
}

// Gives each box its x and y; returns the rows of boxes from top to bottom.
function placeRows(items) {
  const rows = [];
  for (const item of items) (rows[item.layer] ??= []).push(item);
  const used = rows.filter(Boolean);
  const starts = new Map();  // how many frames begin above an item
  for (const g of state.open) {
    const first = graph.items.get(itemOf(`n${groups[g].first}`));
    if (first && framed(g)) starts.set(first, (starts.get(first) ?? 0) + 1);
  }
  let y = 0;
  for (const [number, row] of used.entries()) {
    y += LABEL * Math.max(0, ...row.map((item) => starts.get(item) ?? 0));
    for (const item of row) [item.y, item.row, item.seed] = [y, number, mean(item.seeds)];
    y += HIGH + GAP_Y;
    row.sort((a, b) => a.seed - b.seed);
    const inner = row.filter((item) => !item.isLeaf);
    for (const item of inner) {
      const above = [...item.above].filter((other) => !other.isLeaf);
      const nearest = Math.max(...above.map((other) => other.layer));
      item.x = above.length ? mean(above.filter((other) => other.layer === nearest).map((other) => other.x)) : null;
    }
    const middle = mean(inner.filter((item) => item.x !== null).map((item) => item.x));
    for (const item of inner) item.x ??= middle;
    spread(inner);
  }
  for (const row of used.slice(0, -1).reverse()) {  // a box with one follower stands above it
    const inner = row.filter((item) => !item.isLeaf);
    for (const item of inner) if (item.below.size === 1 && [...item.below][0].above.size > 1 && inner.length > 1) item.x = (item.x + [...item.below][0].x) / 2;
    spread(inner);
  }
  for (const row of used) placeLeaves(row);
  return used;
}

// Keeps boxes of a row apart, as near to their places as that allows.
function spread(row) {
  const wanted = mean(row.map((item) => item.x));
  for (let i = 1; i < row.length; i++) row[i].x = Math.max(row[i].x, row[i - 1].x + WIDE + GAP_X);
  const shift = wanted - mean(row.map((item) => item.x));
  for (const item of row) item.x += shift;
}

// Weights and data stand beside the operations of their row, left and right in turn.
function placeLeaves(row) {
  const step = WIDE + GAP_X;
  const [own, inner] = [row.filter((item) => item.isLeaf), row.filter((item) => !item.isLeaf)];
  if (!own.length) return;
  const goal = mean(own.map((item) => [...item.below][0]?.x ?? 0));
  if (!inner.length) { own.forEach((item, i) => { item.x = goal + (i - (own.length - 1) / 2) * step; }); return; }
  let [left, right] = [Math.min(...inner.map((item) => item.x)), Math.max(...inner.map((item) => item.x))];
  for (const item of own) {
    if (goal - left + step <= right + step - goal) item.x = left -= step; else item.x = right += step;
  }
}

function boundsOf() {
  const items = [...graph.items.values()];
  if (!items.length) return { x: 0, y: 0, width: 400, height: 100 };
  const xs = items.map((item) => item.x), ys = items.map((item) => item.y);
  const [left, right] = [Math.min(...xs), Math.max(...xs, ...[...graph.lanes.values()].map((x) => x - WIDE)) + WIDE];
  const [top, bottom] = [Math.min(...ys) - LABEL * 2, Math.max(...ys) + HIGH];
  return { x: left - 16, y: top + 8, width: right - left + 32, height: bottom - top + 40 };
}

// ---------------------------------------------------------------- drawing

// Draws the graph anew, after something was folded or unfolded.
function drawGraph() {
  arrange();
  const scene = make("g", { id: "scene" });
  for (const g of state.open) if (framed(g)) scene.append(frameOf(g));
  const pairs = [...graph.items.values()].flatMap((from) => [...from.below].map((to) => [from, to]));
  graph.arrows.clear();
  for (const [from, to] of pairs.sort(([a, b], [c, d]) => b.y - a.y - (d.y - c.y))) {
    const path = arrow(from, to);
    graph.arrows.set(`${from.key}>${to.key}`, path);
    scene.append(path);
  }
  for (const item of graph.items.values()) scene.append(drawItem(item));
  graph.bounds = boundsOf();
  byId("graph").querySelector("svg").replaceChildren(make("defs", {}, marker("tip-of-arrow", "var(--node-line)", 8), marker("tip-now", "var(--accent)", 12)), scene);
  markGraph();
}

const marker = (id, fill, size) => make("marker", { id, markerUnits: "userSpaceOnUse", markerWidth: size, markerHeight: size, refX: size - 1, refY: size / 2, orient: "auto-start-reverse" },
  make("path", { d: `M0 0 L${size} ${size / 2} L0 ${size} z`, fill }));

// An arrow goes straight down where nothing is in its way, else in a lane at the right of what is.
function arrow(from, to) {
  const { lanes } = graph;
  const [xa, ya, xb, yb] = [from.x + WIDE / 2, from.y + HIGH, to.x + WIDE / 2, to.y - 2];
  const between = graph.rows.slice(from.row + 1, to.row);
  const crosses = between.some((row) => {
    const x = xa + ((xb - xa) * (row[0].y - from.y)) / (to.y - from.y);
    return row.some((item) => item.x - 10 < x && x < item.x + WIDE + 10);
  });
  const bend = Math.max(14, (yb - ya) / 2);
  if (!crosses) return make("path", { class: "arrow", d: `M${xa} ${ya} C${xa} ${ya + bend} ${xb} ${yb - bend} ${xb} ${yb}` });
  const lane = Math.max(...between.map((row) => lanes.get(row) ?? Math.max(...row.map((item) => item.x + WIDE)))) + 14;
  for (const row of between) lanes.set(row, lane);
  const [first, last] = [between[0][0].y, between.at(-1)[0].y + HIGH];
  return make("path", { class: "arrow", d: `M${xa} ${ya} C${xa} ${ya + 22} ${lane} ${first - 22} ${lane} ${first} L${lane} ${last} C${lane} ${last + 22} ${xb} ${yb - 22} ${xb} ${yb}` });
}

function drawItem(item) {
  const number = numberOf(item.key);
  let title, small, type = "", more = {};
  if (item.key[0] === "g") {
    const { first, last, path } = groups[number];
    const saved = nodes.slice(first, last + 1).reduce((sum, node) => sum + node.saved, 0);
    [title, small, type] = [relative(number), `${last - first + 1} ops, keeps ${bytes(saved)}`, "module"];
    more = { tabindex: 0, role: "button", "data-group": number, "aria-expanded": "false", "aria-label": `module ${path}: unfold`, onkeydown: onEnter(() => fold(number)) };
  } else if (item.isLeaf) {
    const leaf = leaves[number];
    [title, small, type] = [leaf.name || "unnamed array", written(leaf.shape), leaf.weight ? "weight" : "leaf"];
  } else {
    const { name, module, outputs } = nodes[number];
    const shape = outputs.length ? written(arrays[outputs[0]].shape) : "";
    const inside = around[number].length ? module.slice(groups[around[number].at(-1)].path.length + 1) : module;  // its frame has the rest
    [title, small] = [titleOf(number), `${inside ? `${short(inside, Math.max(3, 23 - shape.length))}  ` : ""}${shape}`];
  }
  item.title = make("text", { x: WIDE / 2, y: 17 }, short(title, item.isLeaf ? 17 : 19));
  item.small = make("text", { class: "small", x: WIDE / 2, y: 32 }, short(small, 25));
  item.words = item.small.textContent;
  item.drawn = make("g", { class: `box ${type}`, transform: `translate(${item.x} ${item.y})`, "data-key": item.key, onclick: () => pick(item.key), ...more },
    make("title", {}, fullTitle(item.key)), make("rect", { width: WIDE, height: HIGH, rx: item.isLeaf ? HIGH / 2 : 6 }), item.title, item.small);
  item.type = type;
  return item.drawn;
}

function fullTitle(key) {
  const number = numberOf(key);
  if (key[0] === "g") return `${groups[number].path}: click to unfold`;
  if (key[0] === "l") return nameOf(key);
  return [titleOf(number), nodes[number].module, nodes[number].line].filter(Boolean).join("  ");
}

// ---------------------------------------------------------------- frames

// The path of a module within the frame around it.
function relative(g) {
  const outer = around[groups[g].first][levelOf(g) - 1];
  const { path } = groups[g];
  if (outer === undefined) return path;
  const inner = path.slice(groups[outer].path.length + 1);
  return /^\d/.test(inner) ? path.slice(groups[outer].path.lastIndexOf(".") + 1) : inner;  // blocks.0, not 0
}

// Whether an unfolded module has a frame: nothing around it is folded.
const framed = (g) => around[groups[g].first].slice(0, levelOf(g)).every((outer) => state.open.has(outer));

// The frame around an unfolded module, with its name; a click on the name folds it.
function frameOf(g) {
  const { first, last, path } = groups[g];
  const inside = new Set();
  for (let i = first; i <= last; i++) inside.add(graph.items.get(itemOf(`n${i}`)));
  const [xs, ys] = [[...inside].map((item) => item.x), [...inside].map((item) => item.y)];
  const deeper = new Set([...state.open].filter((h) => framed(h) && groups[h].first === first && levelOf(h) > levelOf(g))).size;
  const depth = Math.max(0, ...around.slice(first, last + 1).map((chain) => chain.filter((h) => state.open.has(h)).length)) - levelOf(g);
  const side = 4 + 6 * depth;
  const [left, top] = [Math.min(...xs) - side, Math.min(...ys) - LABEL * (deeper + 1) - 3];
  const [right, bottom] = [Math.max(...xs) + WIDE + side, Math.max(...ys) + HIGH + 2 + 3 * depth];
  return make("g", { class: "frame" }, make("rect", { x: left, y: top, width: right - left, height: bottom - top, rx: 8 }),
    make("text", { x: left + 6, y: top + 12, "data-group": g, tabindex: 0, role: "button", "aria-expanded": "true", "aria-label": `module ${path}: fold`,
      onclick: () => fold(g), onkeydown: onEnter(() => fold(g)) }, `▾ ${relative(g)}`));
}

// ---------------------------------------------------------------- what is lit

// A click on a box: unfolds a module, goes to the backward step of an operation or of what made a leaf's gradient.
function pick(key) {
  if (key[0] === "g") { fold(numberOf(key)); return; }
  const number = numberOf(key);
  let found = key[0] === "n" ? backwardOf(number) : nearest((step) => (step.kind === "sum" ? step.where === key : step.kind === "gradient" && nodes[step.node].from[step.gradient] === key));
  if (found < 0) found = nearest((step) => step.kind === "forward" && (key[0] === "n" ? step.node === number : nodes[step.node].from.includes(key)));
  if (found >= 0) goTo(found);
}

// Boxes and arrows of the current step. now: where it stands, target: where its gradient goes (beside: a weight
// that the graph has no box for), givers: whose gradients meet.
function litBy(step) {
  const lit = { now: itemOf(keyOf(step)), target: null, givers: new Set(), arrows: new Set(), beside: false };
  if (!step) return lit;
  if (step.kind === "gradient") {
    lit.target = itemOf(nodes[step.node].from[step.gradient]);
    if (lit.target) lit.arrows.add(`${lit.target}>${lit.now}`);
    lit.beside = Boolean(lit.target) && !graph.items.has(lit.target);
  } else if (step.kind === "sum") {
    for (const [number] of step.givers.filter(Boolean)) lit.givers.add(itemOf(`n${number}`));
    for (const giver of lit.givers) lit.arrows.add(`${lit.now}>${giver}`);
  } else for (const key of nodes[step.node].from) lit.arrows.add(`${itemOf(key)}>${lit.now}`);
  return lit;
}

// Classes of boxes and arrows for the current step; nothing is made anew.
function markGraph() {
  const step = steps[state.step];
  const lit = litBy(step);
  const backward = step && step.kind !== "forward";
  const done = new Set();
  for (let i = backward ? firstBackward : 0; i < state.step; i++) if (steps[i].kind === (backward ? "gradient" : "forward")) done.add(itemOf(`n${steps[i].node}`));
  const wrong = data.bad && itemOf(keyOf(steps[data.bad.step]));
  for (const [key, item] of graph.items) {
    const text = `box ${item.type}${done.has(key) ? " done" : ""}${lit.target === key ? " target" : ""}${lit.givers.has(key) ? " giver" : ""}${lit.now === key ? " now" : ""}${wrong === key ? " bad" : ""}`;
    if (item.looks !== text) item.drawn.setAttribute("class", item.looks = text);
    const words = key[0] === "g" && lit.now === key ? short(`▸ ${nameOf(keyOf(step))}`, 25) : item.words;
    if (item.said !== words) item.small.textContent = item.said = words;
  }
  showWeight(lit);
  for (const [id, path] of graph.arrows) {
    const text = !lit.arrows.has(id) ? "arrow" : backward ? "arrow now back" : "arrow now";
    if (path.getAttribute("class") !== text) path.setAttribute("class", text);
  }
}

// Weights of large graphs are not drawn; the one whose gradient this step makes stands beside its operation.
function showWeight(lit) {
  byId("weight")?.remove();
  const now = graph.items.get(lit.now);
  if (!lit.beside) return;
  const leaf = leaves[numberOf(lit.target)];
  const x = besideOf(now);
  const [from, to] = x < now.x ? [now.x, x + WIDE] : [now.x + WIDE, x];
  byId("scene").append(make("g", { id: "weight" }, make("path", { class: "arrow now", d: `M${from} ${now.y + HIGH / 2} L${to} ${now.y + HIGH / 2}` }),
    make("g", { class: `box target ${leaf.weight ? "weight" : "leaf"}`, transform: `translate(${x} ${now.y})` }, make("title", {}, nameOf(lit.target)),
      make("rect", { width: WIDE, height: HIGH, rx: HIGH / 2 }), make("text", { x: WIDE / 2, y: 17 }, short(leaf.name || "unnamed array", 17)), make("text", { class: "small", x: WIDE / 2, y: 32 }, written(leaf.shape)))));
}

// A free place at the left or the right of a box.
function besideOf(now) {
  const row = graph.rows[now.row];
  const free = (x) => row.every((item) => item.x + WIDE < x || x + WIDE < item.x);
  return [now.x - WIDE - 2 * GAP_X, now.x + WIDE + 2 * GAP_X].find(free) ?? now.x - WIDE - 2 * GAP_X;
}
