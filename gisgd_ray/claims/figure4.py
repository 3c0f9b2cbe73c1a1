"""What the paper reads off Figures 4 and 9: dynamic gradient clipping under label noise.

From the history of each trial, per seed (accuracies are fractions):

    best     largest test accuracy of any measured epoch
    lasting  the same of the running median over 5 epochs
    final    test (or train) accuracy, the mean over the last tenth of the measured epochs
    reached  first measured epoch at which the test accuracy is 95 % of the best without clipping
    begun    last measured epoch before any gradient was clipped; infinite if none ever was

A run with clipping is compared with the run without of the same seed: up to ``begun`` they are one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from gisgd_ray.claims.accuracies import (
    AccuracyInterval,
    HeldOut,
    Points,
    accuracy_interval,
    accuracy_test,
    held_out,
    less_sure,
    lift_of_best,
    sign_test,
)
from gisgd_ray.claims.claim import Claim, corrected_together
from gisgd_ray.claims.points import TEST, TRAIN, finished, numbers, points_after_start, reading
from gisgd_ray.claims.statistics import PValues, all_of
from gisgd_ray.claims.valley import running_median
from gisgd_ray.results.panels import Title, distinct_labels, panels
from gisgd_ray.results.tables import ResultTables

FACTOR = "measure/gradient_factor"
TOLERANCE = 3.0
"""How many percentage points below its best a test accuracy still is near it; as in Figure 3."""
CONVERGED = 0.95
"""Share of the best test accuracy at which it counts as converged."""
SLOWER = 1.25
"""Up to this ratio of epochs one run converges as fast as another."""
NO_PAIR = "no finished run without clipping of the same seed (n = 0)"

Facts = pd.DataFrame
"""One row per seed with a run with and one without clipping; columns end in _with, _without."""


@dataclass(frozen=True)
class Variant:
    """The trials of one panel that were trained by one scheme; they differ in the seed alone."""

    label: str
    trials: pd.DataFrame = field(repr=False)

    @property
    def setting(self) -> "pd.Series[Any]":
        """A row of it, for what its trials have in common."""
        return self.trials.iloc[0]

    @property
    def clips(self) -> bool:
        return bool(self.setting["scheme.name"] == "clipping")

    @property
    def starts_by_itself(self) -> bool:
        return self.clips and _start_epoch(self.setting) is None


def figure_panels(trials: pd.DataFrame) -> dict[Title, list[Variant]]:
    """The figures' panels by title, one per model, dataset and noise level: their schemes."""
    schemes = [column for column in trials.columns if column.startswith("scheme.")]
    return {title: variants(group) for title, group in panels(trials, schemes).items()}


def variants(panel: pd.DataFrame) -> list[Variant]:
    """The schemes of one panel, those without clipping first, each under a label of its own."""
    schemes = [column for column in panel.columns if column.startswith("scheme.")]
    labels = distinct_labels(panel, panel.apply(_label, axis=1), schemes)
    found = [Variant(str(label), group) for label, group in panel.groupby(labels, sort=False)]
    return sorted(found, key=lambda variant: variant.clips)


def _label(trial: "pd.Series[Any]") -> str:
    if trial["scheme.name"] == "sgd":
        return "SGD"
    if trial["scheme.name"] != "clipping":
        return str(trial["scheme.name"])
    lag = trial.get("scheme.variant") == "lag"
    variant = f"lag of {trial.get('scheme.lag', math.nan):.0f} steps" if lag else "running minimum"
    start = _start_epoch(trial)
    return f"{variant}, {'automatic start' if start is None else f'from epoch {start:.0f}'}"


def _start_epoch(trial: "pd.Series[Any]") -> float | None:
    start = trial.get("scheme.start_epoch")
    return None if start is None or pd.isna(start) else float(start)


def begun(points: pd.DataFrame) -> float:
    """Last measured epoch of a run before it clipped a gradient; infinite if it never did.

    A point's factor is the mean over the steps since the point before, below 1 if any was scaled.
    """
    clipped = np.flatnonzero(numbers(points, FACTOR) < 1)
    if len(clipped) == 0:
        return math.inf
    return float(points["epoch"].iloc[clipped[0] - 1]) if clipped[0] else 0.0


def pairs(tables: ResultTables, with_clipping: Variant, without: Variant) -> Facts:
    """What the claims compare, one row per seed of which there are both runs."""
    runs = {
        name: {
            seed: points_after_start(tables, trials).dropna(subset=[TEST, TRAIN])
            for seed, trials in variant.trials.groupby("seed")
        }
        for name, variant in (("with", with_clipping), ("without", without))
    }
    rows = []
    for seed in runs["with"]:
        both = {name: mine[seed] for name, mine in runs.items() if seed in mine}
        if len(both) < 2 or any(points.empty for points in both.values()):
            continue
        level = CONVERGED * both["without"][TEST].max()
        row = {"seed": seed, "begun": begun(both["with"]), "near": _last_near(both["without"])}
        for name, points in both.items():
            best = float(points[TEST].max())
            row[f"best_{name}"] = best
            row[f"lasting_{name}"] = float(running_median(points[TEST]).max())
            row[f"unlifted_{name}"] = best - lift_of_best(points[TEST])
            row[f"final_{name}"] = _final(points[TEST])
            row[f"gap_{name}"] = _final(points[TRAIN]) - _final(points[TEST])
            row[f"reached_{name}"] = _first_at(points, level)
        rows.append(row)
    columns = ["seed", "begun", "near"]
    kept = ("best", "lasting", "unlifted", "final", "gap", "reached")
    columns += [f"{c}_{n}" for c in kept for n in runs]
    return pd.DataFrame(rows, columns=columns)


def _final(values: "pd.Series[float]") -> float:
    return float(values.iloc[-max(1, len(values) // 10) :].mean())


def _first_at(points: pd.DataFrame, level: float) -> float:
    above = points["epoch"][points[TEST] >= level]
    return float(above.iloc[0]) if len(above) else math.inf


def _last_near(points: pd.DataFrame) -> float:
    near = points["epoch"][points[TEST] >= points[TEST].max() - TOLERANCE / 100]
    return float(near.iloc[-1])


@reading("Figures 4 and 9", trials=["scheme.name"], history=["step", "epoch", TEST, TRAIN])
def claims(tables: ResultTables) -> list[Claim]:
    """Figures 4 and 9, for each panel and way of clipping: three claims, and one on its start."""
    found = []
    for title, schemes in figure_panels(finished(tables)).items():
        plain = next((v for v in schemes if v.setting["scheme.name"] == "sgd"), None)
        for variant in schemes:
            if not variant.clips:
                continue
            facts = pairs(tables, variant, plain) if plain else None
            there, split = f"{title}; {variant.label}", held_out(variant.trials)
            found += [_holds_accuracy(facts, split, there), _smaller_gap(facts, split, there)]
            found.append(_converges_alike(facts, there))
            if variant.starts_by_itself:
                found.append(_starts_in_time(facts, there))
    return corrected_together(found)


def _claim(
    facts: Facts | None,
    statistic: Callable[[Facts], tuple[str, PValues | None]],
    *,
    text: str,
    test: str,
) -> Claim:
    """A claim whose statistic gives evidence and its p-values; undecided without any pair."""
    if facts is None or facts.empty:
        return Claim(text, test, NO_PAIR)
    evidence, found = statistic(facts)
    never = int(np.isinf(facts["begun"]).sum())
    if never:
        evidence += f"; clipping never began with {never} of {len(facts)} seeds"
    return Claim(text, test, evidence, p_values=found)


def _holds_accuracy(facts: Facts | None, split: HeldOut, where: str) -> Claim:
    """Statistic: best minus final test accuracy, with and without clipping. n: seeds.

    Both are asked for: where plain SGD loses nothing there is nothing to hold. The best is one
    epoch's, chosen for being largest, which makes every drop look larger than it is; a running
    median has less of that, and may miss a short peak; and the best is taken less what its choice
    adds by the scatter of the epochs. What is not so of all three is left open.
    """

    def statistic(facts: Facts) -> tuple[str, PValues]:
        near, drops = [], []
        for kind in ("unlifted", "lasting", "best"):
            best = facts[[f"{kind}_with", f"{kind}_without"]].max(axis=1)
            held = _differences(best, facts["final_with"], split)
            lost = _differences(facts[f"{kind}_without"], facts["final_without"], split)
            near.append(accuracy_test(held, TOLERANCE, side="below"))
            drops.append(accuracy_test(lost, TOLERANCE, side="above"))
        evidence = (
            f"points below the best at the end: with clipping {held}, without {lost}; test "
            f"accuracy {_percent(facts['final_with'])} with, {_percent(facts['final_without'])} "
            f"without, best {_percent(best)}"
        )
        return evidence, all_of(less_sure(*near), less_sure(*drops))

    return _claim(
        facts,
        statistic,
        text="Clipping holds the test accuracy near its best, while without it the accuracy "
        f"drops ({where}).",
        test=f"mean test accuracy of the last tenth of the epochs: with clipping under "
        f"{TOLERANCE:g} percentage points below the best epoch of either run of the seed, without "
        f"over {TOLERANCE:g} below its own best, and the same of the best running median, and "
        "of the best less what its choice among so many adds by their scatter; in the mean over "
        f"seeds, {split.in_words}",
    )


def _smaller_gap(facts: Facts | None, split: HeldOut, where: str) -> Claim:
    """Statistic: final gap in accuracy with minus without clipping, by seed. n: seeds."""

    def statistic(facts: Facts) -> tuple[str, PValues]:
        gaps = 100 * (facts["gap_with"] - facts["gap_without"])
        # Training accuracies are of all training samples: the split's error is of the others.
        ends = (100 * facts["final_with"], 100 * facts["final_without"])
        errors = map(split.difference_error, *ends)
        difference = accuracy_interval(map(Points, gaps, errors), split)
        evidence = (
            f"difference {difference} points; gap {_percent(facts['gap_with'])} with, "
            f"{_percent(facts['gap_without'])} without"
        )
        return evidence, accuracy_test(difference, 0.0, side="below")

    return _claim(
        facts,
        statistic,
        text=f"The train-test accuracy gap at the end is smaller with clipping ({where}).",
        test="train − test accuracy, mean of the last tenth of the epochs, with minus without "
        f"clipping, paired by seed: below 0 in the mean over seeds, {split.in_words}",
    )


def _converges_alike(facts: Facts | None, where: str) -> Claim:
    """Statistic: count of seeds, ratio of epochs. n: seeds in which clipping could slow anything.

    Until clipping begins the two runs are the same to the bit, so that a run which has converged by
    then says nothing.
    """

    def statistic(facts: Facts) -> tuple[str, PValues | None]:
        early = facts[facts["begun"] < facts["reached_without"]]
        evidence = (
            f"reached at epoch {_listed(facts['reached_with'])} with clipping and "
            f"{_listed(facts['reached_without'])} without; clipping began after epoch "
            f"{_listed(facts['begun'])}"
        )
        if early.empty:
            evidence += ": too late to change it, whatever clipping does (n = 0)"
            return evidence, None
        alike = early["reached_with"] <= SLOWER * early["reached_without"]
        evidence += (
            f"; as fast with {alike.sum()} of the {len(early)} seeds in which it began before"
        )
        return evidence, sign_test(alike)

    return _claim(
        facts,
        statistic,
        text=f"Clipping does not change the speed at which test accuracy converges ({where}).",
        test=f"epochs to {100 * CONVERGED:g} % of the best test accuracy without clipping: with it "
        f"at most {SLOWER:g} times as many with most seeds, of those in which clipping began "
        "before, by a sign test",
    )


def _starts_in_time(facts: Facts | None, where: str) -> Claim:
    """Statistic: count of seeds whose start lies in the window. n: seeds.

    The window opens when plain SGD has converged and closes when it is near its best for the last
    time: clipping before it stops learning, clipping after it comes too late.
    """

    def statistic(facts: Facts) -> tuple[str, PValues]:
        early = facts["begun"] < facts["reached_without"]
        late = facts["begun"] > facts["near"]
        in_time = ~(early | late)
        evidence = (
            f"in time with {in_time.sum()} of {len(facts)} seeds, too early with {early.sum()}, "
            f"too late or never with {late.sum()}; started after epoch {_listed(facts['begun'])}, "
            f"SGD converged at epoch {_listed(facts['reached_without'])} and near its best until "
            f"{_listed(facts['near'])}"
        )
        return evidence, sign_test(in_time)

    return _claim(
        facts,
        statistic,
        text="The growth of an epoch's mean gradient norm tells when clipping is to start "
        f"({where}).",
        test=f"the start lies between the epoch at which SGD reaches {100 * CONVERGED:g} % of its "
        f"best test accuracy and the last at which it is within {TOLERANCE:g} percentage points "
        "of its best, with most seeds, by a sign test",
    )


def _differences(
    first: "pd.Series[float]", second: "pd.Series[float]", split: HeldOut
) -> AccuracyInterval:
    """Mean over seeds of the difference of two accuracies, fractions, in percentage points."""
    return accuracy_interval(map(split.difference, 100 * first, 100 * second), split)


def _percent(fractions: "pd.Series[float]") -> str:
    return f"{100 * fractions.mean():.1f} %"


def _listed(epochs: "pd.Series[float]") -> str:
    """Epochs of the seeds in order, as in "4, 5, never"."""
    return ", ".join("never" if math.isinf(e) else f"{e:g}" for e in epochs)
