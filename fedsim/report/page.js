// The page's charts, sortable tables and exports. It asks nothing of the network, and without it the page shows
// the static pictures.
"use strict";
(function () {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const root = document.documentElement;
  const narrow = () => window.innerWidth < 640;

  function colour(name) {
    return getComputedStyle(root).getPropertyValue(name).trim() || name;
  }
  function translucent(value) {
    const hex = value.replace("#", "");
    const parts = [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
    return "rgba(" + parts.join(",") + ",0.22)";
  }
  // Names of CSS variables become colours, at whatever depth they stand.
  function painted(value, key) {
    if (Array.isArray(value)) return value.map((one) => painted(one, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, painted(one, name)]));
    }
    if (typeof value === "string" && value.startsWith("--")) {
      return key === "fillcolor" ? translucent(colour(value)) : colour(value);
    }
    return value;
  }
  function axis(own) {
    return Object.assign({ gridcolor: colour("--line"), zeroline: false, automargin: true }, own);
  }
  function layout(own) {
    const merged = Object.assign({}, own);
    for (const name of ["xaxis", "yaxis", "yaxis2"]) if (own[name]) merged[name] = axis(own[name]);
    return Object.assign(merged, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", height: own.height || 340,
      font: { color: colour("--ink"), family: "system-ui, sans-serif", size: narrow() ? 11 : 13 },
      margin: { l: 50, r: own.yaxis2 ? 50 : 12, t: 16, b: 40 },
      legend: { orientation: "h", y: -0.22 }, hovermode: "closest",
    });
  }
  const settings = { displayModeBar: false, responsive: true };

  function gapFigure(chart, frame) {
    const bars = (side, name, tint, dash) => ({
      type: "scatter", mode: "lines", line: { shape: "hvh", color: tint, width: 2.5, dash: dash },
      fill: "tozeroy", fillcolor: tint, x: chart.x, y: frame[side], name: name });
    return { data: painted([bars("members", "members", "--s1", "solid"),
                            bars("nonmembers", "non-members", "--s0", "dash")]),
      layout: layout(painted({
        xaxis: { title: { text: "how sure the model is of the record's true label" },
          tickvals: chart.ticks.values, ticktext: chart.ticks.text, range: [-9, 9] },
        yaxis: { title: { text: "share of the records" }, range: [0, chart.most * 1.08] },
        shapes: [{ type: "line", x0: frame.threshold, x1: frame.threshold, y0: 0, y1: 1, yref: "paper",
          line: { color: "--ink", dash: "dashdot", width: 1.5 } }],
        annotations: [{ x: Math.max(-8.5, Math.min(8.5, frame.threshold)), y: 1.04, yref: "paper",
          text: "the adversary says ‘member’ →", showarrow: false, xanchor: frame.threshold > 2 ? "right" : "left" }],
      })) };
  }
  function share(value) { return Math.round(100 * value) + " %"; }
  function gap(place, chart) {
    const slider = document.getElementById("gap-round"), words = document.getElementById("gap-words");
    const draw = () => {
      const frame = chart.frames[Number(slider.value)], figure = gapFigure(chart, frame);
      const known = frame.loss == null ? "" :
        " Held-out accuracy " + frame.accuracy.toFixed(2) + ", loss " + frame.loss.toFixed(2) + ".";
      words.textContent = "Round " + frame.round + ": right of its own threshold lie " + share(frame.tpr) +
        " of the members and " + share(frame.fpr) + " of the non-members; AUC of this model alone " +
        frame.auc.toFixed(2) + "." + known;
      slider.setAttribute("aria-valuetext", "round " + frame.round);
      return Plotly.react(place, figure.data, figure.layout, settings);
    };
    slider.oninput = draw;
    return draw();
  }
  function drawAll() {
    const drawn = Object.entries(charts).map(([name, chart]) => {
      const place = document.getElementById("chart-" + name);
      if (!place) return null;
      if (chart.kind === "gap") return gap(place, chart);
      return Plotly.react(place, painted(chart.data), layout(painted(chart.layout)), settings);
    });
    return Promise.all(drawn);
  }

  // Tables: sorted at a click on a heading, copied as CSV or LaTeX.
  const shown = (cell) => (cell.dataset.value || cell.textContent).replace(/\s+/g, " ").trim();
  function figure(cell) {
    const main = cell.firstChild && cell.firstChild.nodeType === 3 ? cell.firstChild.textContent : shown(cell);
    const number = parseFloat(main.replace("−", "-").replace(/^[^\d.\-]*/, ""));
    return Number.isNaN(number) ? null : number;
  }
  function sortBy(table, column, button) {
    const down = button.getAttribute("aria-sort") !== "descending";
    table.querySelectorAll("thead th").forEach((th) => th.removeAttribute("aria-sort"));
    button.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0], rows = Array.from(body.rows).filter((row) => row.cells.length > column);
    const key = (row) => { const cell = row.cells[column], n = figure(cell); return n === null ? shown(cell) : n; };
    rows.sort((one, other) => {
      const a = key(one), b = key(other);
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return down ? -order : order;
    });
    rows.forEach((row) => body.appendChild(row));
  }
  function grid(table) {
    return Array.from(table.rows).map((row) => Array.from(row.cells).flatMap((cell) =>
      [shown(cell)].concat(Array(Math.max(0, cell.colSpan - 1)).fill(""))));
  }
  function csv(table) {
    return grid(table).map((row) => row.map((one) => '"' + one.replace(/"/g, '""') + '"').join(",")).join("\r\n");
  }
  const special = { "&": "\\&", "%": "\\%", "#": "\\#", _: "\\_", $: "\\$", "{": "\\{", "}": "\\}" };
  function latex(table) {
    const rows = grid(table).map((row) => row.map((one) => one.replace(/[&%#_${}]/g, (c) => special[c])).join(" & ") + " \\\\");
    const columns = "l" + "r".repeat(Math.max(0, grid(table)[0].length - 1));
    rows.splice(1, 0, "\\midrule");
    return "\\begin{tabular}{" + columns + "}\n\\toprule\n" + rows.join("\n") + "\n\\bottomrule\n\\end{tabular}\n";
  }
  function save(name, text, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  function button(words, act) {
    const one = document.createElement("button");
    one.type = "button"; one.className = "tool"; one.textContent = words; one.onclick = act;
    return one;
  }
  function tools(table, place) {
    const name = table.dataset.name || "table-" + (place + 1), bar = document.createElement("div");
    bar.className = "tools";
    bar.append(button("CSV", () => save(name + ".csv", csv(table), "text/csv")),
               button("LaTeX", () => save(name + ".tex", latex(table), "application/x-tex")));
    table.closest(".scroll").after(bar);
    if (table.tHead) Array.from(table.tHead.rows[0].cells).forEach((th, column) => {
      if (table.querySelector("thead [colspan]")) return;
      th.tabIndex = 0; th.classList.add("sortable");
      th.onclick = () => sortBy(table, column, th);
      th.onkeydown = (event) => { if (event.key === "Enter") sortBy(table, column, th); };
    });
  }
  document.querySelectorAll(".scroll > table").forEach(tools);
  window.fedsim = { csv: csv, latex: latex, drawn: false };

  if (window.Plotly) {
    root.classList.add("live");
    drawAll().then(() => { window.fedsim.drawn = true; });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  }
})();
