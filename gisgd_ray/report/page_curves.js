/* The curves of the trials chosen in the list. */
(() => {
  "use strict";
  const { curves, colours } = pageCharts.data;
  const list = document.querySelector(".trials");
  const drawn = document.getElementById("drawn");
  if (!curves || !list) return;
  const MOST = 6;
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x"];
  const SPREAD = 30; // above this ratio of the largest to the smallest the axis is logarithmic
  const panels = new Map();
  curves.columns.forEach((column, i) => {
    if (!panels.has(column.panel)) panels.set(column.panel, []);
    panels.get(column.panel).push(i);
  });
  const buttons = new Map();
  for (const button of list.querySelectorAll("button")) {
    buttons.set(Number(button.dataset.trial), button);
  }
  const chosen = []; // each {trial, colour}; a trial keeps its colour as long as it is shown

  const escaped = (text) =>
    text.replace(/[&<>{}]/g, (c) => `&#${c.charCodeAt(0)};`);
  const labelOf = (trial) => buttons.get(trial).textContent;

  function points(trial, column) {
    const { x, y } = curves.trials[trial];
    const values = y[column];
    if (!values) return null;
    return Array.isArray(values[0]) ? { x: values[0], y: values[1] } : { x, y: values };
  }

  function figureOf(name, columns) {
    const data = [];
    const percent = name === "accuracy";
    const single = chosen.length === 1;
    for (const { trial, colour } of chosen) {
      columns.forEach((column, place) => {
        const found = points(trial, column);
        if (!found) return;
        const { label } = curves.columns[column];
        const own = single ? colours[place % colours.length] : colours[colour];
        const y = percent ? found.y.map((v) => (v === null ? null : 100 * v)) : found.y;
        const count = found.x.length;
        data.push({
          type: "scatter",
          x: found.x,
          y,
          name: escaped(single ? label : `${labelOf(trial)}: ${label}`),
          mode: count === 1 ? "markers" : count < 40 ? "lines+markers" : "lines",
          line: { color: own, width: 1.8, dash: single ? "solid" : DASHES[place] },
          marker: { color: own, size: count === 1 ? 9 : 4, symbol: SYMBOLS[place] },
          showlegend: single,
          hovertemplate: "<b>%{fullData.name}</b><br>step %{x}: %{y}<extra></extra>",
        });
      });
    }
    if (!single && columns.length > 1) {
      columns.forEach((column, place) => {
        data.push({
          type: "scatter", x: [null], y: [null], mode: "lines", hoverinfo: "skip",
          name: escaped(curves.columns[column].label),
          line: { color: "#555555", width: 1.8, dash: DASHES[place] },
        });
      });
    }
    const values = data.flatMap((trace) => trace.y).filter((v) => v !== null);
    const least = Math.min(...values);
    const log = least > 0 && Math.max(...values) / least > SPREAD;
    const yaxis = { type: log ? "log" : "linear", hoverformat: ".6~g", automargin: true };
    if (percent) yaxis.title = { text: "%" };
    const decades = log ? Math.log10(Math.max(...values) / least) : 0;
    if (log) Object.assign(yaxis, { dtick: decades > 2 ? Math.ceil(decades / 6) : "D2" });
    if (decades > 3) yaxis.exponentformat = "power";
    const xaxis = { title: { text: "step" }, hoverformat: "d", automargin: true, rangemode: "tozero" };
    const layout = { xaxis: { zeroline: false, ...xaxis }, yaxis: { zeroline: false, ...yaxis } };
    layout.hovermode = "closest";
    layout.showlegend = columns.length > 1;
    return data.some((trace) => trace.showlegend !== false || !single) ? { data, layout } : null;
  }

  function key() {
    const items = document.createElement("ul");
    items.className = "key-of wide-key";
    for (const { trial, colour } of chosen) {
      const item = document.createElement("li");
      if (chosen.length > 1) {
        const swatch = document.createElement("span");
        swatch.className = "swatch solid";
        swatch.dataset.colour = colours[colour];
        swatch.style.color = pageCharts.shade(colours[colour]);
        item.append(swatch);
      }
      item.append(labelOf(trial));
      items.append(item);
    }
    const close = document.createElement("button");
    close.type = "button";
    close.textContent = "Close";
    close.addEventListener("click", () => {
      chosen.length = 0;
      update();
      list.focus({ preventScroll: true });
    });
    const item = document.createElement("li");
    item.append(close);
    items.append(item);
    return items;
  }

  function update() {
    drawn.querySelectorAll(".plot").forEach((div) => pageCharts.drop(div));
    drawn.replaceChildren();
    for (const [trial, button] of buttons) {
      button.setAttribute("aria-pressed", chosen.some((each) => each.trial === trial));
    }
    if (!chosen.length) return;
    drawn.append(key());
    for (const [name, columns] of panels) {
      const figure = figureOf(name, columns);
      if (!figure) continue;
      const panel = document.createElement("div");
      panel.className = "panel";
      const title = document.createElement("h4");
      title.textContent = name;
      const plot = document.createElement("div");
      plot.className = "plot";
      panel.append(title, plot);
      drawn.append(panel);
      pageCharts.show(plot, figure, 280, name);
    }
  }

  function toggle(trial) {
    const place = chosen.findIndex((each) => each.trial === trial);
    if (place >= 0) {
      chosen.splice(place, 1);
    } else {
      if (chosen.length === MOST) chosen.shift();
      const taken = new Set(chosen.map((each) => each.colour));
      chosen.push({ trial, colour: colours.findIndex((_, i) => !taken.has(i)) });
    }
    update();
  }

  list.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) toggle(Number(button.dataset.trial));
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-open]");
    if (!link) return;
    const trial = Number(link.dataset.open);
    if (!chosen.some((each) => each.trial === trial)) toggle(trial);
  });
})();
