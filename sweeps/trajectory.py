"""Figure 1: the trajectory term of Theorem 2 against that of Neu et al.'s Lemma 2, epoch by epoch.

    python sweeps/trajectory.py --scale laptop     # bundled digits, MLP: 5 minutes
    python sweeps/trajectory.py --scale paper      # MNIST and CIFAR-10, full size

Deterministic setting: W_0 and the batching trajectory are fixed by the seed. As in the paper
(Wang & Mao, ICLR 2022, Figure 1 and appendix E.2) R, lambda, sigma, d and n are dropped:

    ours       sqrt( sum_t V_t )               V_t    gisgd_ray.measures.dispersion
    Neu et al. sqrt( 2 sum_t (Psi_t + V_t) )   Psi_t  gisgd_ray.measures.sensitivity

Psi is the mean of 20 draws over the whole training set, after every epoch, linear in t in between.
The bounds with all their constants are in every row and on the page (gisgd_ray.theory.bounds).
"""

import sys
from collections.abc import Mapping

import pandas as pd

from gisgd_ray.claims.figure1 import claims, figure_curves, ratio_at_end
from gisgd_ray.claims.points import NOISE_STDS, finished, noise_stds, points_after_start
from gisgd_ray.claims.statistics import short_number
from gisgd_ray.config.space import SearchSpace
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.figures.charts import Chart, Panel, figure, letter, marked, mean_over_seeds
from gisgd_ray.figures.run_panels import RunPanel
from gisgd_ray.numbers import format_noise_std
from gisgd_ray.results.panels import panels
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner.main import main
from gisgd_ray.sweep import Sweep
from gisgd_ray.theory.quantities import at

# The paper writes sigma = 1e-5 and 1e-6, and calls it both the std and "the variance parameter" of
# the noise: both readings, the variances' stds first.
READINGS = [1e-5**0.5, 1e-6**0.5, 1e-5, 1e-6]

COMMON = {
    "training.batch_size": 60,
    "training.stop_loss": None,
    "measurement.sensitivity": True,
    NOISE_STDS: READINGS,
}

LAPTOP = {
    # Ten times the paper's learning rate: 50 epochs of 4,000 digits are 3,350 steps, not 50,000.
    "mlp_mnist5k": SearchSpace(
        fields={
            "data.dataset": "mnist5k",
            "model.name": "mlp",
            "training.learning_rate": 0.1,
            "training.max_epochs": 50,
            **COMMON,
        }
    )
}

PAPER = {
    "mlp_mnist": SearchSpace(
        fields={
            "data.dataset": "mnist",
            "model.name": "mlp",
            "training.learning_rate": 0.01,
            "training.max_epochs": 50,
            **COMMON,
        }
    ),
    "cnn_cifar10": SearchSpace(
        fields={
            "data.dataset": "cifar10",
            "model.name": "alexnet",
            "training.learning_rate": 0.001,
            "training.max_epochs": 100,
            **COMMON,
        }
    ),
}


def check(config: TrialConfig) -> None:
    """Figure 1 needs Psi."""
    for field in ("sensitivity", "dispersion"):
        if not getattr(config.measurement, field):
            raise UserError(
                f"measurement.{field} = false leaves out what Figure 1 is about; leave it true, or "
                "run another sweep"
            )
    if config.replicas is not None:
        raise UserError(
            f"replicas = {config.replicas}: Figure 1 is of the deterministic setting; choose "
            "replicas = null, or sweeps/stochastic.py"
        )


def points(tables: ResultTables, trials: pd.DataFrame, noise_std: float) -> pd.DataFrame:
    """The measuring points of Psi of some trials at one noise std, with both curves."""
    history = points_after_start(tables, trials)
    psi = at("measure/local_gradient_sensitivity", noise_std)
    known = history[history[psi].notna()]
    return known.join(figure_curves(known, noise_std)).assign(psi=known[psi])


def plot(tables: ResultTables) -> dict[str, Chart]:
    """Figure 1, a panel per model, dataset and sigma; and below it what the curves are made of."""
    shown = [
        (title.printed, noise_std, points(tables, group, noise_std))
        for title, group in panels(finished(tables), [NOISE_STDS]).items()
        for noise_std in noise_stds(group)
    ]
    drawn: list[Panel] = []
    for place in range(0, len(shown), 2):
        pair = shown[place : place + 2]
        letters = [letter(len(drawn) + i) for i in range(len(pair))]
        for title, noise_std, frame in pair:
            ratio = ratio_at_end(frame, noise_std)
            told = [f"at the end Neu et al. {short_number(ratio.center)} × ours"] if ratio.n else []
            more = [_sigma(noise_std), *told]
            drawn.append(Panel(_curves(frame, TERMS), title, "epoch", "trajectory term", more))
        for above, (_, _, frame) in zip(letters, pair, strict=True):
            title = f"what is summed in ({above})"
            drawn.append(Panel(_curves(frame, PARTS), title, "epoch", "per step"))
    return {"figure1": figure(drawn, LOOKS, log=True, height=135)} if drawn else {}


def _sigma(noise_std: float) -> str:
    """The std, and its square where the paper's sigma may be meant as that."""
    if noise_std > 1e-4:
        return f"σ = {noise_std:.3g}, σ² = {format_noise_std(float(f'{noise_std**2:.3g}'))}"
    return f"σ = {format_noise_std(noise_std)}"


TERMS = {"neu": "Neu et al. (Lemma 2)", "ours": "ours (Theorem 2)"}
PARTS = {"psi": "sensitivity Ψ (Neu et al.)", "measure/gradient_dispersion": "dispersion V"}
PLACES = {"neu": 1, "ours": 0, "psi": 4, "measure/gradient_dispersion": 2}
LOOKS = {label: marked(PLACES[column]) for column, label in {**TERMS, **PARTS}.items()}


def _curves(frame: pd.DataFrame, series: Mapping[str, str]) -> pd.DataFrame:
    return pd.concat(
        mean_over_seeds(frame, "epoch", column, name) for column, name in series.items()
    )


SWEEP = Sweep(
    name="trajectory",
    item="Figure 1",
    description="The trajectory term of Theorem 2 (ours) and of Neu et al.'s Lemma 2 "
    "along training, in the deterministic setting.",
    panels={"laptop": LAPTOP, "paper": PAPER},
    plot=plot,
    claims=claims,
    check=check,
    captions={
        "figure1": "Above, the trajectory terms with R, λ, σ, d and n dropped, as in the paper: "
        "ours √ΣV, Neu et al. √(2Σ(Ψ+V)), up to each epoch. Ours is below whatever the data, since "
        "Ψ ≥ 0 makes the ratio √2 at least: what they say is the ratio at the end, above each "
        "panel. Below, what is summed: the local gradient sensitivity Ψ (measured at the points) "
        "and the gradient dispersion V (mean over the steps between two). The paper shows σ = 1e-5 "
        "and 1e-6 and calls σ the variance parameter as well: σ² stands beside σ where that may "
        "apply. With several seeds, means with one standard deviation shaded."
    },
    run_panels=[
        # W&B's panels show what was logged: the sums, not their roots.
        RunPanel(
            "Sums up to each epoch: V (ours) and Ψ, which Neu et al. add to it",
            "lines",
            ["sum/dispersion", "sum/sensitivity@"],
            x="epoch",
            log_y=True,
        ),
        RunPanel(
            "Sensitivity Ψ and dispersion V per step",
            "lines",
            ["measure/local_gradient_sensitivity@", "measure/gradient_dispersion"],
            x="epoch",
            log_y=True,
        ),
        RunPanel(
            "Trajectory terms with all constants: Theorem 2 (ours) and Lemma 2 (Neu et al.)",
            "lines",
            ["term/theorem2_trajectory@", "term/lemma2_trajectory@"],
            x="epoch",
            log_y=True,
        ),
    ],
)

if __name__ == "__main__":
    sys.exit(main(SWEEP))
