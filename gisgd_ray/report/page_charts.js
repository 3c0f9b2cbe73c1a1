/* Charts drawn by Vega-Lite; their colours are the style sheet's. */
window.pageCharts = (() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const NARROW = 560;
  const charts = new Map(); // element: {spec: its specification at a width, title, width, view}

  async function draw(div) {
    const chart = charts.get(div);
    chart.width = div.clientWidth;
    chart.view?.finalize();
    const config = structuredClone(data.config);
    if (chart.width < NARROW) config.legend.layout = { top: { direction: "vertical" } };
    const options = { actions: false, renderer: "svg", tooltip: { theme: "custom" } };
    const inner = document.createElement("div"); // Vega gives it a role and a name of its own
    div.replaceChildren(inner);
    const spec = { ...chart.spec(chart.width), description: chart.title, config };
    const { view } = await vegaEmbed(inner, spec, options);
    // Taken away meanwhile, or drawn anew.
    if (charts.get(div) !== chart || inner.parentNode !== div) return view.finalize();
    chart.view = view;
    div.dataset.drawn = "";
  }

  let waiting;
  const resized = new ResizeObserver(() => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      for (const [div, { width }] of charts) if (width !== div.clientWidth) draw(div);
    }, 200);
  });

  const told = document.createElement("p");
  told.className = "unseen";
  told.setAttribute("role", "status");
  document.body.append(told);

  function close() {
    document.getElementById("vg-tooltip-element")?.classList.remove("visible");
    told.textContent = "";
  }

  /** Left and right go from point to point, up and down from curve to curve, digits switch these. */
  function keys(div) {
    let at = null;
    const curveOf = (point) => [point.parentNode, point.__data__.datum.series, point.__data__.datum.scheme];
    const same = (a, b) => curveOf(a).every((part, i) => part === curveOf(b)[i]);
    const send = (point, type) => {
      const { x, y, width, height } = point.getBoundingClientRect();
      const where = { bubbles: true, clientX: x + width / 2, clientY: y + height / 2 };
      point.dispatchEvent(new PointerEvent(type, where));
    };
    div.addEventListener("blur", close);
    div.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Escape") return close();
      const symbols = div.querySelectorAll(".role-legend-symbol path");
      if (symbols[event.key - 1]) return send(symbols[event.key - 1], "click");
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const points = [...div.querySelectorAll(".mark-symbol.role-mark path")];
      if (!points.length) return;
      let next = points.indexOf(at);
      if (next < 0) next = 0;
      else if (/Left|Right/.test(event.key)) next = Math.max(0, Math.min(points.length - 1, next + step));
      else while (points[next + step] && same(points[(next += step)], at));
      at = points[next];
      send(at, "pointermove");
      told.textContent = at.getAttribute("aria-label");
    });
  }

  /** Draw a chart in this element, which has keys from then on. */
  function show(div, spec, height, title) {
    charts.set(div, { spec, title });
    div.style.minHeight = `${height}px`;
    div.tabIndex = 0;
    div.setAttribute("role", "application"); // a screen reader leaves it the keys
    div.setAttribute("aria-roledescription", "chart");
    div.setAttribute("aria-label", `${title}. Arrow keys read the values, digits switch the series.`);
    keys(div);
    resized.observe(div);
    return draw(div);
  }

  function drop(div) {
    resized.unobserve(div);
    charts.get(div).view?.finalize();
    charts.delete(div);
  }

  /** A figure as wide as there is room, on a phone with its panels one below the other. */
  function fitted(figure, width) {
    const columns = width < NARROW ? 1 : figure.columns;
    const narrow = (key, value) => (key === "legend" && value && columns === 1 ? { ...value, columns: 1 } : value);
    const spec = { ...JSON.parse(JSON.stringify(figure), narrow), columns };
    const room = figure.usermeta.room + 18;
    for (const panel of spec.concat) {
      panel.width = Math.max(100, Math.min(560, Math.floor(width / columns) - room));
      panel.height = Math.round(panel.height * 1.25);
    }
    return spec;
  }

  for (const figure of document.querySelectorAll("figure[data-figure]")) {
    const spec = data.figures[figure.dataset.figure];
    const div = figure.querySelector(".plot");
    figure.classList.add("drawn");
    div.hidden = false;
    show(div, (width) => fitted(spec, width), 200, figure.querySelector("img").alt);
  }

  return { data, show, drop, fitted };
})();
