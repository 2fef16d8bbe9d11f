// The page of a trace: a graph on the left, the current step on the right, memory below.
// A step is ["f" | "b", operation, gradient, live bytes] or ["s", where, output, live bytes, first, second, total, from, parts],
// where the parts are [operation, input] of each gradient in the sum, the second one last; null for one from before.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { nodes, leaves, steps, boxes, arrows, groups, arrays, rules } = data;
const byId = (id) => document.getElementById(id);
const firstBackward = steps.findIndex((step) => step[0] !== "f");
const state = { step: firstBackward < 0 ? 0 : firstBackward, folded: new Set(), playing: 0, view: null, paint: 0 };

// ---------------------------------------------------------------- elements

// Makes an element. Texts become text, never HTML.
function make(tag, attributes = {}, ...children) {
  const drawn = ["svg", "g", "rect", "text", "path", "line", "title", "defs", "marker"].includes(tag);
  const element = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

const written = (shape) => `(${shape.join(", ")})`;
const brief = (x) => (typeof x === "string" ? x : x === null ? "–" : x === 0 ? "0" : Math.abs(x) >= 1e5 || Math.abs(x) < 1e-3 ? x.toExponential(2) : x.toPrecision(3));

function bytes(n) {
  for (const unit of ["B", "KB", "MB"]) {
    if (n < 1000) return `${Number(n.toPrecision(3))} ${unit}`;
    n /= 1000;
  }
  return `${Number(n.toPrecision(3))} GB`;
}

function nameOf(key) {
  if (key === null) return "a number or an array";
  if (key[0] === "n") return `${nodes[key.slice(1)].name} #${Number(key.slice(1)) + data.first}`;
  const leaf = leaves[key.slice(1)];
  return `${leaf.weight ? "weight " : ""}${leaf.name || "array"} ${written(leaf.shape)}`;
}

// ---------------------------------------------------------------- arrays

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

// X[1, 2]: where an element stands in the whole array.
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

let palette = {};
function readPalette() {
  const style = getComputedStyle(document.documentElement);
  const parse = (name) => style.getPropertyValue(name).trim().match(/\w\w/g).slice(0, 3).map((h) => parseInt(h, 16));
  palette = { zero: parse("--zero"), high: parse("--high"), low: parse("--low"), bad: parse("--bad"), gap: parse("--card") };
}

// Zero is the background, the largest magnitude the full colour.
function colourOf(x, top) {
  if (!Number.isFinite(x)) return palette.bad;
  const t = top ? Math.min(1, Math.abs(x) / top) ** 0.8 : 0;
  const end = x < 0 ? palette.low : palette.high;
  return palette.zero.map((z, i) => Math.round(z + (end[i] - z) * t));
}

const largest = (array) => Math.max(Math.abs(array.low ?? 0), Math.abs(array.high ?? 0));

// A picture of an array: numbers if it is small, else a heat map. options: turned, out (made in this step), note, top (the
// magnitude with the full colour).
function arrayView(name, number, options = {}) {
  if (number === null || number === undefined) return null;
  const array = arrays[number];
  const values = valuesOf(array);
  const turned = options.turned && array.part && array.part.length === 2;
  const head = make("figcaption", {}, make("b", {}, name + (turned ? "ᵀ" : "")), ` ${written(turned ? [...array.shape].reverse() : array.shape)} ${array.dtype}`);
  const figure = make("figure", { class: `array${options.out ? " out" : ""}`, "data-name": name, "data-array": number }, head);
  if (options.note) head.append(` ${options.note}`);
  if (values) {
    const plane = planeOf(array.part, /^(L_)?W/.test(name), turned);
    const top = options.top ?? largest(array);
    const show = plane.columns <= 8 && plane.rows <= 10 ? numbers : heatMap;
    figure.append(show(array, values, plane, top, name));
    if (array.index) head.append(make("span", { class: "note" }, ` shown: ${name}[${array.index}]`));
  }
  const stats = make("div", { class: "stats" }, `|${brief(array.norm)}|   min ${brief(array.low)}   max ${brief(array.high)}`);
  if (array.bad) stats.append(make("span", { class: "nan" }, `   ${array.bad} not finite`));
  figure.append(stats);
  return figure;
}

function numbers(array, values, plane, top, name) {
  const table = make("table", { class: "values mono" });
  for (let r = 0; r < plane.rows; r++) {
    const row = make("tr");
    for (let c = 0; c < plane.columns; c++) {
      const i = plane.at(r, c);
      if (i < 0) { row.append(make("td", { style: "border:0" })); continue; }
      const [red, green, blue] = colourOf(values[i], top);
      const dark = red * 0.3 + green * 0.59 + blue * 0.11 < 140;
      row.append(make("td", {
        style: `background:rgb(${red},${green},${blue});color:${dark ? "#fff" : "#111"}`, "data-value": exact(array, i),
        onmousemove: (event) => tip(event, `${name}[${placeOf(array, i)}] = ${exact(array, i)}`), onmouseleave: hideTip,
      }, array.dtype === "bool" || /int/.test(array.dtype) ? exact(array, i) : Number.isFinite(values[i]) ? brief(values[i]) : exact(array, i)));
    }
    table.append(row);
  }
  return table;
}

function heatMap(array, values, plane, top, name) {
  const { rows, columns, at } = plane;
  const cell = Math.max(1, Math.min(14, Math.floor(280 / Math.max(columns, rows))));
  const canvas = make("canvas", { width: columns, height: rows, role: "img", "aria-label": `${name}, a heat map of ${rows} rows and ${columns} columns` });
  canvas.style.width = `${Math.min(columns * cell, 560)}px`;
  canvas.style.height = `${Math.min(rows * cell, 300)}px`;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let r = 0, k = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++, k += 4) {
      const i = at(r, c);
      const [red, green, blue] = i < 0 ? palette.gap : colourOf(values[i], top);
      image.data.set([red, green, blue, 255], k);
    }
  }
  context.putImageData(image, 0, 0);
  canvas.addEventListener("mousemove", (event) => {
    const frame = canvas.getBoundingClientRect();
    const r = Math.min(rows - 1, Math.max(0, Math.floor((event.clientY - frame.top - 1) / (frame.height - 2) * rows)));
    const c = Math.min(columns - 1, Math.max(0, Math.floor((event.clientX - frame.left - 1) / (frame.width - 2) * columns)));
    const i = at(r, c);
    if (i < 0) hideTip(); else tip(event, `${name}[${placeOf(array, i)}] = ${exact(array, i)}`);
  });
  canvas.addEventListener("mouseleave", hideTip);
  return canvas;
}

function tip(event, text) {
  const words = byId("tip");
  words.textContent = text;
  words.hidden = false;
  words.style.left = `${Math.min(event.clientX + 14, innerWidth - words.offsetWidth - 8)}px`;
  words.style.top = `${Math.max(4, event.clientY - 30)}px`;
}
function hideTip() { byId("tip").hidden = true; }

// ---------------------------------------------------------------- the panel

function showPanel() {
  const [kind, where] = steps[state.step] ?? [];
  const panel = byId("panel");
  const parts = kind === undefined ? [make("p", {}, "The trace is empty: no operation ran in it.")]
    : kind === "s" ? sumPanel(steps[state.step]) : kind === "f" ? forwardPanel(where) : backwardPanel(where, steps[state.step][2]);
  panel.replaceChildren(...parts.filter(Boolean), notes());
  panel.scrollTop = 0;
}

function heading(kind, node, number) {
  return [
    make("span", { class: "kind" }, kind),
    make("h2", {}, `${node.name} #${number + data.first} `, make("span", { class: "module" }, node.module)),
    make("p", { class: "where" }, node.line ? `${node.line}  ` : "", make("code", {}, node.text)),
  ];
}

function backwardPanel(number, i) {
  const node = nodes[number];
  const [formula, shapes, equation, , where] = node.formulas[i] ?? ["", "", "", [], []];
  const name = `L_${node.names[i]}`;
  const target = node.from[i];
  const made = node.LX.map((a, k) => [a, k]).filter(([a]) => a !== null);
  const chips = make("div", { class: "chips" }, ...made.map(([, k]) => make("button", {
    "aria-pressed": k === i, onclick: () => goTo(steps.findIndex((s) => s[0] === "b" && s[1] === number && s[2] === k)),
  }, `L_${node.names[k]}`)));
  const card = make("div", { class: "formula mono" },
    make("div", { class: "math" }, make("b", {}, name), formula ? ` = ${formula}` : " comes from the lit lines below", equation ? make("span", { class: "note" }, `   ${equation}`) : ""),
    make("div", { class: "shapes" }, shapes || (node.LX[i] !== null && node.LX[i] !== undefined ? written(arrays[node.LX[i]].shape) : "")),
    where.length ? make("div", { class: "shapes where-letters" }, `where ${where.join(",   ")}`) : "",
    made.length > 1 ? chips : "");
  const going = target === null || target === undefined ? "goes to nothing" : `goes to ${nameOf(target)}`;
  const result = arrayView(name, node.LX[i], { out: true, note: `→ ${going}` });
  const parts = [...heading("backward", node, number), card, equationRow(node, name, i, formula, shapes, result)];
  parts.push(rulePanel(node, i));
  parts.push(make("details", {}, make("summary", {}, "forward values, cost, memory"), arraysRow(node), facts(node)));
  return parts;
}

// The gradient beside what it was made from: as an equation if it is a product of two matrices, else in a row.
function equationRow(node, name, i, formula, shapes, result) {
  const known = { L_Y: node.LY[0] };
  node.names.forEach((n, k) => { if (node.inputs[k] !== null) known[n] = node.inputs[k]; });
  const parts = new Map(node.formulas[i]?.[5] ?? []);  // what stands between L_Y and the gradient
  for (const [n, a] of parts) known[n] = a;
  const product = shapes && formula.match(/^(\w+)(ᵀ?) (\w+)(ᵀ?)$/);
  const factors = product && [[product[1], product[2]], [product[3], product[4]]];
  if (factors && factors.every(([n]) => n === "1" || (known[n] !== undefined && arrays[known[n]].shape.length === 2 && !arrays[known[n]].index))) {
    const views = factors.map(([n, turned]) => (n === "1" ? make("span", { class: "sign mono" }, "1ᵀ") : arrayView(n, known[n], { turned: turned === "ᵀ" })));
    return [make("h3", {}, "this step"), make("div", { class: "equation" }, result, make("span", { class: "sign" }, "="), views[0], make("span", { class: "sign" }, "·"), views[1])]
      .reduce((box, part) => (box.append(part), box), make("section"));
  }
  const said = [formula, ...(node.formulas[i]?.[4] ?? [])].join(" ");
  const used = Object.keys(known).filter((n) => n !== "L_Y" && (parts.has(n) || new RegExp(`(^|[^\\w])${n.replace(/[[\]]/g, "\\$&")}(?!\\w)`).test(said)));
  const incoming = node.LY.map((a, k) => arrayView(node.LY.length > 1 ? `L_Y[${k}]` : "L_Y", a));
  return make("section", {}, make("h3", {}, "comes in → goes out"),
    make("div", { class: "equation" }, ...incoming.filter(Boolean), ...used.map((n) => arrayView(n, known[n])), make("span", { class: "sign" }, "→"), ...(result ? [result] : [])));
}

function rulePanel(node, i) {
  if (node.rule === null) return make("p", { class: "note" }, "the source of this operation cannot be read");
  const lit = new Set((node.formulas[i]?.[3] ?? []).map(([block, line]) => `${block}:${line}`));
  const blocks = rules[node.rule].blocks.map((block, b) => {
    const touched = block.lines.some(([line]) => lit.has(`${b}:${line}`));
    if (b > 0 && !touched) return null;
    return make("pre", { class: "rule" }, make("span", { class: "title" }, `${block.title}   ${block.file}${b > 0 ? "   (the definition; a fast version may compute it)" : ""}`),
      ...block.lines.map(([line, text]) => {
        const cut = text.search(/(^|\s)#\s/);
        const code = cut < 0 ? [text] : [text.slice(0, cut), make("span", { class: "comment" }, text.slice(cut))];
        return make("span", { class: `code${lit.has(`${b}:${line}`) ? " lit" : ""}` }, make("i", {}, String(line)), ...code, text ? "" : " ");
      }));
  });
  return make("section", {}, make("h3", {}, "the rule"), ...blocks.filter(Boolean));
}

function arraysRow(node) {
  const inputs = node.inputs.map((a, k) => arrayView(node.names[k], a, { note: node.from[k] ? `← ${nameOf(node.from[k])}` : "" }));
  const outputs = node.outputs.map((a, k) => arrayView(node.outputs.length > 1 ? `Y[${k}]` : "Y", a, { out: true }));
  return make("div", { class: "equation" }, ...inputs.filter(Boolean), make("span", { class: "sign" }, "→"), ...outputs.filter(Boolean));
}

function facts(node) {
  const list = make("dl", { class: "facts" });
  const add = (name, text) => text && list.append(make("dt", {}, name), make("dd", {}, text));
  add("options", node.options);
  add("what it says", node.doc);
  add("FLOPs", node.flops[0] ? `${node.flops[0].toLocaleString("en")} forward, ${node.flops[1].toLocaleString("en")} backward (a multiplication with an addition is two)` : "none in products of matrices");
  add("bytes moved", `${bytes(node.bytes[0])} forward, ${bytes(node.bytes[1])} backward`);
  add("time", `${node.ms[0]} ms forward, ${node.ms[1]} ms backward`);
  add("keeps for backward", node.kept.length ? `${node.kept.map(([name, shape, kind, size]) => `${name ? `${name} ` : ""}${shape} ${kind}, ${bytes(size)}`).join("; ")}: ${bytes(node.saved)} of it new` : "nothing");
  return list;
}

function forwardPanel(number) {
  const node = nodes[number];
  return [...heading("forward", node, number), node.doc ? make("p", { class: "note" }, node.doc) : null,
    make("section", {}, make("h3", {}, "takes → gives"), arraysRow(node)), rulePanel(node, -1), make("h3", {}, "cost"), facts(node)];
}

function sumPanel([, where, output, , first, second, total, , sent]) {
  const sender = (part) => (part && nodes[part[0]] ? `L_${nodes[part[0]].names[part[1]]} of ${nameOf(`n${part[0]}`)}` : "a gradient from before");
  const top = Math.max(...[first, second, total].map((number) => largest(arrays[number])));  // one scale for all three
  const name = where[0] === "n" && nodes[where.slice(1)].outputs.length > 1 ? `${nameOf(where)}, output ${output}` : nameOf(where);
  return [
    make("span", { class: "kind" }, "sum"), make("h2", {}, `gradients for ${name} meet`),
    make("p", { class: "where" }, "It was used more than once, or has a gradient from before. The loss depends on it in each of these ways, so the gradients are added."),
    make("div", { class: "formula mono" }, make("div", { class: "math" }, make("b", {}, "sum"), " = first + second")),
    make("h3", {}, "this step"),
    make("div", { class: "equation" }, arrayView("sum", total, { out: true, top }), make("span", { class: "sign" }, "="),
      arrayView("first", first, { note: `was there: ${sent.slice(0, -1).map(sender).join(" + ")}`, top }), make("span", { class: "sign" }, "+"), arrayView("second", second, { top, note: `comes now: ${sender(sent[sent.length - 1])}` })),
  ];
}

function notes() {
  return make("section", {}, ...data.notes.map((note) => make("p", { class: "note" }, note)));
}
