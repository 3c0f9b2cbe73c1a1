"""What the paper reads off Tables 1-3 (section 6, appendix E.7): accuracy and time by scheme.

A scheme's accuracy is that of the whole test split after the last step, and its mean and standard
deviation (n - 1) are over seeds. Two schemes are compared seed by seed: the same initial weights,
batches and noisy labels, so that the difference has less chance in it than either; what chance the
test samples have in it is in all seeds alike (:mod:`gisgd_ray.claims.accuracies`).
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from gisgd_ray.claims.accuracies import (
    AccuracyInterval,
    accuracy_interval,
    accuracy_test,
    held_out,
)
from gisgd_ray.claims.claim import Claim, corrected_together
from gisgd_ray.claims.paper_tables import GMP3_TIME
from gisgd_ray.claims.points import TEST, finished, numbers, reading
from gisgd_ray.claims.statistics import (
    LEVEL,
    Interval,
    PValues,
    all_of,
    enough_seeds,
    ratio_interval,
    t_test,
    tested,
)
from gisgd_ray.config.catalogue import SCHEMES
from gisgd_ray.results.panels import Title, distinct_labels, panels
from gisgd_ray.results.tables import ResultTables, records

ERM, GMP3, ABSOLUTE = SCHEMES["sgd"].printed, "GMP3", "GMP3 absolute"
TOLERANCE = 1.25
"""A time "about" the paper's is within this factor of it."""
TOP = 3


def scheme_label(row: Mapping[str, Any]) -> str:
    """The scheme of a trial's row as the paper's tables call it.

    >>> scheme_label({"scheme.name": "gmp", "scheme.draws": 3.0, "scheme.variant": "average"})
    'GMP3'
    """
    name = row["scheme.name"]
    if name != "gmp":
        return SCHEMES.printed(name)
    if row.get("scheme.estimator") == "local":
        return "GMP local"  # its one pass has no number of draws
    draws = row.get("scheme.draws")
    label = "GMP" if pd.isna(draws) else f"GMP{int(draws)}"
    return f"{label} absolute" if row.get("scheme.variant") == "absolute" else label


def by_panel(trials: pd.DataFrame) -> dict[Title, pd.DataFrame]:
    """The trials of each model, dataset and other setting, with columns ``scheme``, ``accuracy``
    (%), and ``step_time`` (s)."""
    if trials.empty:
        return {}
    axes = [str(column) for column in trials.columns if str(column).startswith("scheme.")]
    prepared = trials.assign(
        scheme=[scheme_label(row) for row in records(trials)],
        accuracy=100 * trials[TEST].astype(float),
        step_time=_training_time(trials) / trials["steps"].astype(float),
    )
    return {
        title: panel.assign(scheme=distinct_labels(panel, panel["scheme"], axes))
        for title, panel in panels(prepared, [*axes, "scheme"]).items()
    }


def gmp_schemes(panel: pd.DataFrame, *, absolute: bool = True) -> set[str]:
    """The labels of a panel's schemes that are GMP, with those of its absolute variant or not."""
    is_gmp = panel["scheme.name"] == "gmp"
    if not absolute and "scheme.variant" in panel.columns:
        is_gmp &= panel["scheme.variant"] != "absolute"
    return set(panel.loc[is_gmp, "scheme"])


def _training_time(trials: pd.DataFrame) -> "pd.Series[float]":
    """Seconds: the processor's for trials on a CPU, whose cores others may share; else the clock's.

    A scheme that leaves a core waiting is not counted by the former; none here does.
    """
    clock = numbers(trials, "time/training_s")
    if "device" not in trials.columns:
        return clock
    processor = numbers(trials, "time/training_cpu_s")
    return clock.where((trials["device"] != "cpu") | processor.isna(), processor)


def differences(panel: pd.DataFrame, scheme: str, other: str) -> AccuracyInterval:
    """Accuracy of one scheme minus another's, in points, over the seeds that have both."""
    table = panel.pivot(index="seed", columns="scheme", values="accuracy")
    split = held_out(panel)
    if not {scheme, other} <= set(table.columns):
        return accuracy_interval([], split)
    both = table[[scheme, other]].dropna()
    return accuracy_interval(map(split.difference, both[scheme], both[other]), split)


def relative_time(panel: pd.DataFrame, scheme: str) -> Interval:
    """Training time of a step relative to ERM's, geometric mean over seeds."""
    table = panel.pivot(index="seed", columns="scheme", values="step_time")
    if not {scheme, ERM} <= set(table.columns):
        return ratio_interval([], [])
    return ratio_interval(table[scheme], table[ERM])


@reading("Tables 1-3", trials=["scheme.name", TEST, "steps"])
def claims(tables: ResultTables) -> list[Claim]:
    """Tables 1-3, for each panel that has the schemes a claim is about."""
    found = []
    for title, panel in by_panel(finished(tables)).items():
        schemes, where = set(panel["scheme"]), str(title)
        # One claim for each: the best of several, chosen on the same seeds, would flatter them.
        for ours in sorted(gmp_schemes(panel, absolute=False)):
            found.append(_top(panel, ours, where))
            if ERM in schemes:
                found.append(_beats(panel, ours, ERM, f"{ours} improves on ERM ({where})."))
        if {ABSOLUTE, GMP3} <= schemes:
            text = f"The absolute variant of GMP beats GMP3 ({where}; the paper: on CIFAR-100)."
            found.append(_beats(panel, ABSOLUTE, GMP3, text))
        if {GMP3, ERM} <= schemes:
            found.append(_time(panel, where))
    return corrected_together(found)


def _top(panel: pd.DataFrame, ours: str, where: str) -> Claim:
    """Statistic: how many schemes that are not GMP are better, seed by seed. n: those schemes."""
    others = sorted(set(panel["scheme"]) - gmp_schemes(panel))
    found = {other: differences(panel, ours, other) for other in others}
    against = {s: accuracy_test(d, 0, side="above") for s, d in found.items()}
    over_seeds = {s: p for s, p in against.items() if p.n != 1}
    better = [s for s, p in over_seeds.items() if p.p_fails <= LEVEL / 2]
    open_ = [s for s, p in over_seeds.items() if min(p.p_holds, p.p_fails) > LEVEL / 2]
    untested = sorted(against.keys() - over_seeds)
    ahead = [s for s, d in found.items() if d.center < 0]
    evidence = f"place {1 + len(ahead)} of {1 + len(others)} by its mean, other GMP left out"
    if not over_seeds:
        evidence += ", the order of the one seed"
    else:
        evidence += (
            f"; established as better: {', '.join(better) or 'none'}; not told apart: "
            f"{', '.join(open_) or 'none'} (each at {100 * LEVEL:g} %, "
            f"n = {panel['seed'].nunique()} seeds)"
        )
        if untested:
            evidence += f"; with one seed in common, untested: {', '.join(untested)}"
    return Claim(
        text=f"{ours} is among the top three schemes ({where}).",
        test=f"the differences in test accuracy from {ours}, paired by seed, "
        f"{held_out(panel).in_words}; for it: all but two of the other schemes are worse, against "
        "it: three are better, corrected for which of them",
        evidence=evidence,
        p_values=_all_but_two(list(against.values())),
    )


def _all_but_two(others: list[PValues]) -> PValues | None:
    """Whether all but two of these at least are so, or three at least are not.

    Of m null hypotheses r at least are false, by the partial conjunction of Benjamini and Heller
    (2008): (m - r + 1) times the r-th smallest p-value, whatever depends on what. None where there
    are fewer than three: then it is so, whatever they are.
    """
    m = len(others)
    if m < TOP:
        return None
    others, n = tested(others)
    holds, fails = (sorted(p) for p in zip(*((p.p_holds, p.p_fails) for p in others), strict=True))
    return PValues(
        min(1.0, TOP * holds[m - TOP]),
        min(1.0, (m - TOP + 1) * fails[TOP - 1]),
        n,
    )


def _beats(panel: pd.DataFrame, scheme: str, other: str, text: str) -> Claim:
    """Statistic: mean difference of test accuracies in points, paired by seed. n: seeds."""
    difference = differences(panel, scheme, other)
    return Claim(
        text=text,
        test="mean difference of their test accuracies, paired by seed, above 0, "
        f"{held_out(panel).in_words}",
        evidence=f"{scheme} − {other}: {difference} percentage points",
        p_values=accuracy_test(difference, 0, side="above"),
    )


def _time(panel: pd.DataFrame, where: str) -> Claim:
    """Statistic: geometric mean over seeds of the ratio of step times. n: seeds."""
    ratio = relative_time(panel, GMP3)
    low, high = GMP3_TIME / TOLERANCE, GMP3_TIME * TOLERANCE
    return Claim(
        text=f"GMP3 takes about {GMP3_TIME} times ERM’s time ({where}).",
        test=f"time per training step relative to ERM’s, within {low:.2f} to {high:.2f} (a factor "
        f"of {TOLERANCE} either way); the paper’s ratio is of VGG16 on a GPU",
        evidence=str(ratio),
        p_values=enough_seeds(
            all_of(t_test(ratio, low, side="above"), t_test(ratio, high, side="below"))
        ),
    )
