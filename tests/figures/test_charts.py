"""Matplotlib figures as plotly's: every kind of artist, with the values that are drawn."""

import doctest
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gisgd_ray.figures import charts_text
from gisgd_ray.figures.charts import Chart, UnsupportedError, convert

NAN = math.nan
X = [1.0, 2.5, 4.0]
Y = [0.1, 1 / 3, 12.5]


def traces(figure: Figure, panel: int = 0) -> list[dict[str, Any]]:
    chart = convert(figure)
    for each in chart.panels:
        go.Figure(each.figure)  # plotly raises on what it does not know
    found: list[dict[str, Any]] = chart.panels[panel].figure["data"]
    return found


def layout(figure: Figure, panel: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = convert(figure).panels[panel].figure["layout"]
    return found


def test_a_line_keeps_values_look_and_name() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot(X, Y, "s--", color="#D55E00", label="b < 2", linewidth=1.5, alpha=0.5)
    axes.plot(X, [1, NAN, 3], ":", color="black")
    axes.plot([], [], label="nothing")
    axes.legend()
    axes.set_xlabel("batch size")
    axes.set_ylabel("loss")
    first, second = traces(figure)
    assert (first["x"], first["y"]) == (X, Y)
    assert (first["name"], first["showlegend"], first["mode"]) == (
        "b &lt; 2",
        True,
        "lines+markers",
    )
    assert first["line"] == {"color": "#d55e00", "dash": "dash", "width": 2.0}
    assert first["marker"]["symbol"] == "square"
    assert first["opacity"] == 0.5
    assert first["hovertemplate"] == (
        "<b>%{fullData.name}</b><br>batch size: %{x}<br>loss: %{y}<extra></extra>"
    )
    assert second["y"] == [1.0, None, 3.0]
    assert (second["name"], second["showlegend"], second["mode"]) == ("", False, "lines")
    assert layout(figure)["showlegend"] is True


def test_hollow_marks_and_thinned_marks() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot(X, Y, linestyle="none", marker="o", markerfacecolor="white")
    axes.plot(range(24), range(24), marker="^", markevery=6)
    hollow, thinned = traces(figure)
    assert (hollow["mode"], hollow["marker"]["symbol"]) == ("markers", "circle-open")
    assert thinned["marker"]["maxdisplayed"] == 4
    assert len(thinned["x"]) == 24


def test_error_bars_of_both_sides_and_missing_ones() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.errorbar(X, Y, yerr=[[0.05, NAN, 2], [0.1, NAN, 2]], xerr=[0.1, 0.2, 0.3], label="e")
    axes.errorbar(X, Y, label="without")
    axes.legend()
    bars, plain = traces(figure)
    assert (bars["name"], bars["showlegend"], bars["x"], bars["y"]) == ("e", True, X, Y)
    assert bars["error_y"]["array"] == [pytest.approx(0.1), None, pytest.approx(2)]
    assert bars["error_y"]["arrayminus"] == [pytest.approx(0.05), None, pytest.approx(2)]
    assert bars["error_x"]["symmetric"] is True
    assert bars["error_x"]["array"] == pytest.approx([0.1, 0.2, 0.3])
    assert "error_y" not in plain


def test_a_band_is_an_outline_and_told_with_its_line() -> None:
    figure = Figure()
    axes = figure.subplots()
    low, high = np.array(Y) - 0.05, np.array(Y) + 0.25
    axes.plot(X, Y, color="#0072B2")
    band = axes.fill_between(X, low, high, color="#0072B2", alpha=0.2, linewidth=0)
    shaded, line = traces(figure)
    drawn = band.get_paths()[0].vertices
    assert (shaded["x"], shaded["y"]) == (drawn[:, 0].tolist(), drawn[:, 1].tolist())
    assert (shaded["fill"], shaded["fillcolor"]) == ("toself", "rgba(0,114,178,0.2)")
    assert shaded["hoverinfo"] == "skip"
    assert shaded["showlegend"] is False
    assert line["customdata"][0] == " (shaded: 0.05 to 0.35)"


def test_a_band_with_a_hole_is_two() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.fill_between([1, 2, 3, 4, 5], [1, 1, NAN, 1, 1], [2, 2, NAN, 2, 2])
    (shaded,) = traces(figure)
    assert shaded["x"].count(None) == 1
    assert 3.0 not in shaded["x"]


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_lines_across_the_panel_span_it(scale: str) -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 10], [1, 100])
    axes.set_yscale(scale)
    axes.set_xscale(scale)
    axes.axvline(2.5, label="valley", linestyle="--")
    axes.axhline(7)
    _, vertical, horizontal = traces(figure)
    assert set(vertical["x"]) == {2.5}
    assert [vertical["y"][0], vertical["y"][-1]] == pytest.approx(axes.get_ylim())
    assert set(horizontal["y"]) == {7.0}
    assert [horizontal["x"][0], horizontal["x"][-1]] == pytest.approx(axes.get_xlim())
    assert "%{y}" not in vertical["hovertemplate"]
    assert "%{x}" not in horizontal["hovertemplate"]


def test_marks_at_a_height_of_the_panel() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.set_ylim(10, 20)
    axes.plot([3], [0.25], "^", transform=axes.get_xaxis_transform())
    (mark,) = traces(figure)
    assert (mark["x"], mark["y"]) == ([3.0], [12.5])


def test_scales_ranges_and_inverted_axes() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot(X, Y)
    axes.set_xscale("log")
    axes.set_xlim(0.1, 1000)
    axes.set_ylim(0, 20)
    axes.invert_yaxis()
    found = layout(figure)
    assert (found["xaxis"]["type"], found["xaxis"]["range"]) == ("log", pytest.approx([-1, 3]))
    assert (found["yaxis"]["type"], found["yaxis"]["range"]) == ("linear", [20.0, 0.0])


def test_tick_labels_set_by_hand() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 2], [0, 1])
    axes.set_yticks([0, 1], ["ERM", "<GMP>"])
    axis = layout(figure)["yaxis"]
    assert (axis["tickvals"], axis["ticktext"]) == ([0.0, 1.0], ["ERM", "&lt;GMP&gt;"])
    assert "tickvals" not in layout(figure)["xaxis"]


def test_twin_axes_share_a_panel() -> None:
    figure = Figure()
    left = figure.subplots()
    left.plot(X, Y, label="a")
    right = left.twinx()
    right.plot(X, [100, 200, 300], label="b")
    right.set_ylabel("dispersion")
    chart = convert(figure)
    assert len(chart.panels) == 1
    first, second = traces(figure)
    assert ("yaxis" in first, second["yaxis"]) == (False, "y2")
    axis = layout(figure)["yaxis2"]
    assert axis["side"] == "right"
    assert axis["title"]["text"] == "dispersion"
    assert axis["range"] == pytest.approx(list(right.get_ylim()))


def test_a_grid_of_panels_without_hidden_ones() -> None:
    figure = Figure()
    axes = figure.subplots(2, 2)
    for i, each in enumerate(axes.flat[:3]):
        each.plot(X, [i, i, i])
        each.set_title(f"({i}) $\\sigma = 10^{{-{i}}}$\nand more")
    axes.flat[3].plot(X, X)
    axes.flat[3].set_visible(False)
    figure.suptitle("a & b")
    chart = convert(figure)
    assert chart.title == "a &amp; b"
    assert [panel.figure["data"][0]["y"][0] for panel in chart.panels] == [0, 1, 2]
    assert chart.panels[1].title == "(1) σ = 10<sup>−1</sup><br>and more"


def test_a_legend_of_the_figure_names_lines_by_colour_and_style() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot(X, Y, color="#0072B2", label="")
    axes.plot(X, Y, color="#0072B2", linestyle="--", label="")
    handles = [
        Line2D([], [], color="#0072B2", label="clipped"),
        Line2D([], [], color="#555555", label="test"),
        Line2D([], [], color="#555555", linestyle="--", label="train"),
    ]
    figure.legend(handles=handles)
    chart = convert(figure)
    assert [(e.label, e.colour, e.dash) for e in chart.legend] == [
        ("clipped", "#0072b2", "solid"),
        ("test", "#555555", "solid"),
        ("train", "#555555", "dash"),
    ]
    assert [trace["name"] for trace in traces(figure)] == ["clipped, test", "clipped, train"]


def unsupported(kind: str) -> Figure:
    figure = Figure()
    axes = figure.subplots()
    if kind == "bar":
        axes.bar(X, Y)
    elif kind == "scatter":
        axes.scatter(X, Y)
    elif kind == "image":
        axes.imshow([[1, 2]])
    elif kind == "text":
        axes.text(1, 1, "a")
    elif kind == "scale":
        axes.set_xscale("symlog")
    else:
        axes.plot(X, Y, marker=kind)
    return figure


@pytest.mark.parametrize("kind", ["bar", "scatter", "image", "text", "scale", "$a$"])
def test_what_it_cannot_draw_it_refuses(kind: str) -> None:
    with pytest.raises(UnsupportedError):
        convert(unsupported(kind))


def test_an_empty_figure() -> None:
    assert convert(Figure()) == Chart("", [], [])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"$\sigma^2$", "σ<sup>2</sup>"),
        (r"$\mathdefault{10^{-5}}$", "10<sup>−5</sup>"),
        (r"$\lambda_t^2 V_{t-1}$", "λ<sub>t</sub><sup>2</sup> V<sub>t−1</sub>"),
        (r"$\tilde{V}$ and $\|g\|$", "V\u0303 and ‖g‖"),
        (r"$\mathrm{Tr}\,H \leq \sqrt{ab}$", "Tr H ≤ √(ab)"),
        ("%{x} </b>", "%&#123;x&#125; &lt;/b&gt;"),
        ("costs $5", "costs $5"),
    ],
)
def test_mathtext_is_readable_and_escaped(text: str, shown: str) -> None:
    assert charts_text.as_html(text) == shown


def test_docstring_examples() -> None:
    assert doctest.testmod(charts_text).failed == 0


def test_ticks_of_a_log_axis_are_whole_numbers() -> None:
    from gisgd_ray.figures.charts import _log_ticks

    assert _log_ticks(0.15, 1.2, 0.9) == [0.2, 0.5, 1.0]
    assert _log_ticks(2.0, 6.0, 0.48) == [2.0, 3.0, 4.0, 5.0, 6.0]
