"""Figure 5: Theorem 2 against Lemma 2 in the stochastic setting, from replicas in lockstep.

    python sweeps/stochastic.py --scale laptop     # 600 digits, twice 20 replicas: 5 minutes
    python sweeps/stochastic.py --scale paper      # a tenth of MNIST

Runs of 20 seeds advance step by step together, so that expectations over W are means over them at
every step (Wang & Mao, ICLR 2022, Figure 5 and appendix E.2):

    V_t   about the mean over W and Z    measures/dispersion.py, Eq. 1
    V~_t  about the mean over Z alone    Neu et al.
    (a)-(c)  trajectory terms of Theorem 2 (bounds.theorem2_trajectory) and of Lemma 2
             (bounds.lemma2_trajectory) for sigma = 1e-2, 1e-4, 1e-6, R and n included
    (d)      V_t and V~_t

Psi is measured after every 5th step and linear in t in between.
"""

import sys

import pandas as pd

from gisgd_ray.claims.figure5 import claims
from gisgd_ray.claims.points import NOISE_STDS, finished, noise_stds, points_after_start
from gisgd_ray.config.space import SearchSpace
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.figures.charts import DASHED, Chart, Look, Panel, figure, marked, mean_over_seeds
from gisgd_ray.figures.run_panels import RunPanel
from gisgd_ray.figures.theme import COLOURS
from gisgd_ray.numbers import format_noise_std
from gisgd_ray.results.panels import panels
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner.main import main
from gisgd_ray.sweep import Sweep
from gisgd_ray.theory.quantities import at

COMMON = {
    "model.name": "mlp",
    "replicas": 20,
    "training.learning_rate": 0.01,
    "training.batch_size": 60,
    "training.stop_loss": None,
    "training.max_steps": 100,
    "training.evaluation.unit": "step",
    "training.evaluation.every": 10,
    "measurement.sensitivity": True,
    "measurement.sensitivity_schedule.unit": "step",
    "measurement.sensitivity_schedule.every": 5,
    "measurement.noise_stds": [1e-2, 1e-4, 1e-6],
}

LAPTOP = {
    "mlp_mnist5k": SearchSpace(
        fields={
            "data.dataset": "mnist5k",
            # 600 digits: ten whole batches. A smaller last one would disperse three times as much.
            "data.train_fraction": 0.15,
            **COMMON,
        },
        seeds=2,  # a trial for each core: other 20 replicas, for the intervals of the claims
    )
}

PAPER = {
    "mlp_mnist": SearchSpace(
        fields={
            "data.dataset": "mnist",
            "data.train_fraction": 0.1,
            **COMMON,
        }
    )
}


def check(config: TrialConfig) -> None:
    """Figure 5 needs replicas and Psi."""
    if config.replicas is None:
        raise UserError(
            "replicas = null is the deterministic setting, in which V and V~ are the same number; "
            "Figure 5 needs replicas = 2 or more (the paper: 20)"
        )
    for field in ("sensitivity", "dispersion"):
        if not getattr(config.measurement, field):
            raise UserError(
                f"measurement.{field} = false leaves out what Figure 5 compares; leave it true"
            )


def plot(tables: ResultTables) -> dict[str, Chart]:
    """Figure 5 (a)-(d); one figure per model, dataset and other setting."""
    shown = panels(finished(tables), [NOISE_STDS])
    figures = {}
    for place, (title, group) in enumerate(shown.items()):
        stds = noise_stds(group)
        history = points_after_start(tables, group)
        drawn = [
            Panel(
                _terms(history, noise_std),
                f"σ = {format_noise_std(noise_std)}",
                "iteration",
                "trajectory term",
            )
            for noise_std in stds
        ]
        rows = _dispersions(tables, group)
        drawn.append(Panel(rows, "V and Ṽ", "iteration", "gradient dispersion"))
        heading = f"{title.printed}, {group['replicas'].iloc[0]:.0f} replicas"
        name = "figure5" + (f"_{place + 1}" if place else "")
        figures[name] = figure(drawn, LOOKS, log=True, title=heading)
    return figures


TERMS = {"theorem2": "Theorem 2 (ours)", "lemma2": "Lemma 2 (Neu et al.)"}
DISPERSIONS = {
    "gradient_dispersion": "V (ours, over W and Z)",
    "gradient_dispersion_neu": "Ṽ (Neu et al., over Z alone)",
}
LOOKS = {
    TERMS["theorem2"]: marked(0),
    TERMS["lemma2"]: marked(1),
    # In print without colours there are no marks to go by.
    DISPERSIONS["gradient_dispersion"]: Look(COLOURS[0]),
    DISPERSIONS["gradient_dispersion_neu"]: Look(COLOURS[1], dash=DASHED),
}


def _terms(history: pd.DataFrame, noise_std: float) -> pd.DataFrame:
    known = history.dropna(subset=[at("term/lemma2_trajectory", noise_std)])
    return pd.concat(
        mean_over_seeds(known, "step", at(f"term/{name}_trajectory", noise_std), label)
        for name, label in TERMS.items()
    )


def _dispersions(tables: ResultTables, group: pd.DataFrame) -> pd.DataFrame:
    steps = pd.concat([tables.steps(trial_id) for trial_id in group["trial_id"]])
    return pd.concat(
        mean_over_seeds(steps, "step", column, label) for column, label in DISPERSIONS.items()
    )


SWEEP = Sweep(
    name="stochastic",
    item="Figure 5",
    description="The trajectory terms of Theorem 2 and of Neu et al.'s Lemma 2 in the "
    "stochastic setting, and the two gradient dispersions.",
    panels={"laptop": LAPTOP, "paper": PAPER},
    plot=plot,
    claims=claims,
    check=check,
    captions={
        "figure5": "(a)-(c) The trajectory terms up to each iteration, all constants included. "
        "(d) The gradient dispersion V about the mean over W and Z (ours, Eq. 1) and Ṽ about the "
        "mean over Z alone (Neu et al.) at every iteration; expectations over W are means over the "
        "replicas. With several seeds (other replicas), means with one standard deviation shaded."
    },
    run_panels=[
        RunPanel(
            "Trajectory terms: Theorem 2 (ours) and Lemma 2 (Neu et al.)",
            "lines",
            ["term/theorem2_trajectory@", "term/lemma2_trajectory@"],
            x="step",
            log_y=True,
        ),
        RunPanel(
            "V (ours, about E over W and Z) and Ṽ (Neu et al., over Z alone)",
            "lines",
            ["measure/gradient_dispersion", "measure/gradient_dispersion_neu"],
            x="step",
            log_y=True,
        ),
    ],
)

if __name__ == "__main__":
    sys.exit(main(SWEEP))
