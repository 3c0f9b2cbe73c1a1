"""Every sweep's figures as a journal would take them, from tiny trials of several seeds."""

import math
import re
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gisgd_ray.claims.statistics import short_number
from gisgd_ray.figures import theme
from gisgd_ray.figures.charts import Chart, save_charts
from gisgd_ray.results.tables import row_of
from gisgd_ray.sweep import Sweep
from gisgd_ray.theory.quantities import at
from sweeps.trajectory import READINGS
from tests.support import sweep_runs
from tests.support.charts import drawn as panels_of
from tests.support.tables import Tables

NAMES = ["lr_batch", "trajectory", "bound_verification", "stochastic", "double_descent"]
NAMES += ["clipping", "regularizers", "linear_relu"]
EPOCHS = 20


@lru_cache(maxsize=16)
def drawn(name: str, seeds: int = 3) -> tuple[Sweep, dict[str, Chart]]:
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


@pytest.mark.parametrize("name", NAMES)
def test_files_fit_a_page_and_are_legible(name: str, tmp_path: Path) -> None:
    for figure, path in save_charts(drawn(name)[1], tmp_path).items():
        svg = path.read_text(encoding="utf-8")
        found = re.search(r'width="([\d.]+)" height="([\d.]+)"', svg)
        assert found
        assert float(found[1]) <= theme.WIDTH, figure
        assert float(found[2]) <= 9.5 * 96, figure
        sizes = [float(size) for size in re.findall(r'font-size="([\d.]+)px"', svg)]
        assert min(sizes) >= 7 * 96 / 72
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("name", NAMES)
def test_no_title_runs_into_the_next_one(name: str) -> None:
    """Half of a page has room for some fifty letters of eight points."""
    for chart in drawn(name)[1].values():
        lines = [line for panel in panels_of(chart) for line in panel.title]
        assert lines
        assert max(map(len, lines)) <= 50


@pytest.mark.parametrize("name", NAMES)
def test_several_seeds_show_their_deviation_and_the_caption_says_so(name: str) -> None:
    sweep, charts = drawn(name)
    for chart in charts.values():
        for panel in panels_of(chart):
            assert panel.rows["std"].notna().any()
            spread = [layer for layer in panel.layers if "std" in str(layer.get("transform"))]
            assert {layer["mark"]["type"] for layer in spread} & {"area", "rule"}
    assert "one standard deviation" in re.sub(r"\s+", " ", " ".join(sweep.captions.values()))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "linear_relu"])
def test_panels_have_letters(name: str) -> None:
    for chart in drawn(name)[1].values():
        titles = [panel.title[0] for panel in panels_of(chart)]
        assert [t[:3] for t in titles] == [f"({chr(97 + i)})" for i in range(len(titles))]


def test_figure_1_tells_how_far_apart_its_curves_end() -> None:
    sweep, charts = drawn("trajectory")
    (space,) = sweep.spaces("laptop").values()
    last = sweep_runs.measured(space.trials()[0])[1][-1]
    shown = panels_of(charts["figure1"])
    upper = [panel for panel in shown if panel.axes[1]["title"] == "trajectory term"]
    assert len(upper) == len(READINGS)
    assert len(shown) == 2 * len(READINGS)
    for panel, std in zip(upper, READINGS, strict=True):
        # Of one seed and, the same, of the geometric mean: all points of a trial scatter alike.
        parts = last["sum/dispersion"], last[at("sum/sensitivity", std)]
        ratio = math.sqrt(2 * sum(parts) / parts[0])
        assert panel.title[-1] == f"at the end Neu et al. {short_number(ratio)} × ours"
    told = [panel.title[0].partition(" in ")[2] for panel in shown if panel not in upper]
    assert told == [panel.title[0][:3] for panel in upper]
