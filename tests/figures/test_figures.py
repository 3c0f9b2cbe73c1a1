"""Every sweep's figures as a journal would take them, from tiny trials of several seeds."""

import math
import re
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from gisgd_ray.claims.statistics import short_number
from gisgd_ray.figures.style import log_scale, new_figure, save_figures, style
from gisgd_ray.results.tables import row_of
from gisgd_ray.sweep import Sweep
from gisgd_ray.theory.quantities import at
from sweeps.trajectory import READINGS
from tests.support import sweep_runs
from tests.support.tables import Tables

NAMES = ["lr_batch", "trajectory", "bound_verification", "stochastic", "double_descent"]
NAMES += ["clipping", "regularizers", "linear_relu"]
EPOCHS = 20


@lru_cache(maxsize=16)
def drawn(name: str, seeds: int = 3) -> tuple[Sweep, dict[str, Figure]]:
    """The laptop's figures: a tiny trial's metrics, scattered around, at many epochs."""
    sweep: Sweep = import_module(f"sweeps.{name}").SWEEP
    rng = np.random.default_rng(1)
    rows, points, steps = [], [], {}
    for space in sweep.spaces("laptop").values():
        trials = space.trials()
        summary, history = sweep_runs.measured(trials[0])
        for kind in (t for t in trials if t.seed == trials[0].seed):
            for seed in range(seeds):
                trial = kind.changed({"seed": seed})
                factor = float(np.exp(rng.normal(0, 0.2)))
                rows.append(row_of(trial, {k: _times(v, factor) for k, v in summary.items()}))
                last = {k: _times(v, factor) for k, v in history[-1].items()}
                for i in range(1, EPOCHS + 1):
                    more = {"trial_id": trial.trial_id, "epoch": float(i), "step": 10 * i}
                    points.append({**last, **more})
                both = dict.fromkeys(("gradient_dispersion", "gradient_dispersion_neu"), factor)
                steps[trial.trial_id] = pd.DataFrame({"step": range(9), **both})
    tables = Tables(pd.DataFrame(rows), pd.DataFrame(points), steps)
    return sweep, sweep.plot(tables)


def _times(value: object, factor: float) -> object:
    return value * factor if isinstance(value, float) else value


def texts(figure: Figure) -> list[Text]:
    """All that is written in it."""
    figure.draw_without_rendering()
    found = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible())
    return [text for text in found if isinstance(text, Text) and text.get_text().strip()]


@pytest.mark.parametrize("name", NAMES)
def test_text_is_legible_and_inside_the_figure(name: str) -> None:
    for figure in drawn(name)[1].values():
        with style():
            inside = [t for t in texts(figure) if t.axes is None or t.axes.get_visible()]
            width, height = figure.get_size_inches() * figure.dpi
            assert min(float(text.get_fontsize()) for text in inside) >= 7
            titles = [axis.title for axis in figure.axes if axis.get_visible()]
            boxes = [title.get_window_extent() for title in titles if title.get_text()]
        assert all(box.x0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
        clashes = [a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]]
        assert not any(clashes)


@pytest.mark.parametrize("name", NAMES)
def test_figures_fit_a_page(name: str) -> None:
    for figure in drawn(name)[1].values():
        width, height = figure.get_size_inches()
        assert width <= 7
        assert height <= 9.5


@pytest.mark.parametrize("name", NAMES)
def test_fonts_are_embedded_as_such(name: str, tmp_path: Path) -> None:
    save_figures(drawn(name)[1], tmp_path)
    for path in tmp_path.glob("*.pdf"):
        data = path.read_bytes()
        assert b"/FontFile2" in data  # TrueType
        assert b"/Type3" not in data
        assert path.with_suffix(".svg").read_text().count("<text") == 0


def spreads(axis: Axes) -> bool:
    """It shows the deviation over seeds, as bars or as a band (a gap: every seed's line)."""
    bars = [c for c in axis.containers if isinstance(c, ErrorbarContainer)]
    bands = [c for c in axis.collections if isinstance(c, PolyCollection)]
    return any(bar.has_xerr or bar.has_yerr for bar in bars) or bool(bands)


@pytest.mark.parametrize("name", NAMES)
def test_several_seeds_show_their_deviation_and_the_caption_says_so(name: str) -> None:
    sweep, figures = drawn(name)
    for figure in figures.values():
        panels = [axis for axis in figure.axes if axis.get_visible()]
        assert all(spreads(axis) for axis in panels)
    assert "one standard deviation" in re.sub(r"\s+", " ", " ".join(sweep.captions.values()))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "linear_relu"])
def test_panels_have_letters(name: str) -> None:
    for figure in drawn(name)[1].values():
        titles = [a.get_title() for a in figure.axes if a.get_visible() and a.get_title()]
        assert [t[:3] for t in titles] == [f"({chr(97 + i)})" for i in range(len(titles))]


def test_figure_1_tells_how_far_apart_its_curves_end() -> None:
    sweep, figures = drawn("trajectory")
    (space,) = sweep.spaces("laptop").values()
    last = sweep_runs.measured(space.trials()[0])[1][-1]
    upper = [a for a in figures["figure1"].axes if a.get_ylabel() == "trajectory term"]
    assert len(upper) == len(READINGS)
    for axis, std in zip(upper, READINGS, strict=True):
        # Of one seed and, the same, of the geometric mean: all points of a trial scatter alike.
        parts = last["sum/dispersion"], last[at("sum/sensitivity", std)]
        ratio = math.sqrt(2 * sum(parts) / parts[0])
        told = axis.get_title().splitlines()[-1]
        assert told == f"at the end Neu et al. {short_number(ratio)} × ours"


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.1, 0.7), (95, 700), (0.003, 0.04), (1, 500), (1e-9, 3), (5, 3e6), (2e-6, 9e-6)],
)
def test_a_log_axis_has_ticks_enough_and_reads_well(low: float, high: float) -> None:
    with style():
        figure = new_figure(3, 2)
        axis = figure.subplots()
        axis.plot([0, 1], [low, high])
        axis.set_yscale("log")
        log_scale(axis)
        figure.draw_without_rendering()
        bottom, top = axis.get_ylim()
        shown = [
            label.get_text()
            for place, label in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)
            if bottom <= place <= top
        ]
    assert len(shown) >= 3
    assert not [text for text in shown if re.search(r"e[-+]|-|0{5}", text)]
