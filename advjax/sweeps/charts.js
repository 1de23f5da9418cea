const SVG = new Set(["svg", "g", "path", "circle", "text", "title"]);
const MARKS = [
  "m-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0 -6.8 0z", "m-3.2 -3.2h6.4v6.4h-6.4z",
  "m0 -4.2l4 7h-8z", "m0 -4.4l4.4 4.4l-4.4 4.4l-4.4 -4.4z",
];
const COLOURS = 6;  // classes c0 .. c5
const MOST_PLACES = 12;  // an axis with more values has a scale instead of a place for each
const RANGES = 16;  // an axis of random draws is shown in as many
const MOST_LINES = 2000;  // of parallel coordinates; more are no picture

// Elements are made, not parsed from text: no name or value can become markup.
function make(tag, attributes = {}, ...children) {
  const made = SVG.has(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Python's "%.{digits}g", so that numbers read as they do in the terminal.
function general(v, digits) {
  const [mantissa, power] = v.toExponential(digits - 1).split("e");
  const trim = (text) => text.includes(".") ? text.replace(/\.?0+$/, "") : text;
  if (power < -4 || power >= digits)
    return `${trim(mantissa)}e${power[0]}${power.slice(1).padStart(2, "0")}`;
  return trim(v.toFixed(Math.max(digits - 1 - power, 0)));
}
const said = (metric, v) =>
  v === null ? "\u2013" : metric.percent ? (100 * v).toFixed(1) : general(v, 4);
const label = (metric) => metric.name + (metric.percent ? ", %" : "");
const scaled = (metric, v) => metric.percent ? 100 * v : v;
const shortened = (text, most) => text.length > most ? text.slice(0, most - 1) + "\u2026" : text;

// Mean, and standard error of the mean where there are two numbers.
function summary(numbers) {
  const n = numbers.length, mean = numbers.reduce((sum, v) => sum + v, 0) / n;
  const squares = numbers.reduce((sum, v) => sum + (v - mean) ** 2, 0);
  return { n, mean, error: n > 1 ? Math.sqrt(squares / (n - 1) / n) : null };
}
const spread = (metric, error) => error === null ? ""
  : ` \u00b1 ${metric.percent ? (100 * error).toFixed(1) : general(error, 2)}`;

// Round numbers, evenly spaced, the outermost at or outside both ends.
function ticks(low, high, most = 6) {
  if (high <= low) {
    const margin = Math.abs(low) / 2 || 1;
    [low, high] = [low - margin, high + margin];
  }
  const size = (high - low) / (most - 1), power = 10 ** Math.floor(Math.log10(size));
  const step = power * [1, 2, 2.5, 5, 10].find((m) => m * power >= size * 0.999);
  const found = [];
  for (let i = Math.floor(low / step + 1e-9); i <= Math.ceil(high / step - 1e-9); i++)
    found.push(+(i * step).toPrecision(12));
  return found;
}
function decades(low, high) {
  const found = [];
  for (let p = Math.ceil(Math.log10(low)); p <= Math.log10(high); p++) found.push(+`1e${p}`);
  return found;
}
function scale(low, high, from, to, { log = false, wide = false, most = 6 } = {}) {
  const marks = log ? decades(low, high) : ticks(low, high, most);
  if (wide || high <= low) [low, high, log] = [marks[0], marks.at(-1), false];
  const bend = log ? Math.log : (v) => v;
  const at = (v) => from + (to - from) * (bend(v) - bend(low)) / (bend(high) - bend(low));
  const inside = marks.filter((v) => v >= low && v <= high);
  return { at, low, high, ticks: inside.map((v) => [at(v), general(v, 4)]) };
}

// The order of an axis in equal parts, and how a part is called.
const sliced = (order, n) => Array.from({ length: n }, (_, k) => order.slice(
  Math.floor(k * order.length / n), Math.floor((k + 1) * order.length / n)));
const partName = (axis, part) => axis.values[part[0]]
  + (part.length > 1 ? ` to ${axis.values[part.at(-1)]}` : "");

// Where the values of an axis stand: each at its own place, or many numbers on a scale.
function standing(axis, used, from, to) {
  if (axis.numbers && used.length > MOST_PLACES) {
    const [low, middle, high] = [0, used.length >> 1, used.length - 1]
      .map((k) => axis.numbers[used[k]]);
    const made = scale(low, high, from, to, { log: low > 0 && middle < high / 5 });
    return { at: (i) => made.at(axis.numbers[i]), ticks: made.ticks, many: true };
  }
  const place = new Map(used.map((i, k) => [i, from + (k + 0.5) * (to - from) / used.length]));
  const each = Math.ceil(used.length / MOST_PLACES);
  const marks = used.filter((_, k) => k % each === 0).map((i) => [place.get(i), axis.values[i]]);
  return { at: (i) => place.get(i), ticks: marks, many: used.length > MOST_PLACES };
}

const canvas = (width, height, title) => make("svg", {
  class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
function frame(box, x, y, xLabel, yLabel, title) {
  const { width, height, left, right, top, bottom } = box;
  const chart = canvas(width, height, title);
  for (const [at, text] of y.ticks)
    chart.append(
      make("path", { class: "grid", d: `M${left} ${at.toFixed(1)}H${right}` }),
      make("text", { x: left - 7, y: at.toFixed(1), dy: ".32em", class: "end" }, text));
  const room = (right - left) / Math.max(x.ticks.length, 1) / 7.5;
  const each = Math.ceil(2.5 / room);
  x.ticks.forEach(([at, text], k) => {
    chart.append(make("path", { class: "axis", d: `M${at.toFixed(1)} ${bottom}v5` }));
    if (k % each === 0)
      chart.append(make(
        "text", { x: at.toFixed(1), y: bottom + 19, class: "middle" },
        shortened(text, Math.max(Math.floor(room * each), 3)), make("title", {}, text)));
  });
  chart.append(make("path", { class: "axis", d: `M${left} ${bottom}H${right}` }));
  if (xLabel)
    chart.append(make("text", { x: (left + right) / 2, y: height - 6, class: "middle" }, xLabel));
  if (yLabel)
    chart.append(make("text", {
      transform: `translate(14 ${(top + bottom) / 2}) rotate(-90)`, class: "middle" }, yLabel));
  return chart;
}

// What advjax.sweeps.tabulate says, as a heat map.
function drawPivot() {
  const metric = metrics[state.metric], over = axes[state.column];
  const rowAxes = state.rows.map((k) => axes[k]);
  const rows = new Map(), columns = new Set(), places = new Map();
  for (const c of shown) {
    const row = rowAxes.map((axis) => axis.cells[c]), column = over ? over.cells[c] : 0;
    const key = row.join();
    rows.set(key, row);
    columns.add(column);
    const place = `${key}|${column}`;
    if (places.has(place)) places.get(place).push(c); else places.set(place, [c]);
  }
  const sorted = [...rows].sort(([, a], [, b]) => {
    const k = a.findIndex((value, i) => value !== b[i]);
    return k < 0 ? 0 : rowAxes[k].place[a[k]] - rowAxes[k].place[b[k]];
  });
  const across = [...columns].sort((a, b) => over ? over.place[a] - over.place[b] : 0);
  const kept = sorted.slice(0, MOST_ROWS), wide = across.slice(0, MOST_COLUMNS);
  const values = kept.map(([key]) => wide.map((column) => valueOf(metric,
    places.get(`${key}|${column}`) || [])));
  const means = values.flat().filter((v) => v.numbers.length).map((v) => v.mean);
  const low = Math.min(...means), high = Math.max(...means);
  const head = wide.map((i) => make("th", { scope: "col" }, over ? over.values[i] : label(metric)));
  const titles = (rowAxes.length ? rowAxes.map((axis) => axis.name) : [""])
    .map((name) => make("th", { scope: "col", class: "axis" }, name));
  const top = over ? [make("tr", {}, make("th", { colspan: titles.length }), make("th",
    { colspan: wide.length || 1, class: "axis" }, over.name))] : [];
  let before = [];
  const body = kept.map(([, row], r) => {
    const same = row.findIndex((value, k) => value !== before[k]);
    before = row;
    const names = row.map((value, k) => make("th", { scope: "row", class: k < same ? "again" : "" },
      rowAxes[k].values[value]));
    return make("tr", {}, ...(names.length ? names : [make("th", { scope: "row" }, "all")]),
      ...values[r].map((v) => placeOf(metric, v, (v.mean - low) / (high - low))));
  });
  byId("pivot").replaceChildren(make("thead", {}, ...top, make("tr", {}, ...titles, ...head)),
    make("tbody", {}, ...body));
  const rest = axes.filter((axis) => axis !== over && !rowAxes.includes(axis));
  byId("over").textContent = metric.name + (metric.percent ? " in percent" : "")
    + (rest.length ? `, mean \u00b1 standard error over ${rest.map((a) => a.name).join(", ")}` : "")
    + (kept.length < sorted.length ? `; the first ${MOST_ROWS} of ${sorted.length} rows` : "")
    + (wide.length < across.length ? `; ${MOST_COLUMNS} of ${across.length} columns` : "");
  const ramp = means.length ? [make("span", {}, said(metric, low) + " ",
    make("span", { class: "ramp" }), " " + said(metric, high))] : [];
  byId("ramp").replaceChildren(...ramp);
}
function valueOf(metric, members) {
  const found = { members, numbers: [], ko: 0, failed: 0, waiting: 0 };
  for (const c of members) {
    if (cells.status[c] === "waiting" || cells.status[c] === "running") found.waiting++;
    else if (metric.values[c] !== null) found.numbers.push(metric.values[c]);
    else found[cells.status[c] === "ko" ? "ko" : "failed"]++;
  }
  return { ...found, ...summary(found.numbers) };
}
function placeOf(metric, value, share) {
  const { members, numbers, ko, failed, waiting, mean, error } = value, lost = ko + failed;
  const dots = waiting ? "..." : "", hint = [counted(members.length, "cell"),
    ...new Set(members.map(reason).filter(Boolean))].slice(0, 6).join("\n");
  if (!members.length) return make("td", { class: "place empty" });
  if (!numbers.length) {
    const kind = ko ? "ko" : failed ? "failed" : "waiting";
    const word = kind === "waiting" ? "" : STATUS[kind];
    return make("td", { class: `place ${kind}`, title: hint }, word + dots);
  }
  const made = make("td", { class: "place", title: hint,
    style: `--share:${Number.isFinite(share) ? share.toFixed(3) : 0.5}` }, said(metric, mean));
  if (error !== null)
    made.append(make("small", {}, spread(metric, error)));
  if (lost) made.append(make("small", { class: "lost" }, ` (${lost} KO)`));
  made.append(dots);
  return made;
}

// Small multiples: the mean over everything else, at each value of each axis.
function drawEffects(where, shown, metric) {
  const found = axes.map((axis) => {
    const numbers = axis.values.map(() => []);
    for (const cell of shown)
      if (metric.values[cell] !== null) numbers[axis.cells[cell]].push(metric.values[cell]);
    const used = axis.order.filter((i) => numbers[i].length);
    // Values drawn at random: a mean needs several of them.
    const parts = axis.numbers && used.length > Math.max(RANGES, shown.length / 4)
      ? sliced(used, RANGES) : used.map((i) => [i]);
    const points = parts.map((part) => ({ i: part[part.length >> 1], name: partName(axis, part),
      ...summary(part.flatMap((i) => numbers[i])) }));
    const means = points.map((p) => p.mean);
    return { axis, points, spread: Math.max(...means) - Math.min(...means) };
  }).filter((f) => f.points.length > 1).sort((a, b) => b.spread - a.spread);
  const ends = found.flatMap((f) => f.points.flatMap((p) => [
    scaled(metric, p.mean - (p.error || 0)), scaled(metric, p.mean + (p.error || 0))]));
  if (!ends.length) return where.replaceChildren(nothing("No axis has two values with numbers."));
  const box = { width: 340, height: 206, left: 48, right: 332, top: 10, bottom: 174 };
  const low = ends.reduce((a, b) => Math.min(a, b)), high = ends.reduce((a, b) => Math.max(a, b));
  const y = scale(low, high, box.bottom, box.top, { wide: true, most: 5 });
  where.replaceChildren(...found.map(({ axis, points }) => {
    const x = standing(axis, points.map((p) => p.i), box.left, box.right);
    const title = `${label(metric)} against ${axis.name}`;
    const chart = frame(box, x, y, "", "", title);
    const group = make("g", { class: "c0" });
    const at = (p, move = 0) =>
      `${x.at(p.i).toFixed(1)} ${y.at(scaled(metric, p.mean + move)).toFixed(1)}`;
    const line = points.map((p) => at(p)).join("L");
    if (axis.numbers) group.append(make("path", { class: "line thin", d: "M" + line }));
    if (x.many && points.every((p) => p.error !== null)) {
      const upper = points.map((p) => at(p, p.error)).join("L");
      const lower = points.map((p) => at(p, -p.error)).reverse().join("L");
      group.prepend(make("path", { class: "band", d: `M${upper}L${lower}z` }));
    }
    for (const p of points) {
      const mean = said(metric, p.mean) + spread(metric, p.error);
      const hint = `${axis.name} ${p.name}: ${mean} (${counted(p.n, "cell")})`;
      const mark = make("g", { class: "point" }, make("title", {}, hint));
      if (!x.many && p.error !== null)
        mark.append(make("path", { class: "line", d: `M${at(p, -p.error)}L${at(p, p.error)}` }));
      mark.append(make("path", { class: "mark", d: `M${at(p)}${MARKS[0]}` }));
      group.append(mark);
    }
    chart.append(group);
    return make("figure", {}, make("h3", {}, axis.name), chart);
  }));
}

// Robust against clean accuracy, one mark a cell.
function drawScatter(where, legend, shown, clean, robust, colour) {
  const points = shown.filter((c) => clean.values[c] !== null && robust.values[c] !== null);
  legend.replaceChildren();
  if (!points.length) return where.replaceChildren(nothing("No cell has both numbers yet."));
  const box = { width: 760, height: 440, left: 66, right: 742, top: 12, bottom: 394 };
  const ends = (metric) => points.map((c) => scaled(metric, metric.values[c])).reduce(
    ([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
  const x = scale(...ends(clean), box.left, box.right, { wide: true, most: 8 });
  const y = scale(...ends(robust), box.bottom, box.top, { wide: true });
  const chart = frame(box, x, y, label(clean), label(robust), `${robust.name} over ${clean.name}`);
  const from = Math.max(x.low, y.low), to = Math.min(x.high, y.high);
  if (to > from)
    chart.append(make("path", {
      class: "grid dashes", d: `M${x.at(from)} ${y.at(from)}L${x.at(to)} ${y.at(to)}` }));
  const at = (c) => [x.at(scaled(clean, clean.values[c])), y.at(scaled(robust, robust.values[c]))];
  const groups = colour ? colour.order : [0];
  const spots = groups.map((i) => [i, points.filter((c) => !colour || colour.cells[c] === i)]);
  for (const [k, [i, members]] of spots.entries()) {
    const shape = MARKS[k % MARKS.length];
    const d = members.map((c) => "M" + at(c).map((v) => v.toFixed(1)).join(" ") + shape).join("");
    chart.append(make("g", { class: `c${k % COLOURS} spots` }, make("path", { class: "mark", d })));
    if (colour)
      legend.append(make("li", { class: `c${k % COLOURS}` },
        make("svg", { viewBox: "-7 -7 14 14", width: 14, height: 14 },
          make("path", { class: "mark", d: "M0 0" + shape })),
        `${colour.name} ${colour.values[i]}`));
  }
  const order = [...points].sort((a, b) => clean.values[a] - clean.values[b]);
  explore(chart, order, (px, py) => {
    let best = null, least = 14 ** 2;
    for (const c of points) {
      const [cx, cy] = at(c), far = (cx - px) ** 2 + (cy - py) ** 2;
      if (far < least) [best, least] = [c, far];
    }
    return best;
  }, (c) => ({ d: `M${at(c).join(" ")}m-7 0a7 7 0 1 0 14 0a7 7 0 1 0 -14 0`, at: at(c) }),
  [robust, clean]);
  where.replaceChildren(chart);
}

// A line for each cell through its values and, at the end, its metric.
function drawParallel(where, note, shown, metric) {
  const ended = shown.filter((c) => !["waiting", "running"].includes(cells.status[c]));
  // By a hash of the place: every n-th would meet the same seeds again and again.
  const drawn = ended.length <= MOST_LINES ? ended : ended.filter(
    (c) => Math.imul(c + 1, 2654435761) >>> 0 < 2 ** 32 * MOST_LINES / ended.length);
  const lost = drawn.filter((c) => metric.values[c] === null);
  const good = drawn.filter((c) => metric.values[c] !== null)
    .sort((a, b) => metric.values[a] - metric.values[b]);
  note.textContent = drawn.length < ended.length
    ? `${drawn.length} of ${ended.length} lines are drawn, a sample.` : "";
  if (!drawn.length) return where.replaceChildren(nothing("No cell has ended yet."));
  const width = 1040, height = 380, top = 40, bottom = 330, left = 76, right = 990;
  const gap = (right - left) / Math.max(axes.length, 1);
  // Seeds first: what is next to the metric is what it depends on.
  const seed = (axis) => axis.name.includes("seed") ? 0 : 1;
  const columns = [...axes].sort((a, b) => seed(a) - seed(b)).map((axis) => {
    const has = new Set(drawn.map((c) => axis.cells[c]));
    return { name: axis.name, cells: axis.cells,
      ...standing(axis, axis.order.filter((i) => has.has(i)), bottom, top) };
  });
  const numbers = good.map((c) => scaled(metric, metric.values[c]));
  const last = scale(numbers.length ? numbers[0] : 0, numbers.length ? numbers.at(-1) : 1,
    bottom, top, { wide: true });
  columns.push({ name: label(metric), ticks: last.ticks });
  if (lost.length) columns.at(-1).ticks = [...last.ticks, [bottom + 30, "none"]];
  const path = new Map(drawn.map((c) => [c, columns.map((column, k) =>
    k < axes.length ? column.at(column.cells[c])
      : metric.values[c] === null ? bottom + 30 : last.at(scaled(metric, metric.values[c])))]));
  const d = (c) => "M" + path.get(c).map((y, k) => `${(left + k * gap).toFixed(1)} ${y.toFixed(1)}`)
    .join("L");
  const chart = canvas(width, height, `parallel coordinates of the axes and ${metric.name}`);
  chart.append(make("path", { class: "way none", d: lost.map(d).join("") }));
  sliced(good, 5).forEach((part, k) =>
    chart.append(make("path", { class: `way q${k}`, d: part.map(d).join("") })));
  columns.forEach(({ name, ticks: marks }, k) => {
    const x = left + k * gap, inner = k < columns.length - 1;
    chart.append(make("path", { class: "axis", d: `M${x} ${top - 8}V${bottom + 8}` }),
      make("text", { x: inner ? x : x + 44, y: 18, class: inner ? "middle name" : "end name" },
        shortened(name, Math.max(Math.floor(gap / 8), 6)), make("title", {}, name)));
    for (const [y, text] of marks)
      chart.append(make("text", { x: inner ? x - 7 : x + 7, y, dy: ".32em",
        class: inner ? "end halo" : "halo" }, shortened(text, Math.max(gap / 9, 8))));
  });
  explore(chart, [...lost, ...good], (px, py) => {
    const k = Math.min(Math.max(Math.floor((px - left) / gap), 0), columns.length - 2);
    const share = Math.min(Math.max((px - left) / gap - k, 0), 1);
    let best = null, least = 12;
    for (const c of drawn) {
      const ys = path.get(c), far = Math.abs(ys[k] + (ys[k + 1] - ys[k]) * share - py);
      if (far < least) [best, least] = [c, far];
    }
    return best;
  }, (c) => ({ d: d(c), at: [right, path.get(c).at(-1)] }), [metric]);
  where.replaceChildren(chart);
}

// Hovering, or the arrow keys, tell the configuration of one cell after the other.
function explore(chart, order, near, outline, told) {
  const [, , width, height] = chart.getAttribute("viewBox").split(" ").map(Number);
  const tip = document.getElementById("tip"), light = make("path", { class: "light" });
  let current = null;
  chart.append(light);
  chart.setAttribute("tabindex", 0);
  const tell = (cell, x, y) => {
    current = cell;
    tip.hidden = cell === null;
    light.setAttribute("d", cell === null ? "" : outline(cell).d);
    if (cell === null) return;
    const lines = told.map((metric) => `${label(metric)}: ${said(metric, metric.values[cell])}`);
    if (cells.status[cell] !== "done") lines.push(`${cells.status[cell]}: ${reason(cell)}`);
    lines.push(...axes.map((axis) => `${axis.name} ${axis.values[axis.cells[cell]]}`));
    tip.replaceChildren(...lines.map((line) => make("div", {}, line)));
    const rect = chart.getBoundingClientRect();
    const at = outline(cell).at;
    x = x ?? rect.left + at[0] * rect.width / width;
    y = y ?? rect.top + at[1] * rect.height / height;
    tip.style.left = `${Math.max(Math.min(x + 16, innerWidth - tip.offsetWidth - 8), 0)}px`;
    tip.style.top = `${Math.max(Math.min(y + 16, innerHeight - tip.offsetHeight - 8), 0)}px`;
  };
  chart.addEventListener("pointermove", (event) => {
    const rect = chart.getBoundingClientRect();
    tell(near((event.clientX - rect.left) * width / rect.width,
      (event.clientY - rect.top) * height / rect.height), event.clientX, event.clientY);
  });
  chart.addEventListener("pointerleave", () => tell(null));
  chart.addEventListener("blur", () => tell(null));
  chart.addEventListener("keydown", (event) => {
    const at = order.indexOf(current), end = order.length - 1;
    const next = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at < 0 ? end : at - 1,
      ArrowDown: at < 0 ? end : at - 1, Home: 0, End: end }[event.key];
    if (event.key === "Escape") tell(null);
    if (next === undefined) return;
    event.preventDefault();
    tell(order[Math.min(Math.max(next, 0), end)]);
  });
}
const nothing = (text) => make("p", { class: "note" }, text);
