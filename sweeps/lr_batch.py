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
from gisgd_ray.figures.charts import Chart, Panel, figure, marked, mean_over_seeds
from gisgd_ray.figures.run_panels import RunPanel
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


def plot(tables: ResultTables) -> dict[str, Chart]:
    """Figure 6: a row per model and dataset, trajectory factor left, flatness factor right."""
    trials = finished(tables)
    rates = {rate: f"lr = {rate:g}" for rate in sorted(trials[RATE].unique())}
    looks = {name: marked(place) for place, name in enumerate(rates.values())}
    shown = [
        Panel(
            pd.concat(
                mean_over_seeds(part, BATCH, column, rates[rate])
                for rate, part in group.groupby(RATE)
            ),
            title.printed,
            "batch size",
            name,
        )
        for title, group in panels(trials, [RATE, BATCH]).items()
        for column, name in ((TRAJECTORY, "trajectory factor"), (FLATNESS, "flatness factor"))
    ]
    return {"figure6": figure(shown, looks, log=True, bars=True, height=175)} if shown else {}


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
