/* The curves of the trials chosen in the list. */
(() => {
  "use strict";
  const { curves, colours } = pageCharts.data;
  const list = document.querySelector(".trials");
  const drawn = document.getElementById("drawn");
  if (!curves || !list) return;
  const MOST = 6;
  const SHAPES = ["circle", "square", "diamond", "triangle-up", "cross"];
  const DASHES = [[1, 0], [6, 3], [2, 2], [6, 2, 2, 2], [10, 3]];
  const SHORT = "datum.value < 1e-4 || datum.value >= 1e6 ? format(datum.value, '.0e') : format(datum.value, ',~r')";
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

  const labelOf = (trial) => buttons.get(trial).textContent;

  function points(trial, column) {
    const { x, y } = curves.trials[trial];
    const values = y[column];
    if (!values) return null;
    return Array.isArray(values[0]) ? { x: values[0], y: values[1] } : { x, y: values };
  }

  /** Powers of ten, over few of them 1, 2 and 5, and some beyond what is shown at first. */
  function logTicks(low, high) {
    const steps = high / low < 1000 ? [1, 2, 5] : [1];
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)) - 2; power <= Math.log10(high) + 2; power++) {
      ticks.push(...steps.map((step) => Number(`${step}e${power}`)));
    }
    return ticks;
  }

  /** One panel: of a single trial a colour for each curve, of several one for each trial. */
  function specOf(name, columns) {
    const values = [];
    const percent = name === "accuracy";
    const single = chosen.length === 1;
    for (const { trial } of chosen) {
      for (const column of columns) {
        const found = points(trial, column);
        const { label } = curves.columns[column];
        found?.x.forEach((x, i) => {
          const y = percent && found.y[i] !== null ? 100 * found.y[i] : found.y[i];
          values.push({ x, y, series: label, scheme: labelOf(trial), marked: found.x.length < 40 });
        });
      }
    }
    const known = values.map(({ y }) => y).filter((y) => y !== null);
    if (!known.length) return null;
    const least = Math.min(...known);
    const log = least > 0 && Math.max(...known) / least > SPREAD;
    const labels = columns.map((column) => curves.columns[column].label);
    const legend = columns.length > 1 ? { title: null, columns: 2 } : null;
    const colour = single
      ? { field: "series", scale: { domain: labels, range: colours.slice(0, labels.length) }, legend }
      : {
          field: "scheme",
          scale: {
            domain: chosen.map(({ trial }) => labelOf(trial)),
            range: chosen.map((each) => colours[each.colour]),
          },
          legend: null,
        };
    const by = (looks) => {
      return { field: "series", scale: { domain: labels, range: looks.slice(0, labels.length) }, legend };
    };
    const shown = { param: "shown", value: 1 };
    const marks = { condition: { test: { and: [{ param: "shown" }, "datum.marked"] }, value: 1 }, value: 0 };
    return {
      data: { values },
      height: 210,
      encoding: {
        x: { field: "x", type: "quantitative", title: "step", scale: { nice: false, padding: 6 } },
        y: {
          field: "y",
          type: "quantitative",
          title: percent ? "%" : null,
          scale: { nice: false, padding: 6, ...(log ? { type: "log" } : { zero: false }) },
          axis: { minExtent: 44, ...(log && { values: logTicks(least, Math.max(...known)), labelExpr: SHORT }) },
        },
        tooltip: [
          { field: "scheme", title: "trial" },
          { field: "series" },
          { field: "x", title: "step" },
          { field: "y", type: "quantitative", format: ".6~g" },
        ],
      },
      layer: [
        {
          mark: { type: "line", clip: true },
          params: [
            // Nothing but a pinch, or the wheel with Ctrl: the page is to be scrolled.
            {
              name: "moved",
              bind: "scales",
              select: { type: "interval", zoom: "wheel![event.ctrlKey]" },
            },
            { name: "shown", bind: "legend", select: { type: "point", fields: ["series"], toggle: "true" } },
          ],
          encoding: {
            stroke: colour,
            ...(single ? {} : { strokeDash: by(DASHES) }),
            detail: [{ field: "series" }, { field: "scheme" }],
            opacity: { condition: shown, value: 0.05 },
          },
        },
        {
          mark: { type: "point", filled: true, clip: true, size: 30, strokeWidth: 0 },
          encoding: { fill: colour, opacity: marks, ...(single ? {} : { shape: by(SHAPES) }) },
        },
      ],
    };
  }

  function key() {
    const items = document.createElement("ul");
    items.className = "key-of wide-key";
    for (const { trial, colour } of chosen) {
      const item = document.createElement("li");
      if (chosen.length > 1) {
        const swatch = document.createElement("span");
        swatch.className = "swatch";
        swatch.style.color = colours[colour];
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
      const spec = specOf(name, columns);
      if (!spec) continue;
      const panel = document.createElement("div");
      panel.className = "panel";
      const title = document.createElement("h4");
      title.textContent = name;
      const plot = document.createElement("div");
      plot.className = "plot";
      panel.append(title, plot);
      drawn.append(panel);
      pageCharts.show(plot, (width) => ({ ...spec, width: width - 80 }), 260, name);
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
