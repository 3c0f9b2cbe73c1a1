"""Figure 3: epoch-wise double descent of the gradient dispersion, and the test accuracy.

    python sweeps/double_descent.py --scale laptop     # bundled digits: 6 minutes on 2 cores
    python sweeps/double_descent.py --scale paper      # MNIST and CIFAR-10

At label noise 0, 0.2, 0.4 and 0.6 (train and test labels redrawn at random; Wang & Mao, ICLR 2022,
Figure 3), along training, mean and std over seeds:

    train and test accuracy (left axis)
    V_t, mean over the steps between two points (right axis)     gisgd_ray.measures.dispersion

and the valley of V (gisgd_ray.claims.figure3.find_valley) beside the best test accuracy. Nothing
else is measured. The paper's text has no momentum, its authors' code 0.9, without which AlexNet
does not memorise CIFAR-10 in 200 epochs at this learning rate: at the paper scale AlexNet has it.
"""

import sys

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gisgd_ray.claims.figure3 import DISPERSION, NOISE, TEST, TRAIN, claims, panel_facts
from gisgd_ray.claims.points import points_after_start
from gisgd_ray.config import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.panels import MODELS
from gisgd_ray.reporting.figures import COLOURS, curve, new_figure, style
from gisgd_ray.results import ResultTables
from gisgd_ray.search_space import SearchSpace
from gisgd_ray.sweep import Sweep, main

COMMON = {
    NOISE: [0.0, 0.2, 0.4, 0.6],
    # Every run goes on to the last epoch, memorised or not: curves end alike.
    "training.stop_loss": None,
    "training.stop_at_full_accuracy": False,
    "measurement.hessian_trace": "off",
    "measurement.flatness": False,
    "measurement.smoothness": False,
}

LAPTOP = {
    # Few digits and large steps: an epoch here does what ten do at the paper's scale, so that V is
    # shown four times in each.
    "mlp": SearchSpace(
        fields={
            **COMMON,
            "data.dataset": "mnist5k",
            "model.name": "mlp",
            "training.batch_size": 50,
            "training.learning_rate": 0.1,
            "training.max_epochs": 45,
            "training.evaluation.unit": "step",
            "training.evaluation.every": 20,
        },
        seeds=3,
    ),
    # 1,000 digits and 256 units before the output: AlexNet's convolutions are slow without a GPU.
    "alexnet": SearchSpace(
        fields={
            **COMMON,
            "data.dataset": "mnist5k",
            "data.train_fraction": 0.25,
            "model.name": "alexnet",
            "model.filters": 8,
            "model.hidden": 256,
            "training.initialization": "kaiming",
            "training.batch_size": 50,
            "training.learning_rate": 0.02,
            "training.max_epochs": 60,
        },
        seeds=2,
    ),
}

PAPER = {
    "mlp": SearchSpace(
        fields={
            **COMMON,
            "data.dataset": "mnist",
            "model.name": "mlp",
            "training.learning_rate": 0.01,
            "training.max_epochs": 500,
        }
    ),
    "alexnet": SearchSpace(
        fields={
            **COMMON,
            "data.dataset": "cifar10",
            "model.name": "alexnet",
            "training.learning_rate": 0.001,
            "training.momentum": 0.9,
            "training.max_epochs": 200,
        }
    ),
}


def check(config: TrialConfig) -> None:
    """Figure 3 is of the dispersion."""
    if not config.measurement.dispersion:
        raise UserError(
            "measurement.dispersion = false leaves out what Figure 3 is about; leave it true, or "
            "run another sweep"
        )


def plot(tables: ResultTables) -> dict[str, Figure]:
    """A figure for each model: a panel per noise level (and other setting)."""
    by_model: dict[str, dict[str, tuple[pd.DataFrame, pd.DataFrame]]] = {}
    for title, (trials, rows) in panel_facts(tables).items():
        model = str(trials["model.name"].iloc[0])
        by_model.setdefault(model, {})[title] = (trials, rows)
    return {f"figure3_{model}": _figure(tables, shown) for model, shown in by_model.items()}


def _figure(tables: ResultTables, shown: dict[str, tuple[pd.DataFrame, pd.DataFrame]]) -> Figure:
    rows = (len(shown) + 1) // 2
    with style():
        figure = new_figure(6.8, 2.6 * rows + 0.4)
        axes = figure.subplots(rows, 2, squeeze=False)
        for axis in axes.flat[len(shown) :]:
            axis.set_visible(False)
        for i, (axis, (title, (trials, found))) in enumerate(
            zip(axes.flat, shown.items(), strict=False)
        ):
            right = _panel(axis, points_after_start(tables, trials), found)
            short = title.replace("label_noise", "noise")
            axis.set_title(f"({chr(ord('a') + i)}) {short}", wrap=True)
            if i == 0:
                handles = [*axis.get_legend_handles_labels()[0], *right.lines]
                figure.legend(
                    handles=[h for h in handles if not str(h.get_label()).startswith("_")],
                    loc="outside lower center",
                    ncols=3,
                )
    return figure


def _panel(axis: Axes, points: pd.DataFrame, found: pd.DataFrame) -> Axes:
    """Accuracies on the left axis, the dispersion on a right one, which is returned."""
    right = axis.twinx()
    right.spines["right"].set_visible(True)
    right.grid(visible=False)
    shown = points.assign(train=100 * points[TRAIN], test=100 * points[TEST])
    curve(axis, shown, "epoch", "train", label="train accuracy", place=2)
    curve(axis, shown, "epoch", "test", label="test accuracy", place=1)
    curve(right, shown, "epoch", DISPERSION, label="dispersion V", place=0, marked=False)
    # The first steps, from the initial weights, are many times the rest and would flatten it.
    early = shown["epoch"] <= shown["epoch"].min()
    right.set_ylim(0, 1.15 * shown.loc[~early].groupby("epoch")[DISPERSION].mean().max())
    valley, best = found["valley_epoch"].dropna(), found["best_epoch"]
    for epochs, colour, line, label in (
        (best, COLOURS[1], ":", "best test accuracy"),
        (valley, COLOURS[0], "--", "valley of V"),
    ):
        # An empty line keeps its place in the legend where a panel has no valley.
        at = [epochs.mean()] * 2 if len(epochs) else []
        right.plot(
            at,
            [0, right.get_ylim()[1]] if len(epochs) else [],
            color=colour,
            linestyle=line,
            linewidth=1.2,
            label=label,
        )
    axis.set_ylim(0, 104)
    axis.set_xlabel("epoch")
    axis.set_ylabel("accuracy (%)")
    right.set_ylabel("V")
    right.yaxis.set_major_locator(MaxNLocator(5))
    axis.set_zorder(right.get_zorder() + 1)
    axis.patch.set_visible(False)
    return right


SWEEP = Sweep(
    name="double_descent",
    item="Figure 3",
    description="Figure 3: gradient dispersion, train and test accuracy along training, at four "
    "levels of label noise.",
    panels={"laptop": LAPTOP, "paper": PAPER},
    plot=plot,
    claims=claims,
    check=check,
    captions={
        f"figure3_{model}": f"{MODELS[model]}: train and test accuracy (left axis) and the "
        "gradient dispersion V (right axis; mean over the steps between two points, the first "
        "point beyond the axis). Lines across: the valley of V before its second descent, where "
        "there is one, and the best test accuracy, both of smoothed curves and means over the "
        "seeds. Means with one standard deviation shaded."
        for model in ("mlp", "alexnet")
    },
)

if __name__ == "__main__":
    sys.exit(main(SWEEP))
