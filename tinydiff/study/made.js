// What an element was made of: reading one lights the elements that went into it, and shows the sum with its numbers.

const named = (view) => view.name + (view.turned ? "ᵀ" : "");

// The first terms of a sum, in numbers.
function sumInNumbers(terms) {
  const shown = terms.slice(0, 8).join(" + ").replaceAll("+ -", "− ").replaceAll("·-", "·−");
  return `= ${shown || "0"}${terms.length > 8 ? ` + … (${terms.length} terms)` : ""}`;
}

// An element of a product of matrices is a row times a column. left is undefined where it is a row of ones.
function tieProduct(result, left, right) {
  if (!result || !right || (!left && result.plane.rows > 1)) return;
  result.madeOf = (r, c) => {
    if (left) mark(left, r, 0, r, left.plane.columns - 1);
    mark(right, 0, c, right.plane.rows - 1, c);
    const terms = Array.from({ length: right.plane.rows }, (_, k) => {
      const b = brief(right.values[right.plane.at(k, c)]);
      return left ? `${brief(left.values[left.plane.at(r, k)])}·${b}` : b;
    });
    return [`= ${left ? `row ${r} of ${named(left)} · ` : "sum of "}column ${c} of ${named(right)}`, sumInNumbers(terms)];
  };
}

// ---------------------------------------------------------------- convolutions

// Every product X[n, y, x, c] W[r, s, c, k] is a part of Y[n, i, j, k], with y = stride i - padding + dilation r, and x
// likewise. So it says which products an element of Y, L_X or L_W is the sum of. Views of parts of arrays are not tied.
function tieConvolution(figure, figures, options) {
  const views = Object.fromEntries(figures.map((other) => [other.dataset.name, other.view]));
  const [groups, , , down, across, top, , left, , high, wide] = (options.match(/\d+/g) ?? []).map(Number);
  const result = figure.view;
  const [a, b] = { L_X: ["L_Y", "W"], L_W: ["X", "L_Y"], Y: ["X", "W"] }[figure.dataset.name] ?? [];
  if (groups !== 1 || wide === undefined || [result, views[a], views[b]].some((view) => !view || view.array.index || view.array.shape.length !== 4)) return;
  const kinds = { X: "nyxc", L_X: "nyxc", W: "rsck", L_W: "rsck", Y: "nijk", L_Y: "nijk" };  // the letters of their axes
  const sizes = {};
  for (const view of [result, views[a], views[b]]) [...kinds[view.name]].forEach((letter, axis) => { sizes[letter] = view.array.shape[axis]; });
  const [H, W] = ["y", "x"].map((letter) => sizes[letter] ?? Infinity);
  result.madeOf = (row, column) => {
    const fixed = {};
    let rest = result.plane.at(row, column);
    for (const letter of [...kinds[result.name]].reverse()) { fixed[letter] = rest % sizes[letter]; rest = Math.floor(rest / sizes[letter]); }
    const every = (letter) => (letter in fixed ? [fixed[letter]] : [...Array(sizes[letter] ?? 1).keys()]);
    const used = [[], []];
    for (const n of every("n")) for (const i of every("i")) for (const r of every("r")) {
      const y = down * i - top + high * r;
      if (y < 0 || y >= H || ("y" in fixed && y !== fixed.y)) continue;
      for (const j of every("j")) for (const s of every("s")) {
        const x = across * j - left + wide * s;
        if (x < 0 || x >= W || ("x" in fixed && x !== fixed.x)) continue;
        for (const c of every("c")) for (const k of every("k")) {
          const at = { n, i, j, r, s, c, k, y, x };
          [a, b].forEach((name, f) => used[f].push([...kinds[name]].reduce((number, letter) => number * sizes[letter] + at[letter], 0)));
        }
      }
    }
    [a, b].forEach((name, f) => markElements(views[name], used[f]));
    const terms = used[0].map((element, t) => `${brief(views[a].values[element])}·${brief(views[b].values[used[1][t]])}`);
    return [`= the sum of ${terms.length} products of elements of ${a} and ${b}${result.name === "Y" ? ", and what is added" : ""}`, sumInNumbers(terms)];
  };
}

// Marks elements of images or filters: in each tile the rectangle that holds them.
function markElements(view, elements) {
  if (!view.cells) {
    view.cells = new Map();
    for (let r = 0; r < view.plane.rows; r++) for (let c = 0; c < view.plane.columns; c++) view.cells.set(view.plane.at(r, c), [r, c]);
  }
  const { shape } = view.array;
  const isFilter = view.name.endsWith("W");
  const tiles = new Map();
  for (const element of new Set(elements)) {
    const tile = isFilter ? element % (shape[2] * shape[3]) : `${Math.floor(element / (shape[1] * shape[2] * shape[3]))} ${element % shape[3]}`;
    const [r, c] = view.cells.get(element);
    const [top, left, bottom, right] = tiles.get(tile) ?? [r, c, r, c];
    tiles.set(tile, [Math.min(top, r), Math.min(left, c), Math.max(bottom, r), Math.max(right, c)]);
  }
  for (const rectangle of [...tiles.values()].slice(0, 64)) mark(view, ...rectangle);
}
