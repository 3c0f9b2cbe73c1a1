"""Figures 4 and 9: does dynamic gradient clipping stop the memorising of noisy labels?

    python sweeps/clipping.py --scale laptop     # bundled digits: 7 minutes on 2 cores
    python sweeps/clipping.py --scale paper      # MNIST and CIFAR-10
    python sweeps/clipping.py --scale laptop --seeds 1 --training.max_epochs 22    # the shortest

Train and test accuracy along training with a fraction 0.2 or 0.4 of the train and test labels
redrawn at random, for the MLP (Wang & Mao, ICLR 2022, Figure 4) and AlexNet (Figure 9), by

    SGD
    clipping, running minimum    Algorithm 1      gisgd_ray.schemes.clipping
    clipping, lag of K steps     section 5        gisgd_ray.schemes.clipping

each with the mean and the std over seeds; a triangle shows after which epoch clipping began
(gisgd_ray.claims.figure4.begun). Clipping starts where the gradient norm first grows from one epoch
to the next (appendix E.5), or at the epoch T_c of the authors' commands: 15 for the MLP, 20 for
AlexNet, with K or the initial threshold G = 50. Those commands also have momentum 0.9 and Xavier
initialisation, which the paper's text does not: --training.momentum 0.9
--training.initialization xavier.
"""

import sys

import numpy as np
import pandas as pd

from gisgd_ray.claims.figure4 import FACTOR, Variant, begun, claims, figure_panels
from gisgd_ray.claims.points import TEST, TRAIN, finished, points_after_start
from gisgd_ray.config.space import UNMEASURED, SearchSpace
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.figures.charts import DASHED, Chart, Look, Panel, figure, mean_over_seeds
from gisgd_ray.figures.run_panels import RunPanel
from gisgd_ray.figures.theme import COLOURS, GREY
from gisgd_ray.numbers import format_setting
from gisgd_ray.results.panels import Title
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner.main import main
from gisgd_ray.sweep import Sweep

COMMON = {
    "data.label_noise": [0.2, 0.4],
    # Every run goes on to the last epoch, memorised or not: curves end alike.
    "training.stop_loss": None,
    "training.stop_at_full_accuracy": False,
}
SGD = {"scheme.name": "sgd"}
CLIPPING = {"scheme.name": "clipping", "scheme.factor": 0.1}
AUTOMATIC = {**CLIPPING, "scheme.variant": "running_minimum", "scheme.start_epoch": None}


def running_minimum(start_epoch: int) -> dict[str, object]:
    """Algorithm 1 as in the authors' commands."""
    return {**AUTOMATIC, "scheme.start_epoch": start_epoch, "scheme.initial_threshold": 50.0}


def lag(start_epoch: int) -> dict[str, object]:
    """Section 5's variant as in the authors' commands."""
    start = {"scheme.start_epoch": start_epoch}
    return {**CLIPPING, "scheme.variant": "lag", "scheme.lag": 50, **start}


LAPTOP_MLP = {
    **COMMON,
    "data.dataset": "mnist5k",
    "model.name": "mlp",
    "training.learning_rate": 0.1,
    "training.max_epochs": 60,
}
# 4,000 digits are memorised sooner than 60,000: SGD is at its best after two to five epochs, and
# T_c = 15 would be too late. The running minimum has its automatic start alone, which comes after
# three to five epochs as well. The lag stays K = 50 steps, here 3/4 of an epoch (there 1/20): with
# K = 250 and one seed the curves were the same, for batches differ more than the mean norm moves.
LAPTOP_MLP_START = 5
# 1,000 digits and 256 units before the output: AlexNet's convolutions are slow without a GPU. From
# Xavier's and PyTorch's initialisation SGD stays at chance for many epochs, and an automatic start
# among those leaves it far behind. Nothing but the accuracies is measured.
LAPTOP_ALEXNET = {
    **COMMON,
    "data.dataset": "mnist5k",
    "data.train_fraction": 0.25,
    "model.name": "alexnet",
    "model.filters": 8,
    "model.hidden": 256,
    "training.initialization": "kaiming",
    "training.learning_rate": 0.02,
    "training.batch_size": 50,
    "training.max_epochs": 40,
    "training.evaluation.every": 2,
    **UNMEASURED,
}
LAPTOP = {
    "mlp_sgd": SearchSpace(fields={**LAPTOP_MLP, **SGD}, seeds=4),
    "mlp_running_minimum": SearchSpace(fields={**LAPTOP_MLP, **AUTOMATIC}, seeds=4),
    "mlp_lag": SearchSpace(fields={**LAPTOP_MLP, **lag(LAPTOP_MLP_START)}, seeds=4),
    "alexnet_sgd": SearchSpace(fields={**LAPTOP_ALEXNET, **SGD}, seeds=3),
    "alexnet_running_minimum": SearchSpace(fields={**LAPTOP_ALEXNET, **AUTOMATIC}, seeds=3),
    "alexnet_running_minimum_20": SearchSpace(
        fields={**LAPTOP_ALEXNET, **running_minimum(20)}, seeds=3
    ),
    "alexnet_lag": SearchSpace(fields={**LAPTOP_ALEXNET, **lag(20)}, seeds=3),
}

PAPER_MLP = {
    **COMMON,
    "data.dataset": "mnist",
    "model.name": "mlp",
    "training.learning_rate": 0.01,
    "training.max_epochs": 500,
}
PAPER_ALEXNET = {
    **COMMON,
    "data.dataset": "cifar10",
    "model.name": "alexnet",
    "training.learning_rate": 0.001,
    "training.max_epochs": 200,
}
PAPER = {
    "mlp_sgd": SearchSpace(fields={**PAPER_MLP, **SGD}),
    "mlp_running_minimum": SearchSpace(fields={**PAPER_MLP, **AUTOMATIC}),
    "mlp_running_minimum_15": SearchSpace(fields={**PAPER_MLP, **running_minimum(15)}),
    "mlp_lag": SearchSpace(fields={**PAPER_MLP, **lag(15)}),
    "alexnet_sgd": SearchSpace(fields={**PAPER_ALEXNET, **SGD}),
    "alexnet_running_minimum": SearchSpace(fields={**PAPER_ALEXNET, **AUTOMATIC}),
    "alexnet_running_minimum_20": SearchSpace(fields={**PAPER_ALEXNET, **running_minimum(20)}),
    "alexnet_lag": SearchSpace(fields={**PAPER_ALEXNET, **lag(20)}),
}


def check(config: TrialConfig) -> None:
    """The runs of a panel are compared at their last epoch, which must be the same."""
    t = config.training
    for name, value, off in (
        ("stop_loss", t.stop_loss, None),
        ("stop_at_full_accuracy", t.stop_at_full_accuracy, False),
    ):
        if value is not off:
            raise UserError(
                f"training.{name} = {format_setting(value)} may end runs with and without clipping "
                "at different epochs, and Figures 4 and 9 compare them at their end; choose "
                f"{format_setting(off)}"
            )


def plot(tables: ResultTables) -> dict[str, Chart]:
    """Figure 4 (MLP) and Figure 9 (AlexNet), each with a panel per dataset and noise level."""
    found = figure_panels(finished(tables))
    figures = {
        name: {
            title: schemes
            for title, schemes in found.items()
            if (title.model == "alexnet") == (name == "figure9")
        }
        for name in ("figure4", "figure9")
    }
    return {name: _figure(tables, shown) for name, shown in figures.items() if shown}


def _figure(tables: ResultTables, shown: dict[Title, list[Variant]]) -> Chart:
    places = _places([variant for schemes in shown.values() for variant in schemes])
    rows = [
        pd.concat([_curves(points_after_start(tables, v.trials), v.label) for v in schemes])
        for schemes in shown.values()
    ]
    every, std = pd.concat(rows), pd.concat(rows)["std"].fillna(0.0)
    low, high = float((every["y"] - std).min()), float((every["y"] + std).max())
    for place, schemes in enumerate(shown.values()):
        begins = [_begins(points_after_start(tables, v.trials), v.label) for v in schemes]
        found = pd.concat(begins)
        above = found["scheme"].map(lambda name: 0.04 + 0.05 * (places[name] % len(COLOURS)))
        rows[place] = pd.concat([rows[place], found.assign(y=low + above * (high - low))])
    drawn = [
        Panel(curves, title.printed, "epoch", "accuracy (%)")
        for title, curves in zip(shown, rows, strict=True)
    ]
    colours = {name: COLOURS[at % len(COLOURS)] for name, at in places.items()}
    return figure(drawn, LOOKS, domain=(low, high), schemes=colours, height=180)


LOOKS = {
    "test accuracy": Look(GREY),
    "train accuracy": Look(GREY, dash=DASHED),
    "clipping begins (each seed)": Look(GREY, "triangle-up", drawn="marks"),
}


def _places(variants: list[Variant]) -> dict[str, int]:
    """Colours by label: black without clipping, then the same for the same way of clipping.

    Of the colours those that differ in grey as well: a lag's is the lightest.
    """
    preferred = {("running_minimum", True): 0, ("lag", False): 4, ("running_minimum", False): 2}
    places: dict[str, int] = {}
    for variant in variants:
        way = (str(variant.setting.get("scheme.variant")), variant.starts_by_itself)
        wanted = preferred.get(way, 3) if variant.clips else len(COLOURS) - 1
        free = [i for i in range(len(COLOURS)) if i not in places.values()]
        place = wanted if wanted in free or not free else free[0]
        places.setdefault(variant.label, place)
    return places


def _curves(points: pd.DataFrame, label: str) -> pd.DataFrame:
    """Test and train accuracy of one scheme."""
    percent = points.assign(test=100 * points[TEST], train=100 * points[TRAIN])
    curves = [
        mean_over_seeds(percent, "epoch", column, name)
        for column, name in zip(("test", "train"), LOOKS, strict=False)
    ]
    return pd.concat(curves).assign(scheme=label)


def _begins(points: pd.DataFrame, label: str) -> pd.DataFrame:
    """Where each of its seeds began to clip, if it did."""
    epochs = [begun(run) for _, run in points.groupby("trial_id")]
    rows = pd.DataFrame({"x": [epoch for epoch in epochs if np.isfinite(epoch)]})
    return rows.assign(series=list(LOOKS)[2], scheme=label, marked=True)


SWEEP = Sweep(
    name="clipping",
    item="Figures 4 and 9",
    description="Train and test accuracy along training with noisy labels, with "
    "and without dynamic gradient clipping.",
    panels={"laptop": LAPTOP, "paper": PAPER},
    plot=plot,
    claims=claims,
    check=check,
    captions={
        name: f"{model}: test accuracy (solid) and train accuracy (dashed) along training, with "
        "label noise in both splits, by SGD and by dynamic gradient clipping with α = 0.1. "
        "Triangles: the last measured epoch before a gradient was clipped. With several seeds, "
        "means with one standard deviation shaded."
        for name, model in (("figure4", "MLP"), ("figure9", "AlexNet"))
    },
    run_panels=[
        RunPanel(what, "lines", [metric], x="epoch", each="data.label_noise")
        for metric, what in (
            (TEST, "Test accuracy"),
            (TRAIN, "Train accuracy"),
            (FACTOR, "Clipped to this part of the gradient"),
        )
    ],
)

if __name__ == "__main__":
    sys.exit(main(SWEEP))
