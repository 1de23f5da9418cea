const data = JSON.parse(document.getElementById("data").textContent);
const { axes, metrics, cells } = data, all = cells.name.map((_, i) => i);
const reason = (cell) => data.reasons[cells.reason[cell]];
const byId = (id) => document.getElementById(id);
const collator = new Intl.Collator("en", { numeric: true });
const STATUS = { done: "done", ko: "KO", failed: "failed", running: "running", waiting: "waiting" };
const ROWS_A_PAGE = 50, MOST_ROWS = 500, MOST_COLUMNS = 60, MOST_CHOICES = 100;
const state = { ...data.start, sorted: 0, down: false, page: 0 };
let shown = all;
const counted = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
const option = (value, text) => make("option", { value }, text);

const inverse = (order) => order.reduce((found, i, k) => { found[i] = k; return found; }, []);
for (const axis of axes) {
  const places = axis.values.map((_, i) => i);
  const by = (compare) => [...places].sort(compare);
  axis.order = axis.numbers ? by((a, b) => axis.numbers[a] - axis.numbers[b]) : places;
  axis.place = inverse(axis.order);
  axis.rank = axis.numbers ? axis.place
    : inverse(by((a, b) => collator.compare(axis.values[a], axis.values[b])));
}

// --- which cells: every table and chart is of those that pass
const filters = [];
function addFilter(name, choices) {
  const select = make("select", { "data-axis": name }, option("", "all"),
    ...choices.map(([text], k) => option(k, text)));
  filters.push({ select, choices });
  select.addEventListener("change", choose);
  byId("filters").append(make("label", {}, name, select));
}
addFilter("status", Object.keys(STATUS).filter((s) => cells.status.includes(s))
  .map((s) => [STATUS[s], (c) => cells.status[c] === s]));
for (const axis of axes) {
  const parts = axis.numbers && axis.order.length > MOST_CHOICES
    ? sliced(axis.order, 4) : axis.order.map((i) => [i]);
  addFilter(axis.name, parts.map((part) => {
    const members = new Set(part);
    return [partName(axis, part), (c) => members.has(axis.cells[c])];
  }));
}
const texts = [];
const textOf = (c) => texts[c] ??= [cells.name[c], STATUS[cells.status[c]], reason(c),
  ...axes.map((axis) => `${axis.name}=${axis.values[axis.cells[c]]}`)].join(" ").toLowerCase();
function choose() {
  const tests = filters.filter((f) => f.select.value).map((f) => f.choices[f.select.value][1]);
  const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = !tests.length && !words.length ? all : all.filter(
    (c) => tests.every((test) => test(c)) && words.every((word) => textOf(c).includes(word)));
  state.page = 0;
  draw();
}
// --- all cells, a page of rows at a time
const columns = [
  { name: "#", text: (c) => String(c), key: (c) => c, kind: "number" },
  { name: "status", text: (c) => STATUS[cells.status[c]], kind: "",
    key: (c) => Object.keys(STATUS).indexOf(cells.status[c]) },
  ...axes.map((axis) => ({ name: axis.name, text: (c) => axis.values[axis.cells[c]],
    key: (c) => axis.rank[axis.cells[c]], kind: axis.numbers ? "number" : "text" })),
  ...metrics.map((metric) => ({ name: label(metric), text: (c) => said(metric, metric.values[c]),
    key: (c) => metric.values[c], kind: "number" })),
  { name: "seconds", text: (c) => general(cells.seconds[c] ?? 0, 3), key: (c) => cells.seconds[c],
    kind: "number" },
  { name: "reason", text: reason, key: (c) => reason(c) || null, kind: "text" },
  { name: "cell", text: (c) => cells.name[c], key: (c) => cells.name[c], kind: "text" },
];
const headers = columns.map((column, k) => {
  const button = make("button", { type: "button" }, column.name);
  button.addEventListener("click", () => {
    Object.assign(state, { sorted: k, down: state.sorted === k && !state.down, page: 0 });
    drawTable();
  });
  return make("th", { scope: "col", class: column.kind }, button);
});
byId("cells").append(make("thead", {}, make("tr", {}, ...headers)), make("tbody"));
function drawTable() {
  const { key } = columns[state.sorted], sign = state.down ? -1 : 1;
  const order = [...shown].sort((a, b) => {
    const [left, right] = [key(a), key(b)];
    if (left === null || right === null) return (left === null) - (right === null) || a - b;
    const order = typeof left === "string" ? collator.compare(left, right) : left - right;
    return sign * order || a - b;
  });
  const pages = Math.max(Math.ceil(order.length / ROWS_A_PAGE), 1);
  state.page = Math.min(Math.max(state.page, 0), pages - 1);
  const first = state.page * ROWS_A_PAGE, rows = order.slice(first, first + ROWS_A_PAGE);
  byId("cells").tBodies[0].replaceChildren(...rows.map((c) => make("tr", {}, ...columns.map(
    ({ kind, text }) => make("td", { class: kind || cells.status[c] }, text(c))))));
  headers.forEach((header, k) => k === state.sorted
    ? header.setAttribute("aria-sort", state.down ? "descending" : "ascending")
    : header.removeAttribute("aria-sort"));
  byId("page").textContent = rows.length
    ? `${first + 1} to ${first + rows.length} of ${counted(order.length, "cell")}` : "no cells";
  byId("back").disabled = state.page === 0;
  byId("next").disabled = state.page === pages - 1;
}
for (const [id, step] of [["back", -1], ["next", 1]])
  byId(id).addEventListener("click", () => { state.page += step; drawTable(); });

// --- the choosers
const pairs = metrics.flatMap((robust) => {
  const parts = robust.name.match(/^(|.*?\/)(worst|robust\/.+)$/);
  const clean = parts && metrics.find((metric) => metric.name === `${parts[1]}clean`);
  return clean ? [{ clean, robust }] : [];
});
byId("tradeoff").closest("section").hidden = !pairs.length;
byId("metric").append(...metrics.map((metric, k) => option(k, metric.name)));
byId("pair").append(...pairs.map((pair, k) => option(k, pair.robust.name)));
byId("column").append(option(-1, "none"), ...axes.map((axis, k) => option(k, axis.name)));
const few = axes.filter((axis) => axis.values.length <= 2 * COLOURS);
byId("colour").append(option(-1, "none"), ...few.map((axis, k) => option(k, axis.name)));
byId("colour").value = few.findIndex((axis) => !axis.name.includes("seed"));
const boxes = axes.map((axis, k) => {
  const box = make("input", { type: "checkbox", "data-axis": axis.name });
  box.addEventListener("change", () => {
    state.rows = axes.map((_, i) => i).filter((i) => boxes[i].checked);
    showChoices();
    drawPivot();
  });
  byId("rows").append(make("label", {}, box, axis.name));
  return box;
});
function showChoices() {
  state.rows = state.rows.filter((k) => k !== state.column);
  boxes.forEach((box, k) => {
    box.checked = state.rows.includes(k);
    box.disabled = k === state.column;
  });
  byId("metric").value = state.metric;
  byId("column").value = state.column;
  const pair = pairs.findIndex((p) => p.robust === metrics[state.metric]);
  if (pair >= 0) byId("pair").value = pair;
}
function drawPair() {
  const { clean, robust } = pairs[byId("pair").value] || {}, colour = few[byId("colour").value];
  if (clean) drawScatter(byId("scatter"), byId("legend"), shown, clean, robust, colour);
}
function draw() {
  byId("count").textContent = shown.length === all.length ? counted(all.length, "cell")
    : `${shown.length.toLocaleString("en")} of ${counted(all.length, "cell")}`;
  for (const head of document.querySelectorAll(".of"))
    head.textContent = label(metrics[state.metric]);
  drawPivot();
  drawEffects(byId("effects"), shown, metrics[state.metric]);
  drawPair();
  drawParallel(byId("parallel"), byId("drawn"), shown, metrics[state.metric]);
  drawTable();
}
for (const [name, redraw] of [["metric", draw], ["column", drawPivot]])
  byId(name).addEventListener("change", (event) => {
    state[name] = +event.target.value;
    showChoices();
    redraw();
  });
for (const id of ["pair", "colour"]) byId(id).addEventListener("change", drawPair);
let typing = 0;
byId("find").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(choose, 120);
});
byId("all").addEventListener("click", () => {
  byId("find").value = "";
  for (const { select } of filters) select.value = "";
  choose();
});
byId("controls").addEventListener("submit", (event) => event.preventDefault());
showChoices();
draw();
