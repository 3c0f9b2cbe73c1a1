"""Figure 2: does the bound of Eq. 3 follow the true gap? Width, filters and label noise.

    python sweeps/bound_verification.py --scale laptop     # bundled digits: 6 minutes on 2 cores
    python sweeps/bound_verification.py --scale paper      # MNIST and CIFAR-10

Against the network's size ((a) MLP width, (b) AlexNet filters) and the fraction of train and test
labels redrawn at random ((c), (d)), on a log axis (Wang & Mao, ICLR 2022, Figure 2):

    bound  Eq. 3                     gisgd_ray.theory.bounds.theorem2_closed_form
    gap    test loss - training loss

With label noise, training goes on to 100 % training accuracy; without, until the loss is small.
"""

import sys

import pandas as pd

from gisgd_ray.claims.figure2 import AXES, AxisPanel, axis_panels, claims
from gisgd_ray.claims.points import finished
from gisgd_ray.config.space import SearchSpace
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.figures.charts import (
    Chart,
    Panel,
    figure,
    marked,
    mean_over_seeds,
)
from gisgd_ray.figures.run_panels import RunPanel
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner.main import main
from gisgd_ray.sweep import Sweep

MLP = {"model.name": "mlp", "model.width": 512}
ALEXNET = {"model.name": "alexnet", "model.filters": 64}
# The label-noise panels stop alike at every level, level 0 included.
NOISY = {"training.stop_at_full_accuracy": True}
LEVELS = [0.0, 0.15, 0.3, 0.45, 0.6]

LAPTOP_MLP = {
    "data.dataset": "mnist5k",
    "training.learning_rate": 0.1,
    "training.stop_loss": 1e-3,
}
# 500 digits and 256 units before the output: AlexNet's convolutions are slow without a GPU. From
# PyTorch's initialisation plain SGD stays 50 epochs at chance; from the authors' it does not.
LAPTOP_ALEXNET = {
    "data.dataset": "mnist5k",
    "data.train_fraction": 0.125,
    "model.hidden": 256,
    "training.initialization": "xavier",
    "training.learning_rate": 0.05,
    "training.batch_size": 50,
    "training.stop_loss": 5e-3,
    "training.evaluation.every": 2,
    "measurement.flatness_draws": 6,
}
LAPTOP = {
    "mlp_width": SearchSpace(
        fields={**MLP, **LAPTOP_MLP, "model.width": [100, 200, 300, 400, 500]}, seeds=3
    ),
    "alexnet_filters": SearchSpace(
        fields={**ALEXNET, **LAPTOP_ALEXNET, "model.filters": [4, 6, 8, 12, 16]}
    ),
    "mlp_noise": SearchSpace(fields={**MLP, **LAPTOP_MLP, **NOISY, "data.label_noise": LEVELS}),
    "alexnet_noise": SearchSpace(
        fields={
            **ALEXNET,
            **LAPTOP_ALEXNET,
            **NOISY,
            "model.filters": 8,
            "data.label_noise": LEVELS,
        }
    ),
}

PAPER_MLP = {
    "data.dataset": "mnist",
    "training.learning_rate": 0.01,
    "training.stop_loss": 1e-4,
    "training.max_epochs": 5000,
}
PAPER_ALEXNET = {
    "data.dataset": "cifar10",
    "training.learning_rate": 0.001,
    "training.stop_loss": 1e-4,
    "training.max_epochs": 5000,
}
NOISE = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
PAPER = {
    "mlp_width": SearchSpace(fields={**MLP, **PAPER_MLP, "model.width": [100, 200, 300, 400, 500]}),
    "alexnet_filters": SearchSpace(
        fields={**ALEXNET, **PAPER_ALEXNET, "model.filters": [10, 20, 30, 40, 50, 60]}
    ),
    "mlp_noise": SearchSpace(fields={**MLP, **PAPER_MLP, **NOISY, "data.label_noise": NOISE}),
    "alexnet_noise": SearchSpace(
        fields={**ALEXNET, **PAPER_ALEXNET, **NOISY, "data.label_noise": NOISE}
    ),
}


def check(config: TrialConfig) -> None:
    """Eq. 3 needs the dispersion and the Hessian trace."""
    m = config.measurement
    if not m.dispersion or m.hessian_trace == "off":
        off = "hessian_trace = 'off'" if m.dispersion else "dispersion = false"
        raise UserError(
            f"measurement.{off} leaves Eq. 3 undefined, which Figure 2 shows; leave it on"
        )


def plot(tables: ResultTables) -> dict[str, Chart]:
    """Figure 2: a panel per model, dataset and swept axis; sizes above, label noise below."""
    found = axis_panels(finished(tables))
    shown = sorted(found, key=lambda panel: panel.axis == "data.label_noise")
    drawn = [
        Panel(_curves(each), each.printed, each.axis.rpartition(".")[2].replace("_", " "), "loss")
        for each in shown
    ]
    return {"figure2": figure(drawn, LOOKS, log=True, height=175)} if drawn else {}


LOOKS = {
    "bound (Eq. 3)": marked(0),
    "gap": marked(1),
}


def _curves(shown: AxisPanel) -> pd.DataFrame:
    bound, gap = (
        mean_over_seeds(shown.trials, shown.axis, column, name)
        for column, name in (("bound/theorem2_closed_form", "bound (Eq. 3)"), ("gap/loss", "gap"))
    )
    return pd.concat([bound, gap])


SWEEP = Sweep(
    name="bound_verification",
    item="Figure 2",
    description="The bound of Eq. 3 and the true generalization gap against network "
    "size and label noise.",
    panels={"laptop": LAPTOP, "paper": PAPER},
    plot=plot,
    claims=claims,
    check=check,
    captions={
        "figure2": "The bound of Eq. 3 and the gap (test loss minus training loss) at the end of "
        "training. Label noise is the fraction of train and of test labels redrawn at random. "
        "With several seeds, means with one standard deviation shaded; where that reaches below "
        "zero, which a log axis does not have, the upper half alone."
    },
    run_panels=[
        RunPanel(
            f"{what} against {AXES[path][0]}",
            "scatter",
            [metric],
            x=path,
            # A negative gap has no place on a log axis.
            log_y=metric != "gap/loss",
            only={"model.name": model, **(NOISY if noisy else {})},
            without={} if noisy else NOISY,
        )
        for model, path, noisy in (
            ("mlp", "model.width", False),
            ("alexnet", "model.filters", False),
            ("mlp", "data.label_noise", True),
            ("alexnet", "data.label_noise", True),
        )
        for metric, what in (
            ("bound/theorem2_closed_form", "Bound (Eq. 3)"),
            ("gap/loss", "Gap (test loss minus training loss)"),
        )
    ],
)

if __name__ == "__main__":
    sys.exit(main(SWEEP))
