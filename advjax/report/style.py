"""The style sheet that the pages and reports share."""

STYLE = """
:root {
  --ink: #1c2024; --soft: #5b6570; --line: #d9dee3; --paper: #fff; --card: #f6f8fa;
  --good: #1a7f4b; --bad: #b8233a;
  --c0: #1f6fd6; --c1: #d1442f; --c2: #1d8a5b; --c3: #a36a00; --c4: #7a4bd0; --c5: #0d8299;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e9ec; --soft: #9aa5b1; --line: #353c44; --paper: #14171a; --card: #1c2126;
    --good: #4cc38a; --bad: #ff7b85;
    --c0: #6aabff; --c1: #ff8a75; --c2: #4cc38a; --c3: #e2ad4a; --c4: #b79bff; --c5: #4cc3d9;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1080px; padding: 28px 20px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1 { font-size: 27px; line-height: 1.2; margin: 0; }
h2 { font-size: 19px; margin: 0 0 10px; }
h3 { font-size: 15px; margin: 0 0 6px; }
p { margin: 0 0 10px; max-width: 46em; }
section { margin-top: 34px; }
.lead { color: var(--soft); margin: 6px 0 0; font-size: 16px; }
.note { color: var(--soft); font-size: 13px; margin: 8px 0 0; }
footer {
  margin-top: 40px; padding-top: 10px; border-top: 1px solid var(--line);
  color: var(--soft); font-size: 13px;
}
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td {
  padding: 5px 14px 5px 0; text-align: left; border-bottom: 1px solid var(--line);
  white-space: nowrap;
}
thead th { color: var(--soft); font-weight: 600; font-size: 13px; }
tbody th { font-weight: 500; }
.number { text-align: right; }
tbody tr:hover { background: var(--card); }
.facts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 0 28px;
  margin: 0;
}
.facts div {
  display: flex; justify-content: space-between; gap: 14px; padding: 4px 0;
  border-bottom: 1px solid var(--line);
}
dt { color: var(--soft); }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
figure {
  margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 14px;
}
.chart { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font-size: 14px; }
.end { text-anchor: end; }
.middle { text-anchor: middle; }
.grid, .axis { fill: none; stroke: var(--line); }
.axis { stroke: var(--soft); }
.line { fill: none; stroke: var(--k); stroke-width: 2; stroke-linejoin: round; }
.dashed .line { stroke-dasharray: 6 4; }
.band { fill: var(--k); opacity: .16; }
.mark { fill: var(--k); stroke: var(--card); stroke-width: 1; }
.c0 { --k: var(--c0); } .c1 { --k: var(--c1); } .c2 { --k: var(--c2); }
.c3 { --k: var(--c3); } .c4 { --k: var(--c4); } .c5 { --k: var(--c5); }
.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 8px 0 0; padding: 0;
  font-size: 13px;
}
.legend li { display: flex; align-items: center; gap: 6px; }
.row {
  display: grid; gap: 20px;
  grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr));
}
.gallery th, .gallery td {
  border: 0; padding: 3px 10px 3px 0; vertical-align: top; white-space: normal;
}
.gallery th { min-width: 104px; color: var(--soft); font-weight: 600; font-size: 13px; }
.gallery tr:hover { background: none; }
.picture { font-size: 12.5px; line-height: 1.35; }
.picture img {
  display: block; image-rendering: pixelated; border: 2px solid var(--line); border-radius: 4px;
}
.picture span { display: block; margin-top: 3px; }
.wrong img { border-color: var(--bad); }
.wrong span { color: var(--bad); }
.right img { border-color: var(--good); }
.right span { color: var(--good); }
@media print { body { max-width: none; } section { break-inside: avoid; } }
"""
