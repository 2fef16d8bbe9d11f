// The table of costs: what operations or modules keep, compute and move, sorted by a click on a column's head.

const costs = { by: "operation", column: "kept", down: true };
const COLUMNS = {
  name: ["", (rows) => rows[0].name],
  calls: ["calls", (rows) => rows.length, String],
  kept: ["kept for backward", (rows) => sumOf(rows, (node) => node.saved), bytes],
  forward: ["FLOP forward", (rows) => sumOf(rows, (node) => node.flops[0]), flop],
  backward: ["FLOP backward", (rows) => sumOf(rows, (node) => node.flops[1]), flop],
  moved: ["bytes moved", (rows) => sumOf(rows, (node) => node.bytes[0] + node.bytes[1]), bytes],
  time: ["ms forward", (rows) => sumOf(rows, (node) => node.ms[0]), (x) => x.toFixed(2)],
  timeBack: ["ms backward", (rows) => sumOf(rows, (node) => node.ms[1]), (x) => x.toFixed(2)],
};
const sumOf = (rows, of) => rows.reduce((sum, node) => sum + of(node), 0);
const ROWS = 200;  // of the table

function flop(n) { return n ? amount(n, ["", "k", "M", "G", "T"]) : "–"; }

// [name, first operation, operations] of each row.
function costRows() {
  if (costs.by === "operation") return nodes.map((node, i) => [`${titleOf(i)}  ${node.module}`, i, [node]]);
  const found = new Map();
  nodes.forEach((node, i) => {
    const name = costs.by === "kind" ? node.name : node.module || "(outside of modules)";
    if (!found.has(name)) found.set(name, [name, i, []]);
    found.get(name)[2].push(node);
  });
  return [...found.values()];
}

function costsPanel() {
  const shown = Object.entries(COLUMNS).filter(([name]) => name !== "calls" || costs.by !== "operation");
  const table = costRows().map(([name, first, members]) => ({ name, first, cells: shown.slice(1).map(([, [, of]]) => of(members)) }));
  const column = shown.findIndex(([name]) => name === costs.column) - 1;
  const order = column < 0 ? (a, b) => a.name.localeCompare(b.name, "en", { numeric: true }) : (a, b) => a.cells[column] - b.cells[column];
  table.sort((a, b) => (costs.down ? -order(a, b) : order(a, b)) || a.first - b.first);
  const whole = table[0]?.cells.map((_, k) => table.reduce((sum, row) => sum + row.cells[k], 0)) ?? [];
  const most = whole.map((_, k) => Math.max(...table.map((row) => row.cells[k])));
  const formats = shown.slice(1).map(([, [, , format]]) => format);
  const cells = (values) => values.map((x, k) => make("td", { style: most[k] && formats[k] !== String ? `--share:${(100 * x) / most[k]}%` : "" }, formats[k](x)));
  const rows = table.slice(0, ROWS).map((row) => make("tr", {}, make("th", { scope: "row" }, link(short(row.name, 48), backwardOf(row.first) >= 0 ? backwardOf(row.first) : forwardOf(row.first))), ...cells(row.cells)));
  const choose = (by, text) => make("button", { "aria-pressed": costs.by === by, "data-focus": `by ${by}`, onclick: () => { costs.by = by; showPanel(); } }, text);
  return [make("h2", {}, "cost"),
    make("div", { class: "set" }, choose("operation", "operations"), choose("kind", "kinds of operations"), choose("module", "modules")),
    make("table", { class: "costs" }, make("thead", {}, make("tr", {}, ...shown.map(([name]) => costHead(name)))), make("tbody", {}, ...rows),
      make("tfoot", {}, make("tr", {}, make("th", { scope: "row" }, "all"), ...whole.map((x, k) => make("td", {}, formats[k](x)))))),
    table.length > ROWS ? make("p", { class: "note" }, `the first ${ROWS} of ${table.length} rows`) : null,
    make("p", { class: "note" }, "Kept for backward: memory that several operations keep counts for the first. FLOP: of products of matrices; a multiplication with an addition is two. Bytes moved: arrays that a pass takes and gives, each once.")];
}

function costHead(column) {
  const sorted = costs.column === column;
  const title = column === "name" ? { operation: "operation", kind: "kind", module: "module" }[costs.by] : COLUMNS[column][0];
  const sort = () => {
    [costs.down, costs.column] = [sorted ? !costs.down : column !== "name", column];
    showPanel();
  };
  return make("th", { scope: "col", "aria-sort": sorted ? (costs.down ? "descending" : "ascending") : null },
    make("button", { "data-focus": `sort ${column}`, onclick: sort }, `${title}${sorted ? (costs.down ? " ▼" : " ▲") : ""}`));
}
