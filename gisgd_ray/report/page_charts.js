/* Charts in the page's colours, light or dark, drawn by plotly when they come into sight. */
const pageCharts = (() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");
  const charts = new Map();
  let printing = false;

  const isDark = () => dark.matches && !printing;

  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => {
      return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };

  /** A colour as it is shown: on dark, grey turns light, and others become so until they stand out. */
  function shade(colour) {
    if (!isDark()) return colour;
    const hex = colour.match(/^#(..)(..)(..)$/);
    const parts = colour.match(/^rgba\((\d+),(\d+),(\d+),([\d.]+)\)$/);
    if (!hex && !parts) return colour;
    let rgb = hex ? hex.slice(1).map((h) => parseInt(h, 16)) : parts.slice(1, 4).map(Number);
    if (Math.max(...rgb) - Math.min(...rgb) < 16) {
      rgb = rgb.map((v) => Math.round(235 - 0.45 * v));
    } else {
      for (let i = 0; i < 40 && (luminance(rgb) + 0.05) / 0.06 < 6; i++) {
        rgb = rgb.map((v) => Math.round(v + (255 - v) * 0.05));
      }
    }
    return parts ? `rgba(${rgb.join(",")},${parts[4]})` : `rgb(${rgb.join(",")})`;
  }

  function recolour(value) {
    if (Array.isArray(value) || value === null || typeof value !== "object") return;
    for (const [name, inner] of Object.entries(value)) {
      if (typeof inner === "string" && /colou?r$/.test(name)) value[name] = shade(inner);
      else recolour(inner);
    }
  }

  const LIGHT = { paper: "#ffffff", ink: "#1b1d21", soft: "#5a606b", line: "#d9dce1" };
  const DARK = { paper: "#15171b", ink: "#e4e6ea", soft: "#a0a7b3", line: "#363b44" };

  function layoutOf(own, height) {
    const c = isDark() ? DARK : LIGHT;
    const axis = { gridcolor: c.line, linecolor: c.soft, tickcolor: c.soft, ticks: "outside" };
    const common = {
      height,
      autosize: true,
      margin: { l: 8, r: 8, t: 8, b: 8, pad: 0 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif", size: 12 },
      dragmode: touch.matches ? false : "zoom",
      hoverlabel: { bgcolor: c.paper, bordercolor: c.soft, align: "left", namelength: -1 },
      hoverdistance: 30,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", tracegroupgap: 0 },
    };
    common.font.color = c.ink;
    common.hoverlabel.font = { color: c.ink };
    const shown = { ...structuredClone(own), ...common };
    for (const name of ["xaxis", "yaxis", "yaxis2"]) {
      if (!shown[name]) continue;
      shown[name] = { ...axis, showline: true, ticklen: 4, ...shown[name] };
      shown[name].title = { standoff: 8, font: { color: c.soft }, ...shown[name].title };
    }
    return shown;
  }

  function draw(div) {
    const { figure, height } = charts.get(div);
    const traces = structuredClone(figure.data);
    traces.forEach(recolour);
    const config = { displayModeBar: false, scrollZoom: false, responsive: true };
    Plotly.react(div, traces, layoutOf(figure.layout, height), config);
    div.dataset.drawn = "";
  }

  const seen = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting || !charts.has(target)) continue;
        seen.unobserve(target);
        draw(target);
      }
    },
    { rootMargin: "300px 0px" },
  );

  const told = document.createElement("p");
  told.className = "unseen";
  told.setAttribute("role", "status");
  document.body.append(told);

  /** Arrow keys go along a curve and from one to the next. */
  function keys(div) {
    const at = { curve: -1, point: -1 };
    const known = (trace, i) => trace.x[i] !== null && trace.y[i] !== null;
    const usable = () => {
      const every = div.data.map((trace, i) => ({ trace, i }));
      return every.filter(({ trace, i }) => {
        if (trace.hoverinfo === "skip" || div._fullData?.[i]?.visible === "legendonly") return false;
        return trace.x.some((_, p) => known(trace, p));
      });
    };
    div.addEventListener("keydown", (event) => {
      const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
      if (event.key === "Escape") return Plotly.Fx.unhover(div);
      const step = move[event.key];
      if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      if (!("drawn" in div.dataset)) draw(div);
      const curves = usable();
      if (!curves.length) return;
      const now = curves.findIndex(({ i }) => i === at.curve);
      const next = now < 0 ? 0 : (now + step[0] + curves.length) % curves.length;
      const { trace, i } = curves[next];
      let point = at.point + (now < 0 ? 1 : step[1]);
      point = Math.max(0, Math.min(trace.x.length - 1, point));
      const way = step[1] || 1;
      while (point > 0 && point < trace.x.length - 1 && !known(trace, point)) point += way;
      Object.assign(at, { curve: i, point });
      Plotly.Fx.hover(div, [{ curveNumber: i, pointNumber: point }]);
      setTimeout(() => { // plotly takes its time
        const lines = [...div.querySelectorAll(".hoverlayer .hovertext tspan.line")];
        told.textContent = lines.map((line) => line.textContent).join(", ");
      }, 100);
    });
  }

  /** Have a chart drawn in this element once it is near the visible part of the page. */
  function show(div, figure, height, title) {
    charts.set(div, { figure, height });
    div.style.minHeight = `${height}px`;
    div.tabIndex = 0;
    div.setAttribute("role", "group");
    div.setAttribute("aria-roledescription", "chart");
    div.setAttribute("aria-label", `${title}. Arrow keys read the values.`);
    keys(div);
    div.addEventListener("focus", () => "drawn" in div.dataset || draw(div));
    seen.observe(div);
  }

  function drop(div) {
    seen.unobserve(div);
    charts.delete(div);
    if ("drawn" in div.dataset) Plotly.purge(div);
  }

  function recolourAll() {
    for (const each of document.querySelectorAll("[data-colour]")) {
      each.style.color = shade(each.dataset.colour);
    }
    for (const div of charts.keys()) if ("drawn" in div.dataset) draw(div);
  }

  for (const figure of document.querySelectorAll("figure[data-figure]")) {
    const panels = data.figures[figure.dataset.figure];
    figure.classList.add("drawn");
    figure.querySelector(".interactive").hidden = false;
    for (const div of figure.querySelectorAll(".plot")) {
      const title = div.parentElement.querySelector("h4")?.textContent ?? "Chart";
      show(div, panels[div.dataset.panel], Number(div.dataset.height), title);
    }
  }
  recolourAll();
  dark.addEventListener("change", recolourAll);
  addEventListener("beforeprint", () => { printing = true; recolourAll(); });
  addEventListener("afterprint", () => { printing = false; recolourAll(); });

  return { data, show, drop, shade };
})();
