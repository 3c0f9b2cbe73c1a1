"""Figure 6: how learning rate and batch size move the two factors of the bound of Eq. 3.

    python sweeps/lr_batch.py                    # laptop or paper scale, whichever fits
    python sweeps/lr_batch.py --scale laptop     # 5,000 real digits, 36 trials

Every trial trains until its mean training loss is below the threshold. Plotted against batch size,
one curve per learning rate (Wang & Mao, ICLR 2022, Figure 6):

    trajectory factor  (R^2 T / n) sum_t lambda_t^2 V_t   gisgd_ray.theory.bounds.trajectory_factor
    flatness factor    Tr E_Z[H_{W_T}(Z)]                 gisgd_ray.measures.hessian

whose product is cubed-rooted by Eq. 3: gen <= (3/2) (trajectory * flatness)^(1/3).
"""

import sys

import pandas as pd

from gisgd_ray.claims import figure6
from gisgd_ray.claims.figure6 import BATCH, FLATNESS, RATE, TRAJECTORY
from gisgd_ray.claims.points import finished
from gisgd_ray.config.space import SearchSpace
from gisgd_ray.figures.run_panels import RunPanel
from gisgd_ray.figures.style import COLOURS, MARKERS, Axes, Figure, log_scale, new_figure, style
from gisgd_ray.results.panels import panels
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner.main import main
from gisgd_ray.sweep import Sweep

LAPTOP = {
    # Larger steps and a higher threshold than the paper's: with plain SGD the number of steps
    # grows as 1 / (learning rate * threshold). Three seeds: by two, a t test decides
    # next to nothing.
    "mlp_mnist5k": SearchSpace(
        fields={
            "data.dataset": "mnist5k",
            "model.name": "mlp",
            "model.width": 512,
            RATE: [0.05, 0.1, 0.2],
            BATCH: [20, 40, 80, 120],
            "training.stop_loss": 3e-3,
        },
        seeds=3,
    )
}

PAPER = {
    # The text trains without momentum to 1e-4, however long it takes; the authors' code takes
    # momentum 0.9 and at most 500 (MLP) and 200 (AlexNet) epochs.
    "mlp_mnist": SearchSpace(
        fields={
            "data.dataset": "mnist",
            "model.name": "mlp",
            "model.width": 512,
            RATE: [0.001, 0.005, 0.01],
            BATCH: [20, 40, 60, 80, 100, 120],
            "training.stop_loss": 1e-4,
            "training.max_epochs": 5000,
        }
    ),
    "alexnet_cifar10": SearchSpace(
        fields={
            "data.dataset": "cifar10",
            "model.name": "alexnet",
            "model.filters": 64,
            RATE: [0.0005, 0.001, 0.005],
            BATCH: [50, 100, 150, 200, 250],
            "training.stop_loss": 1e-4,
            "training.max_epochs": 5000,
        }
    ),
}


def plot(tables: ResultTables) -> dict[str, Figure]:
    """Figure 6: a row per model and dataset, trajectory factor left, flatness factor right."""
    rows = panels(finished(tables), [RATE, BATCH])
    with style():
        figure = new_figure(6.5, 2.6 * len(rows))
        axes = figure.subplots(len(rows), 2, squeeze=False)
        for row, (pair, (title, group)) in enumerate(zip(axes, rows.items(), strict=True)):
            columns = ((TRAJECTORY, "trajectory factor"), (FLATNESS, "flatness factor"))
            for side, (axis, (column, name)) in enumerate(zip(pair, columns, strict=True)):
                _curves(axis, group, column)
                axis.set_title(f"({chr(ord('a') + 2 * row + side)}) {title.printed}")
                axis.set_xlabel("batch size")
                axis.set_ylabel(name)
            pair[0].legend()
    return {"figure6": figure}


def _curves(axis: Axes, group: pd.DataFrame, column: str) -> None:
    """One curve per learning rate: mean over seeds, bars of one standard deviation."""
    for i, (rate, curve) in enumerate(group.groupby(RATE)):
        by_batch = curve.groupby(BATCH)[column]
        mean, std = by_batch.mean(), by_batch.std()
        axis.errorbar(
            mean.index,
            mean,
            yerr=std if std.notna().any() else None,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            capsize=2,
            label=f"lr = {rate:.3g}",
        )
    log_scale(axis)


SWEEP = Sweep(
    name="lr_batch",
    item="Figure 6",
    description="The impact of learning rate and batch size on the trajectory factor "
    "and the flatness factor of the bound of Eq. 3.",
    panels={"laptop": LAPTOP, "paper": PAPER},
    plot=plot,
    claims=figure6.claims,
    captions={
        "figure6": "Left the trajectory factor (R² T/n) Σ λ² V, right the flatness factor Tr H, at "
        "the end of training, against batch size; a curve per learning rate λ. With several seeds, "
        "means with bars of one standard deviation."
    },
    run_panels=[
        RunPanel(
            f"{name} against batch size, coloured by learning rate",
            "scatter",
            [metric],
            x=BATCH,
            colour=RATE,
            log_y=True,
        )
        for metric, name in ((TRAJECTORY, "Trajectory factor"), (FLATNESS, "Flatness factor"))
    ],
)

if __name__ == "__main__":
    sys.exit(main(SWEEP))
