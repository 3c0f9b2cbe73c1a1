/* The curves of the trials chosen in the list. */
(() => {
  "use strict";
  const { curves, colours } = pageCharts.data;
  const list = document.querySelector(".trials");
  const drawn = document.getElementById("drawn");
  if (!curves || !list) return;
  const MOST = 6;
  const buttons = new Map();
  for (const button of list.querySelectorAll("button")) {
    buttons.set(Number(button.dataset.trial), button);
  }
  const chosen = []; // each {trial, colour}; a trial keeps its colour as long as it is shown

  const labelOf = (trial) => buttons.get(trial).textContent;
  const alike = (trial) => chosen.filter((each) => labelOf(each.trial) === labelOf(trial)).length > 1;
  const nameOf = (trial) => labelOf(trial) + (alike(trial) ? ` (${curves.trials[trial].id})` : "");

  function points(trial, column) {
    const { x, y } = curves.trials[trial];
    const values = y[column];
    if (!values) return null;
    return Array.isArray(values[0]) ? { x: values[0], y: values[1] } : { x, y: values };
  }

  /** A panel's chart with the curves of the trials chosen. */
  function specOf({ name, places, single, several }) {
    const values = [];
    for (const { trial } of chosen) {
      for (const place of places) {
        const found = points(trial, place);
        found?.x.forEach((x, i) => {
          const y = found.y[i] === null || name !== "accuracy" ? found.y[i] : 100 * found.y[i];
          const marked = found.x.length < 40;
          const series = curves.columns[place].label;
          values.push({ x, y, series, scheme: nameOf(trial), marked, drawn: "line" });
        });
      }
    }
    if (!values.some(({ y }) => y !== null)) return null;
    const scale = {
      domain: chosen.map(({ trial }) => nameOf(trial)),
      range: chosen.map(({ colour }) => colours[colour]),
    };
    const ofTrials = (_, value) => (value?.domain?.[0] === "" ? scale : value);
    const spec = JSON.parse(JSON.stringify(chosen.length === 1 ? single : several), ofTrials);
    for (const data of Object.keys(spec.datasets)) spec.datasets[data] = values;
    return spec;
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
      item.append(nameOf(trial));
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
    for (const each of curves.panels) {
      const spec = specOf(each);
      if (!spec) continue;
      const panel = document.createElement("div");
      panel.className = "panel";
      const title = document.createElement("h4");
      title.textContent = each.name;
      const plot = document.createElement("div");
      plot.className = "plot";
      panel.append(title, plot);
      drawn.append(panel);
      pageCharts.show(plot, (width) => pageCharts.fitted(spec, width), 260, each.name);
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
