// The panel of the current step: the formula with its numbers, where gradients come from and go to, the rule.

function showPanel() {
  const step = steps[state.step];
  const panel = byId("panel");
  const focused = panel.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
  const parts = state.costs ? costsPanel() : step === undefined ? [make("p", {}, "The trace is empty: no operation ran in it.")]
    : step.kind === "sum" ? sumPanel(step) : step.kind === "forward" ? forwardPanel(step.node) : backwardPanel(step);
  panel.replaceChildren(...parts.filter(Boolean), notes());
  panel.scrollTop = 0;
  if (focused) (panel.querySelector(`[data-focus="${focused}"]`) ?? panel).focus();
}

function heading(kind, number) {
  const node = nodes[number];
  return [
    make("span", { class: "kind" }, kind),
    make("h2", {}, `${titleOf(number)} `, make("span", { class: "module" }, node.module)),
    make("p", { class: "where" }, node.line ? `${node.line}  ` : "", make("code", {}, node.text)),
  ];
}

function backwardPanel(step) {
  const [number, i] = [step.node, step.gradient];
  const node = nodes[number];
  const [formula, shapes, equation, , where] = node.formulas[i] ?? ["", "", "", [], []];
  const name = `L_${node.names[i]}`;
  const made = node.LX.map((a, k) => [a, k]).filter(([a]) => a !== null);
  const chips = make("div", { class: "chips" }, ...made.map(([, k]) => make("button", {
    "aria-pressed": k === i, "data-focus": `gradient ${k}`, onclick: () => goTo(steps.findIndex((s) => s.pass === step.pass && s.gradient === k)),
  }, `L_${node.names[k]}`)));
  const card = make("div", { class: "formula mono" },
    make("div", { class: "math" }, make("b", {}, name), formula ? ` = ${formula}` : " comes from the lit lines below", equation ? make("span", { class: "note" }, `   ${equation}`) : ""),
    make("div", { class: "shapes" }, shapes || (node.LX[i] !== null && node.LX[i] !== undefined ? written(arrays[node.LX[i]].shape) : "")),
    where.length ? make("div", { class: "shapes where-letters" }, "where ", ...where.map((text, k) => make("span", {}, k < where.length - 1 ? `${text},` : text))) : "",
    made.length > 1 ? chips : "");
  return [...heading("backward", number), card, equationRow(node, number, i, formula, shapes), rulePanel(node, i),
    make("details", {}, make("summary", {}, "forward values, cost, memory"), arraysRow(node, number), facts(node))];
}

// Where a gradient goes, with a link to the step that takes it.
function goingTo(key) {
  if (key === null || key === undefined) return ["→ to nothing that needs it"];
  if (key[0] === "n") return ["→ to ", link(nameOf(key), backwardOf(numberOf(key)))];
  return [`→ to .grad of ${nameOf(key).replaceAll(".", ".\u200b")}`];  // a line may end after a dot
}

// From where the gradient of an output comes, with links.
function comingFrom(number, output) {
  const from = users[number].filter(([user, input, k]) => k === output && nodes[user].LX[input] !== null && nodes[user].LX[input] !== undefined);
  if (!from.length) return ["← backward() began here"];
  const links = from.map(([user, input]) => link(`L_${nodes[user].names[input]} of ${titleOf(user)}`, steps.findIndex((s) => s.kind === "gradient" && s.node === user && s.gradient === input)));
  return [from.length > 1 ? "← the sum of " : "← ", ...listed(links)];
}

// The gradient beside what it was made from: as an equation if it is a product of two matrices, else in a row.
function equationRow(node, number, i, formula, shapes) {
  const name = `L_${node.names[i]}`;
  const result = arrayView(name, node.LX[i], { out: true, note: goingTo(node.from[i]) });
  const incoming = node.LY.map((a, k) => [node.LY.length > 1 ? `L_Y[${k}]` : "L_Y", a, comingFrom(number, k)]);
  const known = Object.fromEntries(node.names.map((n, k) => [n, node.inputs[k]]).filter(([, a]) => a !== null));
  known.L_Y = node.LY[0];
  if (node.outputs.length === 1) known.Y = node.outputs[0];
  const parts = new Map(node.formulas[i]?.[5] ?? []);  // what stands between L_Y and the gradient
  for (const [n, a] of parts) known[n] = a;
  const view = (n, options) => arrayView(n, known[n], { ...options, note: n === "L_Y" ? incoming[0][2] : "" });
  const product = shapes && formula.match(/^(\w+)(ᵀ?) (\w+)(ᵀ?)$/);
  const factors = product && [[product[1], product[2]], [product[3], product[4]]];
  if (result && factors && factors.every(([n]) => n === "1" || (known[n] !== undefined && arrays[known[n]].shape.length === 2 && !arrays[known[n]].index))) {
    const views = factors.map(([n, turned]) => (n === "1" ? make("span", { class: "sign mono" }, "1ᵀ") : view(n, { turned: turned === "ᵀ" })));
    tieProduct(result.view, ...views.map((figure) => figure.view));
    return make("section", {}, make("h3", {}, "this step"),
      make("div", { class: "equation" }, result, make("span", { class: "sign" }, "="), views[0], make("span", { class: "sign" }, "·"), views[1]));
  }
  const said = [formula, ...(node.formulas[i]?.[4] ?? [])].join("; ");
  const used = Object.keys(known).filter((n) => n !== "L_Y" && (parts.has(n) || new RegExp(`(^|[^\\w])${n.replace(/[[\]]/g, "\\$&")}(?!\\w)`).test(said)));
  const figures = [...incoming.map(([n, a, note]) => arrayView(n, a, { note })), ...used.map((n) => view(n))].filter(Boolean);
  if (result && node.name === "Conv2d") tieConvolution(result, figures, node.options);
  return make("section", {}, make("h3", {}, "goes out ← comes in"), make("div", { class: "equation" }, ...(result ? [result, make("span", { class: "sign" }, "←")] : []), ...figures));
}

function rulePanel(node, i) {
  if (node.rule === null) return make("p", { class: "note" }, "the source of this operation cannot be read");
  const lit = new Set((node.formulas[i]?.[3] ?? []).map(([block, line]) => `${block}:${line}`));
  const drawn = rules[node.rule].blocks.map((block, b) => {
    const touched = block.lines.some(([line]) => lit.has(`${b}:${line}`));
    if (b > 0 && !touched) return null;
    return make("pre", { class: "rule" }, make("span", { class: "title" }, `${block.title}   ${block.file}${b > 0 && !block.title.startsWith(`${node.name}.`) ? "   (the definition; a fast version may compute it)" : ""}`),
      ...block.lines.map(([line, text]) => {
        const cut = text.search(/(^|\s)#\s/);
        const code = cut < 0 ? [text] : [text.slice(0, cut), make("span", { class: "comment" }, text.slice(cut))];
        return make("span", { class: `code${lit.has(`${b}:${line}`) ? " lit" : ""}` }, make("i", {}, String(line)), ...code, text ? "" : " ");
      }));
  });
  return make("section", {}, make("h3", {}, "the rule"), ...drawn.filter(Boolean));
}

function arraysRow(node, number) {
  const inputs = node.inputs.map((a, k) => {
    const key = node.from[k];
    return arrayView(node.names[k], a, { note: !key ? "" : key[0] === "n" ? ["← ", link(nameOf(key), forwardOf(numberOf(key)))] : `← ${nameOf(key)}` });
  });
  const outputs = node.outputs.map((a, k) => {
    const takers = [...new Set(users[number].filter(([, , output]) => output === k).map(([user]) => user))].reverse();
    const note = takers.length ? ["→ to ", ...listed(takers.map((user) => link(titleOf(user), forwardOf(user))))] : "";
    return arrayView(node.outputs.length > 1 ? `Y[${k}]` : "Y", a, { out: true, note });
  });
  if (node.name === "Conv2d" && outputs[0]) tieConvolution(outputs[0], inputs.filter(Boolean), node.options);
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
  return [...heading("forward", number), node.doc ? make("p", { class: "note" }, node.doc) : null,
    make("section", {}, make("h3", {}, "takes → gives"), arraysRow(node, number)), rulePanel(node, -1), make("h3", {}, "cost"), facts(node)];
}

// ---------------------------------------------------------------- sums

const FEW_GIVERS = 4;  // that are named

function sumPanel({ where, output, first, second, total, givers }) {
  const top = Math.max(...[first, second, total].map((number) => largest(arrays[number])));  // one scale for all three
  const name = where[0] === "n" && nodes[numberOf(where)].outputs.length > 1 ? `${nameOf(where)}, output ${output}` : nameOf(where);
  const given = (giver) => (giver === null ? "a gradient from before" : givenBy(giver));
  const givenBy = ([number, i]) => link(`L_${nodes[number].names[i]} of ${titleOf(number)}`, steps.findIndex((s) => s.kind === "gradient" && s.node === number && s.gradient === i));
  const before = givers.slice(0, -1);
  const parts = before.slice(0, FEW_GIVERS).map(given).concat(before.length > FEW_GIVERS ? [`${before.length - FEW_GIVERS} others`] : []);
  const last = givers.at(-1);
  return [
    make("span", { class: "kind" }, "sum"), make("h2", {}, `gradients for ${name} meet`),
    make("p", { class: "where" }, "It was used more than once, or has a gradient from before. The loss depends on it in each of these ways, so the gradients are added."),
    make("div", { class: "formula mono" }, make("div", { class: "math" }, make("b", {}, "sum"), " = first + second")),
    make("section", {}, make("h3", {}, "this step"),
      make("div", { class: "equation" }, arrayView("sum", total, { out: true, top, note: goingTo(where) }), make("span", { class: "sign" }, "="),
        arrayView("first", first, { note: before.length ? ["← ", ...(before.length > 1 ? ["the sum of "] : []), ...listed(parts)] : "", top }), make("span", { class: "sign" }, "+"),
        arrayView("second", second, { top, note: last ? ["← ", given(last)] : "" }))),
  ];
}

function notes() {
  return make("section", {}, ...data.notes.map((note) => make("p", { class: "note" }, note)));
}
