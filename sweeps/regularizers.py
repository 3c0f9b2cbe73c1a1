"""Tables 1-3: test accuracy and time of GMP beside ERM and the regularisation schemes.

    python sweeps/regularizers.py --scale laptop     # bundled digits: 8 minutes on 2 cores
    python sweeps/regularizers.py --scale paper      # VGG16, PreActResNet18: SVHN and CIFAR

Scheme x model x dataset x seeds (Wang & Mao, ICLR 2022, Tables 1-3): the accuracy on the test split
after the last step, mean and standard deviation over the seeds, beside the paper's, and the time of
a training step relative to ERM's. The schemes: gisgd_ray.schemes, a file each.

Nothing is measured on line here, so that the times are those of the schemes; any measurement can be
switched on, as in ``--measurement.dispersion true``.
"""

import sys
from typing import Any

import altair as alt
import pandas as pd

from gisgd_ray.claims.paper_tables import TABLES, Accuracy
from gisgd_ray.claims.points import finished
from gisgd_ray.claims.tables1_3 import ERM, by_panel, claims, gmp_schemes, relative_time
from gisgd_ray.config.catalogue import MODELS
from gisgd_ray.config.space import UNMEASURED, SearchSpace
from gisgd_ray.figures.charts import DASHED, DIGITS, Chart, grid, inline, lettered
from gisgd_ray.figures.run_panels import RunPanel
from gisgd_ray.figures.tables import Row, Table
from gisgd_ray.figures.theme import COLOURS
from gisgd_ray.numbers import DASH, Cell
from gisgd_ray.results.panels import Title
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner.main import main
from gisgd_ray.sweep import Sweep

ACCURACY_ONLY: dict[str, Any] = {
    "training.stop_loss": None,
    "training.stop_at_full_accuracy": False,
    **UNMEASURED,
}


def schemes(*, radius: float) -> dict[str, dict[str, Any]]:
    """The rows of the tables; ``radius`` is AMP's."""
    gmp = {"scheme.name": "gmp", "scheme.noise_std": 0.03, "scheme.rho": 0.5}
    return {
        "erm": {"scheme.name": "sgd"},
        "dropout": {"scheme.name": "dropout", "scheme.rate": 0.1},
        "label_smoothing": {"scheme.name": "label_smoothing", "scheme.smoothing": 0.2},
        "flooding": {"scheme.name": "flooding", "scheme.level": 0.02},
        "mixup": {"scheme.name": "mixup", "scheme.alpha": 1.0},
        "adversarial": {"scheme.name": "adversarial", "scheme.pixels": 1.0},
        "amp": {"scheme.name": "amp", "scheme.radius": radius},
        "gmp3": {**gmp, "scheme.draws": 3},
        "gmp10": {**gmp, "scheme.draws": 10},
        "gmp3_absolute": {**gmp, "scheme.draws": 3, "scheme.variant": "absolute"},
    }


def spaces(
    name: str, fields: dict[str, Any], *, radius: float, seeds: int
) -> dict[str, SearchSpace]:
    """One model on one dataset by every scheme."""
    return {
        f"{name}_{scheme}": SearchSpace(fields={**ACCURACY_ONLY, **fields, **own}, seeds=seeds)
        for scheme, own in schemes(radius=radius).items()
    }


# A fifth of the labels redrawn: with clean digits all schemes end within a point of one another.
LAPTOP_DATA = {"data.dataset": "mnist5k", "data.label_noise": 0.2, "training.batch_size": 50}
LAPTOP = {
    **spaces(
        "mlp",
        {
            **LAPTOP_DATA,
            "data.train_fraction": 0.25,
            "model.name": "mlp",
            "training.learning_rate": 0.1,
            "training.max_epochs": 40,
            "training.evaluation.every": 10,
        },
        radius=0.1,
        seeds=3,
    ),
    # Momentum as at the paper's scale: plain SGD stays at chance for most of so few steps.
    **spaces(
        "alexnet",
        {
            **LAPTOP_DATA,
            "data.train_fraction": 0.2,
            "model.name": "alexnet",
            "model.filters": 8,
            "model.hidden": 128,
            "training.initialization": "xavier",
            "training.learning_rate": 0.03,
            "training.momentum": 0.9,
            "training.max_epochs": 24,
            "training.evaluation.every": 8,
        },
        # At VGG16's radius so narrow a network learns nothing in so few steps: it stays at chance.
        radius=0.01,
        seeds=3,
    ),
}

PAPER_TRAINING = {
    "training.learning_rate": 0.1,
    "training.lr_milestones": [100, 150],
    "training.batch_size": 50,
    "training.momentum": 0.9,
    "training.nesterov": True,
    "training.weight_decay": 1e-4,
    "training.max_gradient_norm": 50.0,
    "training.initialization": "kaiming",
    "training.max_epochs": 200,
    "training.evaluation.every": 10,
}
PAPER_DATA: dict[str, dict[str, Any]] = {
    "svhn": {"data.crop_padding": 2},
    "cifar10": {"data.crop_padding": 4, "data.flip": True},
    "cifar100": {"data.crop_padding": 4, "data.flip": True},
}
RADII = {"vgg16": 0.1, "preactresnet18": 0.5}
PAPER = {
    name: space
    for model, radius in RADII.items()
    for dataset, augmentation in PAPER_DATA.items()
    for name, space in spaces(
        f"{model}_{dataset}",
        {**PAPER_TRAINING, **augmentation, "data.dataset": dataset, "model.name": model},
        radius=radius,
        seeds=10,
    ).items()
}


def result_tables(tables: ResultTables) -> list[Table]:
    """A table per model, dataset and setting: ours, the paper's, and the time against ERM."""
    return [_table(title, panel) for title, panel in by_panel(finished(tables)).items()]


def _table(title: Title, panel: pd.DataFrame) -> Table:
    model, dataset = title.model, title.dataset
    paper = TABLES.get(model, TABLES["vgg16"])
    same = model in TABLES and dataset in paper[ERM]
    shown = dataset if same else "cifar10"
    by_scheme = panel.groupby("scheme", sort=False)["accuracy"]
    means, stds = by_scheme.mean(), by_scheme.std()
    best = set(means[means >= means.nlargest(3).min()].index)
    rows = []
    for scheme in means.index:
        theirs = paper.get(scheme, {}).get(shown)
        time = relative_time(panel, scheme)
        cells = [
            _percent(Accuracy(means[scheme], stds[scheme])),
            _percent(theirs) if theirs else Cell(DASH, None),
            Cell(f"{time.center:.2f} ×" if time.n else DASH, time.center),
        ]
        rows.append(Row(str(scheme), cells, bold=frozenset({0} if scheme in best else ())))
    reference = f"paper: {MODELS.printed(model if model in TABLES else 'vgg16')} on {shown}"
    n = panel["seed"].nunique()
    over = "One seed" if n == 1 else f"Mean ± standard deviation over {n} seeds"
    aside = "" if same else " The paper has no such setting: its numbers are of another, as named."
    return Table(
        title=str(title),
        headings=["test accuracy (%)", reference, "time of a step, ERM = 1"],
        rows=rows,
        caption=f"{over}, after the last step; the three best in bold.{aside} Times relative to "
        "ERM’s of the same seed, geometric mean: the processor’s time for trials on a CPU, the "
        "first trial of a process with its warm-up.",
    )


def _percent(accuracy: Accuracy) -> Cell:
    text = f"{accuracy.mean:.2f}" + (f" ± {accuracy.std:.2f}" if accuracy.std >= 0 else "")
    return Cell(text, accuracy.mean)


def plot(tables: ResultTables) -> dict[str, Chart]:
    """A panel per model and dataset: every trial's test accuracy by scheme, and the means."""
    shown = by_panel(finished(tables))
    if not shown:
        return {}
    drawn = [
        _dots(rows, lettered(place, title.printed))
        for place, (title, rows) in enumerate(shown.items())
    ]
    return {"regularizers": grid(drawn, room=108)}


def _dots(rows: pd.DataFrame, title: list[str]) -> alt.LayerChart:
    """Trials as dots, means with bars, ERM's mean as a line down the panel."""
    names, ours = list(dict.fromkeys(rows["scheme"])), gmp_schemes(rows)
    rows = rows[["scheme", "accuracy", "seed"]].assign(gmp=rows["scheme"].isin(ours))
    by_scheme = rows.groupby(["scheme", "gmp"], sort=False)["accuracy"]
    means = pd.DataFrame({"accuracy": by_scheme.mean(), "std": by_scheme.std()}).reset_index()
    colour = alt.when(alt.datum.gmp).then(alt.value(COLOURS[0])).otherwise(alt.value(COLOURS[6]))
    x = alt.X("accuracy:Q", title="test accuracy (%)", scale=alt.Scale(zero=False, padding=8))
    y = alt.Y("scheme:N", title=None, scale=alt.Scale(domain=names), axis=alt.Axis(grid=True))
    told = [alt.Tooltip("scheme:N"), alt.Tooltip("accuracy:Q", format=DIGITS)]
    of_trials = alt.Chart(inline(rows))
    of_means = alt.Chart(inline(means))
    dot = of_trials.mark_point(filled=True, opacity=0.4, size=30, strokeWidth=0)
    dots = dot.encode(x=x, y=y, fill=colour, tooltip=[*told, alt.Tooltip("seed:N")])
    std = alt.Tooltip("std:Q", title="one standard deviation", format=DIGITS)
    mean = of_means.encode(y=y, stroke=colour, tooltip=[*told, std])
    ends = mean.transform_filter("isValid(datum.std)").transform_calculate(
        low="datum.accuracy - datum.std", high="datum.accuracy + datum.std"
    )
    low = alt.X("low:Q", title="test accuracy (%)")
    cap: dict[str, Any] = {"orient": "vertical", "thickness": 1.4, "opacity": 1}
    layers = [
        dots,
        ends.mark_rule().encode(x=low, x2="high:Q"),
        ends.mark_tick(**cap, size=7).encode(x=low),
        ends.mark_tick(**cap, size=7).encode(x="high:Q"),
        mean.mark_tick(**cap, size=14).encode(x=x, fill=colour),
    ]
    if ERM in names:
        erm = alt.Chart(inline(means[means["scheme"] == ERM]))
        line = erm.mark_rule(stroke=COLOURS[1], strokeDash=list(DASHED), strokeWidth=1.3)
        layers.insert(0, line.encode(x=x))
    return alt.LayerChart(layer=layers, title=alt.Title(title), height=21 * len(names))


SWEEP = Sweep(
    name="regularizers",
    item="Tables 1-3",
    description="Test accuracy and time of Gaussian model perturbation (GMP) beside "
    "other regularisation schemes.",
    panels={"laptop": LAPTOP, "paper": PAPER},
    plot=plot,
    claims=claims,
    tables=result_tables,
    captions={
        "regularizers": "Test accuracy after the last step: every trial (dots), mean and one "
        "standard deviation over the seeds (bars); GMP in blue, ERM’s mean dashed."
    },
    run_panels=[
        RunPanel("Test accuracy after the last step", "bars", ["test/accuracy"]),
        RunPanel("Time of all training steps in s", "bars", ["time/training_s"]),
        RunPanel("Test accuracy along training", "lines", ["test/accuracy"], x="epoch"),
    ],
)

if __name__ == "__main__":
    sys.exit(main(SWEEP))
