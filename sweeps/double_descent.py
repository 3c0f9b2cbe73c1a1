"""Figure 3: the gradient dispersion descends twice along training, and where its valley lies.

    python sweeps/double_descent.py --scale laptop     # bundled digits: 6 minutes on 2 cores
    python sweeps/double_descent.py --scale paper      # MNIST and CIFAR-10, 500 and 200 epochs

A panel per model and label noise (0, 0.2, 0.4, 0.6 of the train and of the test labels redrawn),
epoch by epoch until all training labels are fitted (Wang & Mao, ICLR 2022, Figure 3):

    dispersion       V_t, mean over the steps of an epoch   gisgd_ray.measures.dispersion
    train, test      accuracy on the whole split            gisgd_ray.training.evaluation
    valley           lowest V between the two descents      gisgd_ray.claims.valley.find_valley

Weights and biases start as in the authors' code at both scales (Xavier-normal, N(0,1)): from
PyTorch's initialisation V hardly descends before it rises. The paper scale takes the momentum of
that code, 0.9, of which the text has none: at its learning rates plain SGD would not fit noisy
labels within its epochs. V is measured alike; the bounds then lie outside the theorem.
"""

import sys

import numpy as np
import pandas as pd

from gisgd_ray.claims.figure3 import DISPERSION, NOISE, claims, courses, figure_panels
from gisgd_ray.claims.points import TEST, TRAIN, finished
from gisgd_ray.config.space import SearchSpace
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.figures.charts import (
    DASHED,
    DOTTED,
    Chart,
    Look,
    Panel,
    figure,
    marked,
    mean_over_seeds,
)
from gisgd_ray.figures.run_panels import RunPanel
from gisgd_ray.figures.theme import COLOURS
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner.main import main
from gisgd_ray.sweep import Sweep

# To 100 % training accuracy at every noise level, 0 included.
COMMON = {
    NOISE: [0.0, 0.2, 0.4, 0.6],
    "training.initialization": "xavier",
    "training.stop_loss": None,
    "training.stop_at_full_accuracy": True,
}

LAPTOP = {
    # An epoch of 4,000 digits is 67 steps, not 1,000: twice the step of the authors' code (0.01
    # with momentum 0.9 moves as far as 0.1 without).
    "mlp_mnist5k": SearchSpace(
        fields={
            **COMMON,
            "data.dataset": "mnist5k",
            "model.name": "mlp",
            "training.learning_rate": 0.2,
            "training.batch_size": 60,
            "training.max_epochs": 150,
        },
        seeds=5,
    ),
    # 1,000 digits and 256 units before the output: AlexNet's convolutions are slow without a GPU.
    "alexnet_mnist5k": SearchSpace(
        fields={
            **COMMON,
            "data.dataset": "mnist5k",
            "data.train_fraction": 0.25,
            "model.name": "alexnet",
            "model.filters": 8,
            "model.hidden": 256,
            "training.learning_rate": 0.05,
            "training.batch_size": 50,
            "training.max_epochs": 150,
            # Dear in a convolutional network, and no part of the figure.
            "measurement.flatness": False,
            "measurement.smoothness": False,
        },
        seeds=2,
    ),
}

PAPER = {
    "mlp_mnist": SearchSpace(
        fields={
            **COMMON,
            "data.dataset": "mnist",
            "model.name": "mlp",
            "training.learning_rate": 0.01,
            "training.momentum": 0.9,
            "training.batch_size": 60,
            "training.max_epochs": 500,
        }
    ),
    "alexnet_cifar10": SearchSpace(
        fields={
            **COMMON,
            "data.dataset": "cifar10",
            "model.name": "alexnet",
            "training.learning_rate": 0.001,
            "training.momentum": 0.9,
            "training.batch_size": 60,
            "training.max_epochs": 200,
        }
    ),
}

LOOKS = {
    "train accuracy": marked(0),
    "test accuracy": marked(1),
    "dispersion V": marked(2, right=True),
    "valley of V": Look(COLOURS[6], dash=DASHED, drawn="rule"),
    "best test accuracy": Look(COLOURS[1], dash=DOTTED, drawn="rule"),
}
LEGEND = tuple(LOOKS)


def check(config: TrialConfig) -> None:
    """Figure 3 needs V of single runs."""
    if not config.measurement.dispersion:
        raise UserError(
            "measurement.dispersion = false leaves out what Figure 3 is about; leave it true"
        )
    if config.replicas is not None:
        raise UserError(
            f"replicas = {config.replicas}: Figure 3 looks for the valley of V run by run; choose "
            "replicas = null and several seeds"
        )


def plot(tables: ResultTables) -> dict[str, Chart]:
    """Figure 3: two panels a row, label noise ascending within a model and dataset."""
    shown = [
        (where.with_setting(NOISE, noise).printed, trials)
        for where, levels in figure_panels(finished(tables)).items()
        for noise, trials in levels.items()
    ]
    if not shown:
        return {}
    drawn = [_panel(tables, title, trials) for title, trials in shown]
    return {"figure3": figure(drawn, LOOKS, right="dispersion", domain=(0, 102), height=130)}


def _panel(tables: ResultTables, title: str, trials: pd.DataFrame) -> Panel:
    """Curves and upright lines; where those stand is said in words above."""
    history = tables.history
    points = history[history["trial_id"].isin(trials["trial_id"])]
    percent = points.assign(train=100 * points[TRAIN], test=100 * points[TEST])
    rows = [
        mean_over_seeds(percent, "epoch", column, name)
        for column, name in zip(("train", "test", DISPERSION), LEGEND, strict=False)
    ]
    seen = courses(tables, trials)
    lowest = [each.valley.epoch for each in seen if each.valley is not None]
    best = [each.best_epoch for each in seen if np.isfinite(each.best_epoch)]
    told: list[str] = []
    for epochs, name in ((lowest, LEGEND[3]), (best, LEGEND[4])):
        if epochs:
            at = float(np.mean(epochs))
            rows.append(pd.DataFrame({"x": [at], "series": [name]}))
            told.append(f"{name} at {'' if told else 'epoch '}{at:.3g}")
    return Panel(pd.concat(rows), title, "epoch", "accuracy (%)", [", ".join(told)])


SWEEP = Sweep(
    name="double_descent",
    item="Figure 3",
    description="Gradient dispersion, training and test accuracy along training at four "
    "levels of label noise: the epoch-wise double descent of the dispersion and its valley.",
    panels={"laptop": LAPTOP, "paper": PAPER},
    plot=plot,
    claims=claims,
    check=check,
    captions={
        "figure3": "Left axis: training and test accuracy. Right axis: the gradient dispersion V, "
        "mean over the steps of an epoch. Label noise is the fraction of train and of test labels "
        "redrawn at random. Dashed, the valley: the lowest V between its two descents, in the "
        "mean over the seeds in which it is more than scatter; dotted, the best test accuracy, "
        "beside which there may be others as good (see the claims). With several seeds, "
        "means with one standard deviation shaded; towards the end over the seeds that have not "
        "yet fitted all labels."
    },
    run_panels=[
        RunPanel("Training and test accuracy", "lines", [TRAIN, TEST], x="epoch", each=NOISE),
        RunPanel("Gradient dispersion V", "lines", [DISPERSION], x="epoch", each=NOISE),
    ],
)

if __name__ == "__main__":
    sys.exit(main(SWEEP))
