// Which part of the graph is seen: fitting, zooming, keeping the current box in view.

const LEAST = 0.9, MOST = 1.3;  // pixels for a unit of the drawing: the least at which all words can be read, the most that is used

function setView(view) {
  state.view = view;
  byId("graph").querySelector("svg").setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
}

const panelOfGraph = () => byId("graph").getBoundingClientRect();

// The scale at which the whole graph is seen.
function scaleToFit() {
  const { width, height } = panelOfGraph();
  return Math.min(width / graph.bounds.width, height / graph.bounds.height);
}

// The whole graph if its words can be read then (least: the scale for that), else a part of it.
function fit(least = LEAST) {
  const panel = panelOfGraph();
  const scale = Math.max(least, Math.min(MOST, scaleToFit()));
  const [width, height] = [panel.width / scale, panel.height / scale];
  const { bounds } = graph;
  const now = graph.items.get(itemOf(keyOf(steps[state.step])));
  const middle = width < bounds.width && now ? now.x + WIDE / 2 : bounds.x + bounds.width / 2;
  setView({ x: middle - width / 2, y: height >= bounds.height ? bounds.y - Math.min(20, (height - bounds.height) / 2) : bounds.y, width, height });
  showCurrent();
}

function zoom(factor, px = 0.5, py = 0.5) {
  const { x, y, width, height } = state.view;
  setView({ x: x + width * px * (1 - factor), y: y + height * py * (1 - factor), width: width * factor, height: height * factor });
}

// The whole graph if that can be read, else the box of an operation in the middle.
function lookAt(key) {
  if (scaleToFit() >= LEAST) { fit(); return; }
  const item = graph.items.get(itemOf(key));
  if (!item) return;
  const panel = panelOfGraph();
  const scale = Math.max(LEAST, Math.min(MOST, panel.width / state.view.width));
  const [width, height] = [panel.width / scale, panel.height / scale];
  setView({ x: item.x + WIDE / 2 - width / 2, y: item.y + HIGH / 2 - height / 2, width, height });
}

// Moves the graph if a box of the current step lies outside of what is seen.
function showCurrent() {
  const lit = litBy(steps[state.step]);
  const now = graph.items.get(lit.now);
  if (!now || !state.view) return;
  const others = [lit.target, ...lit.givers].map((key) => graph.items.get(key)).filter(Boolean);
  if (lit.beside) others.push({ x: besideOf(now), y: now.y });
  let { x, y, width, height } = state.view;
  const edge = 12;
  for (const item of [...others, now]) {  // the current one last: it counts most
    x = Math.min(Math.max(x, item.x + WIDE + edge - width), item.x - edge);
    y = Math.min(Math.max(y, item.y + HIGH + 4 * edge - height), item.y - edge);  // above the buttons
  }
  if (x !== state.view.x || y !== state.view.y) setView({ x, y, width, height });
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
