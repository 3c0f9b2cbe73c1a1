"""Charts from rows: means and deviations by hand, looks, axes, and the files they are kept in."""

import doctest
import io
import math
import re
import subprocess
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pandas as pd
import pytest
import vl_convert
from PIL import Image

from gisgd_ray.figures import charts, theme
from gisgd_ray.figures.charts import (
    Chart,
    Look,
    Panel,
    below_zero,
    figure,
    lettered,
    marked,
    mean_over_seeds,
    save_charts,
)
from tests.support.charts import drawn, legend

NAN = math.nan
POINTS = pd.DataFrame(
    {
        "step": [1, 1, 1, 2, 2, 3, 3],
        "loss": [0.1, 0.4, NAN, 2.0, 4.0, NAN, 7.0],
        "trial_id": list("abcabab"),
    }
)


def chart(rows: pd.DataFrame, **changes: Any) -> Chart:
    return figure([Panel(rows, "a", "step", "loss")], LOOKS, columns=1, **changes)


LOOKS = {"bound": marked(0), "gap": Look(theme.COLOURS[1], "circle", drawn="hollow")}


def test_a_curve_is_the_mean_and_sample_deviation_of_what_is_known() -> None:
    rows = mean_over_seeds(POINTS, "step", "loss", "bound")
    assert rows["x"].tolist() == [1, 2, 3]
    assert rows["y"].tolist() == pytest.approx([0.25, 3, 7])
    assert rows["std"].tolist() == pytest.approx([0.15 * 2**0.5, 2**0.5, NAN], nan_ok=True)
    assert set(rows["series"]) == {"bound"}


@pytest.mark.parametrize("count", [1, 12, 23, 24, 100, 5000])
def test_every_point_is_in_the_chart_and_marks_are_thinned(count: int) -> None:
    points = pd.DataFrame({"step": np.arange(count), "loss": np.arange(count) + 0.5})
    rows = mean_over_seeds(points, "step", "loss", "bound")
    shown = drawn(chart(rows))[0].rows
    assert shown["x"].tolist() == list(range(count))
    assert shown["y"].tolist() == points["loss"].tolist()
    assert min(count, 12) <= shown["marked"].sum() <= 24
    assert bool(shown["marked"].iloc[0])


def test_what_is_missing_or_infinite_is_left_out_of_a_row() -> None:
    rows = pd.DataFrame(
        {"x": [1, 2, 3], "y": [1.0, NAN, np.inf], "std": [NAN, 1, 1], "series": "bound"}
    )
    spec = chart(rows).to_dict()
    (records,) = spec["datasets"].values()
    assert records == [
        {"x": 1, "y": 1.0, "series": "bound", "drawn": "line"},
        {"x": 2, "std": 1.0, "series": "bound", "drawn": "line"},
        {"x": 3, "std": 1.0, "series": "bound", "drawn": "line"},
    ]


def test_below_zero_is_shown_by_its_size_on_a_log_axis() -> None:
    rows = pd.DataFrame({"x": [1, 2, 3], "y": [0.5, -0.25, 0.0], "std": 0.1, "series": "bound"})
    below, name = below_zero(rows), "bound below 0 (size)"
    assert below[["x", "y", "series"]].values.tolist() == [[2, 0.25, name]]
    assert below_zero(rows[rows["y"] > 0]).empty
    made = chart(rows, log=True)
    shown = drawn(made)[0]
    assert shown.curve("bound")["y"].tolist() == pytest.approx([0.5, NAN, NAN], nan_ok=True)
    assert shown.curve(name)[["x", "y", "drawn"]].values.tolist() == [[2, 0.25, "hollow"]]
    assert shown.title == ["(a) a", "not shown: 1 point at 0"]
    assert legend(made) == dict.fromkeys(["bound", name], theme.COLOURS[0])
    assert shown.axes[1]["scale"]["type"] == "log"
    low, high = shown.axes[1]["scale"]["domain"]
    assert low < 0.25 < 0.6 < high  # with the deviation above


def test_a_linear_axis_has_all_of_it() -> None:
    rows = pd.DataFrame({"x": [1, 2, 3], "y": [0.5, -0.25, 0.0], "series": "bound"})
    shown = drawn(chart(rows))[0]
    assert shown.rows["y"].tolist() == [0.5, -0.25, 0.0]
    assert shown.title == ["(a) a"]


def test_every_run_and_every_series_of_a_log_axis_is_there() -> None:
    """What goes by the axis at the right, which is not logarithmic, is left as it is."""
    rows = pd.DataFrame({"x": [1.0, 2, 1, 2, 1, 2], "y": [3.0, -4, -5, 6, -7, 0]})
    rows = rows.assign(
        series=["a", "a", "a", "a", "r", "r"], run=[None, None, "s", "s", None, None]
    )
    looks = {"a": Look(theme.COLOURS[1]), "r": marked(2, right=True)}
    made = figure([Panel(rows, "t", "x", "left")], looks, log=True, right="right", letters=False)
    (shown,) = drawn(made)
    assert shown.title == ["t"]
    assert shown.curve("r")["y"].tolist() == [-7, 0]
    sizes = shown.curve("a below 0 (size)")
    assert sizes[["x", "y"]].values.tolist() == [[2, 4], [1, 5]]
    assert sizes["run"].isna().all()
    assert legend(made)["a below 0 (size)"] == theme.COLOURS[1]


def test_forty_nine_series_look_unlike() -> None:
    looks = [marked(place) for place in range(49)]
    assert len({(look.colour, look.shape) for look in looks}) == 49
    assert looks[7].colour == looks[0].colour
    assert marked(8, dash=(1, 1)).dash == (1, 1)


@pytest.mark.parametrize(
    "name", ["lr = {}", "learning rate = 0.0{}", "sensitivity Ψ (Neu et al.) {}", "m" * 25 + "{}"]
)
@pytest.mark.parametrize("count", [1, 4, 8, 10, 20])
def test_a_legend_is_wrapped_into_the_width(name: str, count: int, tmp_path: Path) -> None:
    looks = {name.format(place): marked(place) for place in range(count)}
    curves = [pd.DataFrame({"x": [1, 2], "y": [1e-7, 123456.0], "series": each}) for each in looks]
    made = figure([Panel(pd.concat(curves), "t", "x", "y")] * 2, looks)
    svg = save_charts({"f": made}, tmp_path)["f"].read_text(encoding="utf-8")
    wide = re.search(r'width="([\d.]+)"', svg)
    assert wide
    assert 0.9 * theme.WIDTH < float(wide[1]) <= theme.WIDTH
    assert svg.count(f">{name.format(count - 1)}<") == 1


def test_a_panel_has_layers_for_what_is_there_alone() -> None:
    """Vega complains of a layer without rows, which has no extent."""
    looks = {"marked": marked(0), "bare": Look(theme.COLOURS[1])}
    rows = pd.DataFrame({"x": [1.0, 2], "y": [1.0, 2]})
    made = figure([Panel(rows.assign(series=name), name, "x", "y") for name in looks], looks)
    for shown in drawn(made):
        kinds = [set(layer["transform"][0]["filter"]["oneOf"]) for layer in shown.layers]
        assert kinds
        assert all(its & set(shown.rows["drawn"]) for its in kinds)


def test_a_deviation_that_reaches_zero_has_no_lower_half_on_a_log_axis() -> None:
    rows = pd.DataFrame({"x": [1], "y": [0.5], "std": [0.75], "series": ["bound"]})
    for log, low in ((True, "datum.std < datum.y ? datum.y - datum.std : datum.y"), (False, "")):
        (band,) = drawn(chart(rows, log=log))[0].marks("area")
        ends = {t["as"]: t["calculate"] for t in band["transform"] if "calculate" in t}
        assert ends == {"low": low or "datum.y - datum.std", "high": "datum.y + datum.std"}
        assert band["encoding"]["y"]["field"] == "low"
        assert band["encoding"]["y2"]["field"] == "high"


def test_a_bar_that_reaches_zero_has_no_lower_cap_on_a_log_axis() -> None:
    """The mean of one series is 0.5 ± 0.75, of the other 0.5 ± 0.25."""
    rows = pd.DataFrame({"x": [1, 2], "y": 0.5, "std": [0.75, 0.25], "series": "bound"})
    for log, caps in ((True, 3), (False, 4)):
        made = chart(rows, log=log, bars=True)
        svg = charts.static_svg(made)
        found = re.findall(r'<g class="mark-rect role-mark[^"]*"[^>]*>(.*?)</g>', svg)
        assert sum(group.count("<path") for group in found) == caps


def test_bars_in_place_of_bands_and_neither_for_one_seed() -> None:
    rows = pd.DataFrame({"x": [1.0], "y": [2.0], "std": [0.5], "series": ["bound"]})
    bars = drawn(chart(rows, bars=True))[0]
    assert (len(bars.marks("area")), len(bars.marks("rule")), len(bars.marks("tick"))) == (0, 1, 2)
    single = drawn(chart(rows.assign(std=NAN), bars=True))[0]
    assert not single.marks("rule") + single.marks("tick") + single.marks("area")


def test_a_series_has_its_look_in_every_layer() -> None:
    looks = {
        "bound": marked(0),
        "valley": Look(theme.COLOURS[6], dash=(5, 3), drawn="rule"),
        "V": marked(2, right=True),
        "gap": Look(theme.COLOURS[1], "circle", drawn="hollow"),
    }
    rows = pd.DataFrame({"x": 1.0, "y": 1.0, "series": list(looks)})
    more = {"not there": marked(3)}
    made = figure([Panel(rows, "a", "x", "left")], looks | more, right="right")
    (shown,) = drawn(made)
    for layer in shown.layers:
        for channel, values in (
            ("stroke", [look.colour for look in looks.values()]),
            ("strokeDash", [[1, 0], [5, 3], [1, 0], [1, 0]]),
            ("shape", ["circle", "stroke", "triangle-up", "circle"]),
            ("fill", ["#0072B2", "#000000", "#009E73", "transparent"]),
        ):
            scale = layer["encoding"].get(channel, {}).get("scale")
            assert scale is None or scale == {"domain": list(looks), "range": values}
    assert [axis["title"] for axis in shown.axes] == ["x", "left", "right"]
    of = {}
    for layer in shown.layers:
        kinds = layer["transform"][0]["filter"]["oneOf"]
        names = shown.rows["series"][shown.rows["drawn"].isin(kinds)]
        title = layer["encoding"].get("y", {}).get("title")
        for name in names:
            of.setdefault(name, set()).add(title)
    assert of == {"bound": {"left"}, "valley": {None}, "V": {"right"}, "gap": {"left"}}


def test_the_legend_switches_series_in_all_panels() -> None:
    rows = mean_over_seeds(POINTS, "step", "loss", "bound")
    spec = figure([Panel(rows, "a", "step", "loss")] * 3, LOOKS).to_dict()
    (switch,) = spec["params"]
    assert (switch["name"], switch["bind"]) == ("shown", "legend")
    assert switch["select"] == {"type": "point", "fields": ["series"], "toggle": "true"}
    for each in spec["concat"]:
        assert all("shown" in str(layer["encoding"]["opacity"]) for layer in each["layer"][1:])


def test_titles_are_lettered_and_wrapped() -> None:
    assert lettered(1, "MLP on MNIST", "more, as it is") == ["(b) MLP on MNIST", "more, as it is"]
    long = lettered(0, "AlexNet on CIFAR-10, label noise = 0.2, width = 64")
    assert long == ["(a) AlexNet on CIFAR-10, label noise = 0.2,", "width = 64"]


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.1, 0.7), (95, 700), (0.003, 0.04), (1, 500), (1e-9, 3), (5, 3e6), (2e-6, 9e-6), (3, 4)],
)
def test_a_log_axis_has_ticks_enough_and_reads_well(low: float, high: float) -> None:
    ticks = theme.log_ticks(low, high)
    values = ticks["values"]
    assert 2 <= len(values) <= 12
    assert all(low <= value <= high for value in values)
    assert all(f"{value:e}"[0] in "123458" or "." in f"{value:e}"[:3] for value in values)
    labels = re.findall(r"'([^']*)'", ticks["labelExpr"].partition("[indexof")[0])
    assert len(labels) == len(values)
    assert not [text for text in labels if re.search(r"e[-+]|-|0{5}", text)]


def test_an_axis_that_moves_has_ticks_beyond_and_the_same_where_it_begins() -> None:
    first, more = theme.log_ticks(0.002, 4), theme.log_ticks(0.002, 4, beyond=100)
    assert [v for v in more["values"] if 0.002 <= v <= 4] == first["values"]
    assert 2e-5 <= min(more["values"]) < 0.002
    assert 4 < max(more["values"]) <= 400
    rows = mean_over_seeds(POINTS, "step", "loss", "bound")
    made = chart(rows, log=True, moves=True, domain=(0.002, 4))
    (shown,) = drawn(made)
    assert "domain" not in shown.axes[1]["scale"]
    assert shown.axes[1]["axis"]["values"] == more["values"]
    assert [param["bind"] for param in made.to_dict()["params"]] == ["legend", "scales"]


def test_docstring_examples() -> None:
    for module in (theme, charts):
        assert doctest.testmod(module).failed == 0


def test_every_colour_stands_out_from_a_dark_page() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    assert set(theme.ON_DARK) == {*theme.COLOURS, theme.GREY}
    assert len(set(theme.ON_DARK.values())) == len(theme.ON_DARK)
    for colour in theme.ON_DARK.values():
        assert (luminance(colour) + 0.05) / (luminance("#15171b") + 0.05) >= 6


def test_on_a_page_colours_are_the_style_sheets_and_data_as_they_are() -> None:
    rows = pd.DataFrame({"x": [1.0], "y": [2.0], "series": ["bound"]})
    made = chart(rows.assign(scheme=theme.COLOURS[0]))
    spec = theme.on_page(made.to_dict())
    assert "config" not in spec
    assert spec.pop("datasets") == made.to_dict()["datasets"]
    assert "var(--series-0)" in str(spec)
    assert not re.findall(r"'#[0-9A-F]{6}'", str(spec))
    for i, (light, dark) in enumerate(theme.ON_DARK.items()):
        assert f"--series-{i}:{light};" in theme.css().partition("@media")[0]
        assert f"--series-{i}:{dark};" in theme.css().partition("@media")[2]


def test_files_are_pdf_with_fonts_and_svg_with_what_is_seen_alone(tmp_path: Path) -> None:
    points = pd.DataFrame({"step": np.arange(100), "loss": 1.0 + np.arange(100)})
    rows = mean_over_seeds(points, "step", "loss", "bound")
    paths = save_charts({"f": chart(rows)}, tmp_path / "figures")
    assert paths == {"f": tmp_path / "figures" / "f.svg"}
    svg = paths["f"].read_text(encoding="utf-8")
    # The marks and the legend's; not those that can only be pointed at.
    assert svg.count('fill="#0072B2"') == rows["marked"].sum() + 1
    assert "aria-" not in svg
    picture = Image.open(io.BytesIO(vl_convert.svg_to_png(svg)))
    assert (0, 114, 178) in {pixel[:3] for _, pixel in picture.getcolors(1 << 20)}
    pdf = tmp_path / "figures" / "f.pdf"
    assert pdf.read_bytes().startswith(b"%PDF")
    if which("pdffonts"):
        told = subprocess.run(["pdffonts", str(pdf)], capture_output=True, text=True, check=True)
        fonts = told.stdout.splitlines()[2:]
        assert fonts
        assert all("CID" in line and "Type 3" not in line for line in fonts)
        assert all(line.split()[-5] == "yes" for line in fonts)  # embedded


def test_a_panel_without_rows_has_its_axes(tmp_path: Path) -> None:
    for log in (False, True):
        empty = chart(mean_over_seeds(POINTS[:0], "step", "loss", "bound"), log=log)
        svg = save_charts({"f": empty}, tmp_path)["f"].read_text(encoding="utf-8")
        assert ">step<" in svg
        assert ">loss<" in svg


def test_same_rows_same_files(tmp_path: Path) -> None:
    rows = mean_over_seeds(POINTS, "step", "loss", "bound")
    for name in ("a", "b"):
        save_charts({"f": chart(rows)}, tmp_path / name)
    for kind in ("svg", "pdf"):
        first, second = ((tmp_path / name / f"f.{kind}").read_bytes() for name in ("a", "b"))
        assert first == second


def test_it_displays_itself_in_a_notebook() -> None:
    rows = mean_over_seeds(POINTS, "step", "loss", "bound")
    bundle: Any = chart(rows)._repr_mimebundle_()
    shown = bundle[0] if isinstance(bundle, tuple) else bundle
    assert any("vega" in kind or "html" in kind for kind in shown)
