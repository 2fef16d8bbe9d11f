// The page of a trace: a graph on the left, the current step on the right, memory below. This file holds the data and what
// all the others use: elements, words, how to find a step. The files are joined in the order in which page.py lists them.
//
// A step has a kind, "forward", "gradient" (one that a backward pass makes) or "sum"; k, its number among the steps of its
// direction, as the terminal's table counts them; pass, the number of the pass that it is a part of; and live, the bytes that
// are kept after it.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { nodes, leaves, steps, boxes, arrows, groups, arrays, rules } = data;
const byId = (id) => document.getElementById(id);
const firstBackward = steps.findIndex((step) => step.kind !== "forward");
const state = { step: Math.max(0, firstBackward), open: new Set(), playing: 0, view: null, costs: false, paint: 0 };

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

// A word that leads to another step; plain text where there is none.
function link(text, i) {
  return i < 0 ? text : make("button", { class: "link", onclick: () => goTo(i) }, text);
}

const listed = (parts) => parts.flatMap((part, i) => (i ? [", ", part] : [part]));

// Enter and space on what is no button but acts as one.
function onEnter(action) {
  return (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); event.stopPropagation(); action(); } };
}

// ---------------------------------------------------------------- words

const written = (shape) => `(${shape.join(", ")})`;
const brief = (x) => (typeof x === "string" ? x : x === null ? "–" : x === 0 ? "0" : Math.abs(x) >= 1e5 || Math.abs(x) < 1e-3 ? x.toExponential(2) : x.toPrecision(3));
const short = (text, n) => (text.length <= n ? text : `…${text.slice(text.length - n + 1)}`);
const mean = (numbers) => numbers.reduce((a, b) => a + b, 0) / Math.max(1, numbers.length);

// A number of bytes, or of others, with three digits and the unit's prefix.
function amount(n, units) {
  for (const unit of units.slice(0, -1)) {
    if (n < 1000) return `${Number(n.toPrecision(3))} ${unit}`.trim();
    n /= 1000;
  }
  return `${Number(n.toPrecision(3))} ${units.at(-1)}`;
}
const bytes = (n) => amount(n, ["B", "KB", "MB", "GB"]);

const numberOf = (key) => Number(key.slice(1));
const titleOf = (number) => `${nodes[number].name} #${number + data.first}`;

function nameOf(key) {
  if (key === null || key === undefined) return "a number or an array";
  if (key[0] === "n") return titleOf(numberOf(key));
  const leaf = leaves[numberOf(key)];
  return `${leaf.weight ? "weight " : ""}${leaf.name || "array"} ${written(leaf.shape)}`;
}

// ---------------------------------------------------------------- steps

// The box that a step stands at: n7 for operation 7, l3 for leaf 3.
const keyOf = (step) => (step === undefined ? null : step.kind === "sum" ? step.where : `n${step.node}`);

// The nearest later step of that kind, else the first one; -1 if there is none.
function nearest(test) {
  const later = steps.findIndex((step, i) => i > state.step && test(step));
  return later >= 0 ? later : steps.findIndex(test);
}

const backwardOf = (number) => nearest((step) => step.kind === "gradient" && step.node === number);
const forwardOf = (number) => nearest((step) => step.kind === "forward" && step.node === number);

// Which operations took an operation's outputs, [operation, input, output], in the order in which their gradients arrive.
const users = nodes.map(() => []);
for (let number = nodes.length - 1; number >= 0; number--) {
  nodes[number].from.forEach((key, i) => { if (key && key[0] === "n") users[numberOf(key)].push([number, i, nodes[number].outs[i]]); });
}

// How a step is counted, and how many there are in its direction.
function counted(step) {
  const [forward, backward] = data.counts;
  return `step ${step.k} of ${step.kind === "forward" ? forward : backward}`;
}
