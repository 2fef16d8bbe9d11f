// Arrays on the page: small ones as tables of numbers, others as heat maps; values are read by pointer or by keys.

let palette = {};

function readPalette() {
  const style = getComputedStyle(document.documentElement);
  const parse = (name) => style.getPropertyValue(name).trim().match(/\w\w/g).slice(0, 3).map((h) => parseInt(h, 16));
  palette = { zero: parse("--zero"), high: parse("--high"), low: parse("--low"), bad: parse("--bad"), gap: parse("--back") };
}

// Zero is the background, the largest magnitude the full colour.
function colourOf(x, top) {
  if (!Number.isFinite(x)) return palette.bad;
  const t = top ? Math.min(1, Math.abs(x) / top) ** 0.8 : 0;
  const end = x < 0 ? palette.low : palette.high;
  return palette.zero.map((z, i) => Math.round(z + (end[i] - z) * t));
}

// Black or white, whichever is easier to read on a colour.
function inkOn(colour) {
  const [red, green, blue] = colour.map((c) => (c <= 10 ? c / 3295 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
}

const largest = (array) => Math.max(Math.abs(array.low ?? 0), Math.abs(array.high ?? 0));

// The values of an array, decoded when they are first looked at.
function valuesOf(array) {
  if (array.decoded === undefined) {
    array.decoded = null;
    if (array.values !== undefined) {
      const raw = Uint8Array.from(atob(array.values), (c) => c.charCodeAt(0));
      array.decoded = array.type === "f8" ? new Float64Array(raw.buffer) : new Float32Array(raw.buffer);
    }
  }
  return array.decoded;
}

// The shortest text that stands for exactly this number of the array.
function exact(array, i) {
  const x = valuesOf(array)[i];
  if (array.dtype === "bool") return x ? "True" : "False";
  if (array.type === "f8" || !Number.isFinite(x) || Number.isInteger(x)) return String(x);
  for (let digits = 1; digits < 10; digits++) {
    const text = x.toPrecision(digits);
    if (Math.fround(Number(text)) === x) return String(Number(text));
  }
  return String(x);
}

// How an array lies on a plane: rows, columns, and for each place the number of the element there (-1: a gap).
function planeOf(shape, isFilter, turned) {
  const size = shape.reduce((a, b) => a * b, 1);
  let rows, columns, at;
  if (shape.length === 4 && isFilter && shape[0] * shape[1] === 1) shape = shape.slice(2);
  if (shape.length < 2) {
    columns = Math.max(1, Math.min(size, 32));
    rows = Math.max(1, Math.ceil(size / columns));
    at = (r, c) => (r * columns + c < size ? r * columns + c : -1);
  } else if (shape.length === 2) {
    [rows, columns] = shape;
    at = (r, c) => r * columns + c;
  } else if (shape.length === 4) {
    // images (N, H, W, C) as tiles, an image in each row and a channel in each column; filters (R, S, C, K) likewise
    const [a, b, c, d] = shape;
    const [down, across, high, wide] = isFilter ? [c, d, a, b] : [a, d, b, c];
    rows = down * (high + 1) - 1;
    columns = across * (wide + 1) - 1;
    at = (r, q) => {
      const [i, y, j, x] = [Math.floor(r / (high + 1)), r % (high + 1), Math.floor(q / (wide + 1)), q % (wide + 1)];
      if (y === high || x === wide) return -1;
      return isFilter ? ((y * wide + x) * down + i) * across + j : ((i * high + y) * wide + x) * across + j;
    };
  } else {
    const high = shape[shape.length - 2];
    columns = shape[shape.length - 1];
    const parts = columns * high ? size / columns / high : 0;
    rows = Math.max(1, parts * (high + 1) - 1);
    at = (r, c) => (r % (high + 1) === high ? -1 : (Math.floor(r / (high + 1)) * high + (r % (high + 1))) * columns + c);
  }
  if (turned) return { rows: columns, columns: rows, at: (r, c) => at(c, r) };
  return { rows, columns, at };
}

// 1, 2 of X[1, 2]: where an element stands in the whole array.
function placeOf(array, i) {
  const at = [];
  for (let k = array.part.length - 1; k >= 0; k--) {
    at.unshift(i % array.part[k]);
    i = Math.floor(i / array.part[k]);
  }
  if (!array.index) return at.join(", ");
  let k = 0;
  return array.index.split(", ").map((part) => (part[0] === ":" ? at[k++] * Number(part.slice(2) || 1) : part)).join(", ");
}

// ---------------------------------------------------------------- views

// A picture of an array, or null. options: turned, out (made in this step), note (words or elements below the name), top (the
// magnitude with the full colour). The figure's `view` is what reading needs.
function arrayView(name, number, options = {}) {
  if (number === null || number === undefined) return null;
  const array = arrays[number];
  const values = valuesOf(array);
  const turned = options.turned && array.part && array.part.length === 2;
  const shown = name + (turned ? "ᵀ" : "");
  const head = make("figcaption", {}, make("b", {}, shown), ` ${written(turned ? [...array.shape].reverse() : array.shape)} ${array.dtype}`);
  const figure = make("figure", { class: `array${options.out ? " out" : ""}`, "data-name": name, "data-array": number }, head);
  if (options.note) head.append(make("span", { class: "note" }, ...[options.note].flat()));
  if (values) {
    const plane = planeOf(array.part, /^(L_)?W/.test(name), turned);
    const top = options.top ?? largest(array);
    const small = plane.columns <= 8 && plane.rows <= 10;
    const body = (small ? numbers : heatMap)(array, values, plane, top);
    body.setAttribute("tabindex", "0");
    body.setAttribute("aria-label", `${shown}, ${plane.rows} rows, ${plane.columns} columns: arrow keys read the values`);
    figure.view = { name, array, values, plane, turned, figure, body, row: -1, column: -1 };
    watch(figure.view);
    figure.append(body);
    if (!small) figure.append(legend(top));
    if (array.index) head.append(make("span", { class: "note" }, `a part is shown: ${name}[${array.index}]`));
  }
  const stats = make("div", { class: "stats" }, `|${brief(array.norm)}|   min ${brief(array.low)}   max ${brief(array.high)}`);
  if (array.bad) stats.append(make("span", { class: "nan" }, `   ${array.bad} not finite`));
  figure.append(stats);
  return figure;
}

function numbers(array, values, plane, top) {
  const table = make("table", { class: "values mono" });
  for (let r = 0; r < plane.rows; r++) {
    const row = make("tr");
    for (let c = 0; c < plane.columns; c++) {
      const i = plane.at(r, c);
      if (i < 0) { row.append(make("td", { style: "border:0" })); continue; }
      const colour = colourOf(values[i], top);
      const plain = array.dtype === "bool" || /int/.test(array.dtype) || !Number.isFinite(values[i]);
      row.append(make("td", { style: `background:rgb(${colour});color:${inkOn(colour)}`, "data-value": exact(array, i) }, plain ? exact(array, i) : brief(values[i])));
    }
    table.append(row);
  }
  return table;
}

function heatMap(array, values, plane, top) {
  const { rows, columns, at } = plane;
  const cell = Math.max(columns <= 150 ? 2 : 1, Math.min(14, Math.floor(250 / columns), Math.floor(280 / rows)));
  const style = `width:${Math.min(columns * cell, 560)}px;height:${Math.min(rows * cell, 300)}px`;
  const canvas = make("canvas", { width: columns, height: rows, role: "img", style });
  paint(canvas, (r, c) => (at(r, c) < 0 ? palette.gap : colourOf(values[at(r, c)], top)));
  return canvas;
}

function paint(canvas, colourAt) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let r = 0, k = 0; r < canvas.height; r++) {
    for (let c = 0; c < canvas.width; c++, k += 4) image.data.set([...colourAt(r, c), 255], k);
  }
  context.putImageData(image, 0, 0);
}

// The scale of colours below a heat map.
function legend(top) {
  const canvas = make("canvas", { width: 65, height: 1, "aria-hidden": "true" });
  paint(canvas, (r, c) => colourOf((c / 32 - 1) * (top || 1), top || 1));
  return make("div", { class: "legend" }, `−${brief(top)}`, canvas, brief(top));
}

// ---------------------------------------------------------------- reading

// Reads values under the pointer, or with the arrow keys where a picture has the focus.
function watch(view) {
  const { body, plane } = view;
  body.addEventListener("pointermove", (event) => {
    const cell = event.target.closest("td");
    if (cell) { read(view, cell.parentNode.rowIndex, cell.cellIndex); return; }
    const { left, top, width, height } = body.getBoundingClientRect();
    if (body.tagName !== "CANVAS") return;
    const within = (at, count) => Math.min(count - 1, Math.max(0, Math.floor(at * count)));
    read(view, within((event.clientY - top - 1) / (height - 2), plane.rows), within((event.clientX - left - 1) / (width - 2), plane.columns));
  });
  body.addEventListener("pointerleave", stopReading);
  body.addEventListener("focus", () => { if (body.matches(":focus-visible")) read(view, Math.max(0, view.row), Math.max(0, view.column)); });
  body.addEventListener("blur", stopReading);
  body.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (event.key === "Escape") byId("panel").focus();
    if (!move) return;
    event.preventDefault();
    event.stopPropagation();
    const within = (at, count) => Math.min(count - 1, Math.max(0, at));
    let [r, c] = [view.row, view.column];
    do [r, c] = [r + move[0], c + move[1]]; while (r >= 0 && c >= 0 && r < plane.rows && c < plane.columns && plane.at(r, c) < 0);
    read(view, within(r, plane.rows), within(c, plane.columns));
  });
}

// Shows an element, what it was made from, and the elements at the same place of arrays beside it.
function read(view, r, c) {
  stopReading();
  const i = view.plane.at(r, c);
  [view.row, view.column] = [r, c];
  if (i < 0) return;
  const lines = [`${view.name}[${placeOf(view.array, i)}] = ${exact(view.array, i)}`];
  mark(view, r, c);
  const beside = [...view.figure.parentNode.querySelectorAll("figure")].map((figure) => figure.view).filter((other) => other && other !== view);
  if (view.madeOf) lines.push(...view.madeOf(r, c));
  else {
    for (const other of beside) {
      const alike = other.array.shape.join() === view.array.shape.join() && other.array.index === view.array.index && other.plane.rows === view.plane.rows;
      if (!alike || other.madeOf || other.turned) continue;
      mark(other, r, c);
      lines.push(`${other.name}[${placeOf(other.array, i)}] = ${exact(other.array, i)}`);
    }
  }
  const cell = frameOfCells(view, r, c);
  const { top, bottom } = view.figure.parentNode.getBoundingClientRect();
  const several = lines.length > 1;  // below all arrays, so that they hide none
  tip(several ? { ...cell, top, bottom } : cell, lines.join("\n"), several);
}

function stopReading() {
  for (const shade of document.querySelectorAll(".shade")) shade.remove();
  byId("tip").hidden = true;
}

// Where rows and columns of a view lie on the screen.
function frameOfCells(view, r, c, lastRow = r, lastColumn = c) {
  if (view.body.tagName === "TABLE") {
    const [a, b] = [view.body.rows[r].cells[c], view.body.rows[lastRow].cells[lastColumn]].map((cell) => cell.getBoundingClientRect());
    return { left: a.left, top: a.top, right: b.right, bottom: b.bottom };
  }
  const { left, top, width, height } = view.body.getBoundingClientRect();
  const [x, y] = [(c_) => left + 1 + (c_ / view.plane.columns) * (width - 2), (r_) => top + 1 + (r_ / view.plane.rows) * (height - 2)];
  return { left: x(c), top: y(r), right: x(lastColumn + 1), bottom: y(lastRow + 1) };
}

// Draws a frame around cells of a view.
function mark(view, ...cells) {
  const { left, top, right, bottom } = frameOfCells(view, ...cells);
  const home = view.figure.getBoundingClientRect();
  view.figure.append(make("div", { class: "shade", style: `left:${left - home.left - 2}px;top:${top - home.top - 2}px;width:${right - left + 4}px;height:${bottom - top + 4}px` }));
}

// Words beside a place on the screen: above it if there is room, else below; or the other way round.
function tip({ left, top, right, bottom }, text, below = false) {
  const words = byId("tip");
  words.textContent = text;
  words.hidden = false;
  words.style.left = `${Math.max(4, Math.min(right + 8, innerWidth - words.offsetWidth - 8))}px`;
  const [over, under] = [top - words.offsetHeight - 8, bottom + 4];
  const fits = below ? under + words.offsetHeight < innerHeight : over < 4;
  words.style.top = `${fits ? under : Math.max(4, over)}px`;
}
