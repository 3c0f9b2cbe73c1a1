"""The page in a browser: charts are drawn, tables sort, a click shows curves, all without error."""

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gisgd_ray.figures import charts
from gisgd_ray.figures.charts import Chart, Look, Panel, marked, save_charts
from gisgd_ray.figures.theme import COLOURS, ON_DARK
from tests.support.pages import EQ3, NAN, RATE, failed, finished, with_bounds, write

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="there is no Chromium to open the page in")

COMMAND = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
COMMAND += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
COMMAND += ["--disable-sync"]

ERRORS = """<script>window.faults = [];
addEventListener("error", (e) => faults.push(String(e.message)));
addEventListener("unhandledrejection", (e) => faults.push(String(e.reason)));
for (const kind of ["error", "warn"])
  console[kind] = (...a) => faults.push(a.join(" "));</script>"""

REPORT = """<script>addEventListener("load", () => setTimeout(async () => {
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
  const told = await (async () => { %s })();
  const node = document.createElement("p");
  node.id = "told";
  node.textContent = JSON.stringify({ told, faults });
  document.body.append(node);
}, 200));</script>"""

EVIL = "</script><b>\u2028<!-- \\\" + alert(1) + ' {{ datum }}"


def opened(page: Path, profile: Path, script: str, *options: str) -> Any:
    """What a script returns that runs in the page once it stands; the page must report no fault."""
    text = page.read_text(encoding="utf-8").replace("<head>", "<head>" + ERRORS, 1)
    head, _, tail = text.rpartition("</body>")
    page = page.with_name("probed.html")
    page.write_text(head + REPORT % script + "</body>" + tail, encoding="utf-8")
    command = [
        *COMMAND,
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--window-size=1000,900",
        *options,
    ]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=4000", "--dump-dom"]
    command += ["--window-size=1000,900"]
    done = subprocess.run(
        [*command, page.as_uri()], check=True, capture_output=True, timeout=90, text=True
    )
    found = re.search(r'<p id="told">(.*?)</p>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    told = json.loads(unescape(found[1]))
    assert told["faults"] == []
    return told["told"]


def curves(folder: Path, trial_ids: list[str], points: int) -> None:
    """A history of these trials."""
    step = np.tile(np.arange(points) * 10, len(trial_ids))
    noise = np.random.default_rng(0).random((12, len(step)))
    frame = pd.DataFrame({"trial_id": np.repeat(trial_ids, points), "step": step})
    names = ["train/loss", "test/loss", "train/accuracy", "test/accuracy", "gap/loss"]
    names += ["measure/gradient_dispersion", "measure/gradient_norm", "term/trajectory_factor"]
    names += [
        f"term/{n}_trajectory@{at}" for n in ("theorem2", "lemma2") for at in ("0.01", "1e-06")
    ]
    for name, values in zip(names, noise, strict=True):
        frame[name] = values / (1 + step / 100)
    frame.loc[3, "train/loss"] = np.inf
    frame["learning_rate"] = 0.1
    frame[EQ3] = np.where(step == step.max(), 9.5, np.nan)
    frame.to_parquet(folder / "history.parquet")


def figure() -> Chart:
    rows = pd.DataFrame({"x": [1, 2, 3], "y": [0.5, NAN, 2], "std": [0.1, 0.2, 0.3]})
    rows = pd.concat([rows.assign(series=name, marked=True) for name in ("black", EVIL)])
    looks = {"black": Look(COLOURS[6], "circle"), EVIL: marked(1)}
    return charts.figure([Panel(rows, EVIL, "step", "loss")] * 2, looks, letters=False, bars=True)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    rates = [0.05, 0.2, 1e-5, 0.1]
    rows = [with_bounds(finished(f"t{i}", training__learning_rate=r)) for i, r in enumerate(rates)]
    rows[1] |= {EQ3: NAN, "gap/loss": -2.5e-7}
    rows[2] |= {"gap/loss": 1234.5}
    rows[3] |= {"gap/loss": 0.182374}  # printed as that of the first, and below it
    rows.append(failed("bad", f"Traceback\nValueError: {EVIL}", training__learning_rate=7.0))
    for row in rows:
        row["model.name"] = EVIL
    curves(tmp_path, ["t0", "t1", "t2", "t3"], 300)
    drawn = {"f": figure()}
    figures = save_charts(drawn, tmp_path / "figures")
    write(tmp_path, rows, swept=[RATE, "model.name"], figures=figures, charts=drawn)
    return tmp_path / "report.html"


DRAWN = """const drawn = async () => {
  while (!document.querySelector("figure .plot[data-drawn]")) await sleep(20);
}; await drawn();
const figure = document.querySelector("figure");
const points = () => [...figure.querySelectorAll(".mark-symbol.role-mark path")];
const legend = () => [...figure.querySelectorAll(".role-legend-symbol path")];
"""


def test_figures_are_drawn_as_svg_in_place_of_the_static_ones(page: Path, tmp_path: Path) -> None:
    script = """return { svg: figure.querySelectorAll(".plot svg").length,
      shown: getComputedStyle(figure.querySelector("img.static")).display,
      canvas: document.querySelectorAll("canvas").length,
      points: points().length, bars: figure.querySelectorAll(".mark-rule.role-mark line").length,
      texts: [...figure.querySelectorAll("svg text")].map((text) => text.textContent) };"""
    found = opened(page, tmp_path / "profile", DRAWN + script)
    # In two panels two series of two known points.
    assert (found["svg"], found["points"], found["bars"]) == (1, 8, 8)
    assert (found["shown"], found["canvas"]) == ("none", 0)
    assert found["texts"].count(EVIL) == 3  # the titles, and the legend's


def test_what_is_in_sight_is_painted(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    command = [*COMMAND, "--hide-scrollbars", "--window-size=1000,3000", f"--screenshot={picture}"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000"]
    command += ["--blink-settings=preferredColorScheme=1", page.as_uri()]
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("--series-6:#000000", "--series-6:#ff00ff"), encoding="utf-8")
    subprocess.run(command, check=True, capture_output=True, timeout=90)
    colours = Image.open(picture).convert("RGB").getcolors(1 << 24) or []
    assert {colour: count for count, colour in colours}[(255, 0, 255)] > 20


def test_without_a_script_the_static_figure_is_shown(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert '<div class="plot interactive" hidden></div>' in text
    assert text.count("<noscript>") == 1
    assert "figure.drawn > .static { display: none; }" in text


@pytest.mark.parametrize("dark", [False, True])
def test_black_series_are_light_on_dark(page: Path, tmp_path: Path, dark: bool) -> None:
    script = "return getComputedStyle(figure.querySelector('.mark-line path')).stroke;"
    options = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    colour = ON_DARK["#000000"] if dark else "#000000"
    parts = ", ".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
    assert opened(page, tmp_path / "profile", DRAWN + script, *options) == f"rgb({parts})"


def test_a_click_in_the_legend_leaves_one_series_and_a_second_one_all(
    page: Path, tmp_path: Path
) -> None:
    script = """const opacity = (point) => Number(point.getAttribute("opacity") ?? 1);
    const state = () => points().map(opacity);
    const click = async (symbol) => {
      symbol.dispatchEvent(new PointerEvent("click", { bubbles: true })); await sleep(100);
    };
    const found = [state()];
    await click(legend()[1]); found.push(state());
    await click(legend()[1]); found.push(state());
    const press = { key: "1", bubbles: true };
    figure.querySelector(".plot").dispatchEvent(new KeyboardEvent("keydown", press));
    await sleep(100); found.push(state());
    return found;"""
    all_, second, again, first = opened(page, tmp_path / "profile", DRAWN + script)
    assert all_ == again == [1] * 8
    assert second == [0, 0, 1, 1] * 2
    assert first == [1, 1, 0, 0] * 2


def test_values_are_told_under_the_pointer(page: Path, tmp_path: Path) -> None:
    script = """const { x, y } = points()[1].getBoundingClientRect();
    const there = { bubbles: true, clientX: x, clientY: y };
    points()[1].dispatchEvent(new PointerEvent("pointermove", there));
    const told = document.getElementById("vg-tooltip-element");
    const texts = [...told.querySelectorAll("td")].map((cell) => cell.textContent);
    return [told.classList.contains("visible"), texts];"""
    visible, told = opened(page, tmp_path / "profile", DRAWN + script)
    assert visible
    assert told[::2] == ["series", "step", "loss", "one standard deviation"]
    assert told[1::2] == ["black", "3", "2", "0.3"]


def test_a_click_on_a_heading_sorts_by_number(page: Path, tmp_path: Path) -> None:
    script = """const table = document.querySelectorAll("table.bounds")[1];
    const heads = [...table.tHead.rows[1].cells];
    const at = heads.findIndex((h) => h.textContent.startsWith("true gap"));
    const read = () => [...table.tBodies[0].rows].map(
      (r) => r.className ? "note" : r.cells[at].textContent.trim());
    const found = [read()];
    for (let i = 0; i < 3; i++) {
      heads[at].querySelector("button").click();
      found.push([heads[at].getAttribute("aria-sort"), ...read()]);
    }
    heads[0].querySelector("button").click();
    const shown = () => [...table.tBodies[0].rows].filter((r) => !r.className);
    found.push(shown().map((r) => r.cells[0].textContent));
    heads[at].querySelector("button").click();
    found.push(shown().map((r) => r.id));
    return found;"""
    first, up, down, again, rates, ids = opened(page, tmp_path / "profile", script)
    gap, small, large = "0.1824", "−2.50 × 10⁻⁷", "1,234"
    assert first == [gap, small, "note", large, gap, "–", "note"]
    assert up == ["ascending", small, "note", gap, gap, large, "–", "note"]
    assert down == ["descending", large, gap, gap, small, "note", "–", "note"]
    assert again == [None, *first]
    assert rates == ["1e-05", "0.05", "0.1", "0.2", "7"]
    assert ids == [f"trial-{name}" for name in ("t1", "t3", "t0", "t2", "bad")]


def test_the_comparison_sorts_with_its_blocks_kept_together(page: Path, tmp_path: Path) -> None:
    script = """const table = document.querySelector("table.compared");
    const heads = [...table.tHead.rows[1].cells];
    heads[0].querySelector("button").click();
    const first = (row) => row.cells[0].textContent.trim();
    const rows = [...table.tBodies].map((body) => [...body.rows].map(first));
    return rows.map((r) => [r[0].includes("learning rate"), ...r.slice(1)]);"""
    found = opened(page, tmp_path / "profile", script)
    assert len(found) == 5
    assert found[0] == [True, "10⁻⁶", "10⁻²"]


def test_choosing_trials_shows_their_curves(page: Path, tmp_path: Path) -> None:
    script = """const buttons = [...document.querySelectorAll(".trials button")];
    const titles = () => [...document.querySelectorAll("#drawn .panel h4")];
    const panels = () => titles().map((h) => h.textContent);
    const before = panels();
    document.getElementById("curves").scrollIntoView();
    buttons[0].focus(); buttons[0].click();
    const one = panels();
    const pressed = buttons.map((b) => b.getAttribute("aria-pressed"));
    buttons[1].click();
    const two = document.querySelectorAll("#drawn .key-of .swatch").length;
    document.querySelector("#drawn .key-of button").click();
    const closed = panels();
    document.querySelector("[data-open='2']").click();
    return { before, one, pressed, two, closed, linked: panels().length,
      label: buttons[0].textContent, count: buttons.length,
      unlisted: document.querySelectorAll(".trials .none").length };"""
    found = opened(page, tmp_path / "profile", script)
    assert found["before"] == found["closed"] == []
    assert found["one"][:4] == ["loss", "accuracy", "gap and bounds", "gradient dispersion"]
    assert found["one"][-2:] == ["trajectory term at σ = 10⁻²", "trajectory term at σ = 10⁻⁶"]
    assert "learning rate" not in found["one"]
    assert found["pressed"] == ["true", "false", "false", "false"]
    assert (found["two"], found["count"], found["unlisted"]) == (2, 4, 1)
    assert found["linked"] == len(found["one"])
    assert found["label"] == f"learning_rate=0.05 model={EVIL}"


def test_curves_are_those_of_the_history(page: Path, tmp_path: Path) -> None:
    found = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found
    data = json.loads(found[1])["curves"]
    history = pd.read_parquet(tmp_path / "history.parquet")
    run = history[history["trial_id"] == "t1"]
    names = [column["name"] for column in data["columns"]]
    trial = data["trials"][1]
    assert (trial["id"], len(trial["x"]), trial["x"][0], trial["x"][-1]) == ("t1", 200, 0, 2990)
    at = run.set_index("step")["test/loss"]
    losses = trial["y"][names.index("test/loss")]
    assert losses == [float(f"{at[step]:.6g}") for step in trial["x"]]
    assert trial["y"][names.index(EQ3)] == [[2990], [9.5]]
    assert data["trials"][0]["y"][names.index("train/loss")].count(None) == 1
    assert "Of 4 of these trials points were left out" in page.read_text(encoding="utf-8")


def test_arrow_keys_read_the_values(page: Path, tmp_path: Path) -> None:
    script = """const plot = figure.querySelector(".plot");
    const told = [];
    for (const key of ["ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp", "ArrowLeft"]) {
      plot.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      told.push(document.querySelector("[role=status].unseen").textContent);
    }
    return [plot.tabIndex, ...told];"""
    tab, *told = opened(page, tmp_path / "profile", DRAWN + script)
    assert tab == 0
    first = "step: 1; loss: 0.5; series: black; one standard deviation: 0.1"
    last = "step: 3; loss: 2; series: black; one standard deviation: 0.3"
    assert told[:2] == [first, last]
    assert told[2].startswith("step: 1; loss: 0.5; series: </script>")
    assert told[3:] == [last, first]


def test_a_chart_says_what_it_is_and_which_keys_it_has(page: Path, tmp_path: Path) -> None:
    script = """document.querySelector(".trials button").click();
    while (!document.querySelector("#drawn .plot[data-drawn]")) await sleep(20);
    const said = (div) => ["role", "aria-roledescription", "aria-label"]
      .map((name) => div.getAttribute(name));
    const plots = [figure.querySelector(".plot"), document.querySelector("#drawn .plot")];
    const inner = plots.map((plot) => plot.querySelector("[role=graphics-document]"));
    return [plots.map(said), inner.map((div) => div.getAttribute("aria-label"))];"""
    said, inner = opened(page, tmp_path / "profile", DRAWN + script)
    keys = "Arrow keys read the values, digits switch the series."
    assert [each[:2] for each in said] == [["application", "chart"]] * 2
    assert [each[2] for each in said] == [f"{name}. {keys}" for name in inner]
    assert "Vega visualization" not in inner
    assert inner[1] == "loss"


@pytest.mark.parametrize("pointed", [False, True])
def test_escape_closes_a_value_and_so_does_leaving(
    page: Path, tmp_path: Path, pointed: bool
) -> None:
    script = """const plot = figure.querySelector(".plot");
    const visible = () => {
      const told = document.getElementById("vg-tooltip-element");
      return told !== null && getComputedStyle(told).visibility === "visible";
    };
    const press = (key) => plot.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    const { x, y } = points()[1].getBoundingClientRect();
    const there = { bubbles: true, clientX: x, clientY: y };
    const show = () => %s;
    const found = [visible()];
    plot.focus(); show(); found.push(visible());
    press("Escape"); found.push(visible());
    show(); found.push(visible());
    plot.blur(); found.push(visible());
    found.push(document.querySelector("[role=status].unseen").textContent);
    return found;"""
    move = 'points()[1].dispatchEvent(new PointerEvent("pointermove", there))'
    show = move if pointed else 'press("ArrowRight")'
    found = opened(page, tmp_path / "profile", DRAWN + script % show)
    assert found == [False, True, False, True, False, ""]


def test_curves_move_and_zoom_and_come_back(page: Path, tmp_path: Path) -> None:
    script = """document.querySelector(".trials button").click();
    const plot = document.querySelector("#drawn .plot");
    while (!("drawn" in plot.dataset)) await sleep(20);
    const labels = () => [...plot.querySelector(".role-axis-label").querySelectorAll("text")];
    const ticks = () => labels().map((label) => label.textContent).sort().join();
    const inside = () => plot.querySelector(".concat_0_group .background");
    const middle = () => {
      const { x, y, width, height } = inside().getBoundingClientRect();
      const where = { clientX: x + width / 2, clientY: y + height / 2 };
      return { bubbles: true, cancelable: true, ...where };
    };
    const wheel = async (more) => {
      const event = new WheelEvent("wheel", { deltaY: -600, ...more, ...middle() });
      inside().dispatchEvent(event); await sleep(200);
      return [event.defaultPrevented, ticks()];
    };
    const first = ticks(), plain = await wheel({}), zoomed = await wheel({ ctrlKey: true });
    inside().dispatchEvent(new MouseEvent("dblclick", middle()));
    await sleep(200);
    return { first, plain, zoomed, back: ticks() };"""
    found = opened(page, tmp_path / "profile", script)
    assert found["plain"] == [False, found["first"]]  # the page scrolls
    assert found["zoomed"][0] is True
    assert found["zoomed"][1] != found["first"]
    assert found["back"] == found["first"]


def test_a_panel_without_one_of_the_kinds_is_drawn_without_a_warning(tmp_path: Path) -> None:
    """``opened`` takes every warning for a fault."""
    rows = pd.DataFrame({"x": [1.0, 2, 3], "y": [0.5, 1, 2], "std": 0.1, "marked": True})
    looks = {"marked": marked(0), "bare": Look(COLOURS[1], dash=(5, 3))}
    panels = [Panel(rows.assign(series=name), name, "step", "loss") for name in looks]
    drawn = {"f": charts.figure(panels, looks, log=True)}
    figures = save_charts(drawn, tmp_path / "figures")
    write(tmp_path, [with_bounds(finished("t0"))], figures=figures, charts=drawn)
    script = "return points().length;"
    assert opened(tmp_path / "report.html", tmp_path / "profile", DRAWN + script) > 0


@pytest.mark.parametrize("width", [360, 420])
def test_a_phone_scrolls_in_one_direction(page: Path, tmp_path: Path, width: int) -> None:
    assert page.exists()
    framed = """const frame = document.querySelector("iframe").contentWindow;
    return [frame.document.documentElement.scrollWidth, frame.innerWidth];"""
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<!DOCTYPE html><html><head></head><body><iframe src="report.html" '
        f'style="width:{width}px;height:900px;border:0"></iframe></body></html>'
    )
    options = ["--allow-file-access-from-files"]
    scrolled, seen = opened(frame, tmp_path / "profile", framed, *options)
    assert seen == width
    assert scrolled <= width


def test_five_hundred_trials_open_at_once(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for i in range(500):
        row = with_bounds(
            finished(f"{i:012x}", training__learning_rate=0.001 * i), sensitivity=True
        )
        rows.append(row)
    curves(tmp_path, [row["trial_id"] for row in rows], 300)
    drawn = {"f": figure()}
    figures = save_charts(drawn, tmp_path / "figures")
    write(tmp_path, rows, figures=figures, charts=drawn)
    page = tmp_path / "report.html"
    assert page.stat().st_size < 8e6
    script = """const t = performance.timing;
    return [t.domComplete - t.navigationStart, document.querySelectorAll(".trials button").length,
      document.querySelectorAll(".plot svg").length];"""
    for attempt in range(3):  # what the machine does besides can only add to it
        took, buttons, drawn_here = opened(page, tmp_path / f"profile{attempt}", script)
        limit = 3000 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        if took < limit:
            break
    print(f"{page.stat().st_size / 1e6:.2f} MB, {took} ms")
    assert buttons == 500
    assert drawn_here == 1
    assert took < limit
