"""Where a bound's premises do not hold, and how well its flatness gap is known: from a trial's row.

``at`` names the noise std as in a column's name, "@0.01". Rows from before these columns were
measured say nothing of either.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gisgd_ray.measures.flatness import half_widths, independent_estimates
from gisgd_ray.numbers import format_number, known

EXCEEDED, MAY_BE_ZERO = "†", "‡"
"""Marks of a bound whose R is exceeded, and of a flatness gap whose interval has zero in it."""

R, PERTURBED_R = "measure/subgaussian_constant", "measure/subgaussian_constant_perturbed"
GAP, DRAWS = "measure/flatness_gap", "measure/flatness_draws"
AT_OPTIMUM = "_at_optimum"
"""What ``at`` is for Eq. 3's own sigma*."""


def excess(row: Mapping[str, Any], at: str) -> float | None:
    """How many times R from training is R of the losses at W_T + Delta_T; None if not known."""
    trained, perturbed = known(row, R), known(row, PERTURBED_R + at)
    return float(perturbed / trained) if trained and perturbed is not None else None


def is_exceeded(row: Mapping[str, Any], at: str) -> bool:
    """Whether the losses at W_T + Delta_T range wider than R from training says."""
    return (excess(row, at) or 0) > 1


def gap_half_widths(row: Mapping[str, Any], at: str) -> tuple[float, float] | None:
    """Of the flatness gap's 95 % interval, by draws (or runs) and by samples; None if unknown."""
    errors = [known(row, f"{GAP}_{of}{at}") for of in ("stderr", "sampling_stderr")]
    independent = independent_estimates(known(row, "replicas"), known(row, DRAWS + at))
    if None in errors or independent < 2:
        return None
    return half_widths(*errors, independent=independent)


def gap_may_be_zero(row: Mapping[str, Any], at: str) -> bool:
    """Whether zero is inside the flatness gap's 95 % interval."""
    gap, widths = known(row, GAP + at), gap_half_widths(row, at)
    return gap is not None and widths is not None and abs(gap) <= math.hypot(*widths)


def mean_half_width(rows: Sequence[Mapping[str, Any]], at: str) -> float | None:
    """Of the mean of these trials' gaps, whose draws are independent, and whose S and S' are not.

    None where one of them is unknown.
    """
    found = [gap_half_widths(row, at) for row in rows]
    widths = [each for each in found if each is not None]
    if not widths or len(widths) < len(rows):
        return None
    draws, samples = zip(*widths, strict=True)
    return math.hypot(math.hypot(*draws), sum(samples)) / len(rows)


def exceeded_sentence(at_stds: Sequence[float], at_optimum: Sequence[float]) -> str:
    """What the mark of a bound means; "" where none has it.

    Args:
        at_stds: how many times R is exceeded at a noise std, where it is.
        at_optimum: at Eq. 3's own sigma*, likewise.
    """
    places = [
        f"at {where}, {_times(ratios)}"
        for where, ratios in (("this σ", at_stds), ("Eq. 3’s own σ*", at_optimum))
        if ratios
    ]
    if not places:
        return ""
    text = (
        f"{EXCEEDED}: R is from training, and the losses at W_T + Δ_T exceed it "
        f"{' and '.join(places)}: nothing proves the number to be a bound."
    )
    if at_stds:
        text += " “Bound with R at σ” takes the R of those losses."
    if at_optimum:
        text += " The other bounds without a σ take the same R, each at a best σ of its own."
    return text


def times_exceeded(rows: Iterable[Mapping[str, Any]], at: str) -> list[float]:
    """By trial, where it is."""
    return [ratio for row in rows if (ratio := excess(row, at)) and ratio > 1]


def premises_sentences(rows: Sequence[Mapping[str, Any]], noise_stds: Sequence[str]) -> str:
    """In how many comparisons R is exceeded, and in how many the flatness gap may be zero.

    Empty where neither was looked at.
    """
    ratios = [ratio for row in rows for at in noise_stds if (ratio := excess(row, at))]
    widths = [(row, at) for row in rows for at in noise_stds if mean_half_width([row], at)]
    found = []
    if ratios:
        beyond = [ratio for ratio in ratios if ratio > 1]
        text = f"R from training is exceeded in {len(beyond)} of {len(ratios)} comparisons"
        most = format_number(max(beyond, default=1.0), digits=2)
        found.append(f"{text}, up to {most} times" if beyond else text)
    if widths:
        zero = sum(gap_may_be_zero(row, at) for row, at in widths)
        found.append(f"zero is inside the flatness gap’s 95 % interval in {zero} of {len(widths)}")
    text = "; ".join(found)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def marks_sentences(
    rows: Sequence[Mapping[str, Any]], noise_stds: Sequence[str], *, over_seeds: bool
) -> list[str]:
    """What the marks and the ± of the comparison mean, as far as these trials have any."""
    lines = [(row, at) for row in rows for at in noise_stds]
    notes = []
    ratios = [ratio for at in noise_stds for ratio in times_exceeded(rows, at)]
    if note := exceeded_sentence(ratios, times_exceeded(rows, AT_OPTIMUM)):
        notes.append(note)
    if any(mean_half_width([row], at) for row, at in lines):
        notes.append(
            "± is the half width of the flatness gap’s 95 % interval"
            f"{', for the mean over these seeds' if over_seeds else ''}: by Student’s t over its "
            "Monte-Carlo draws, and by the scatter over the samples of S and S′."
        )
    if any(gap_may_be_zero(row, at) for row, at in lines):
        seeds = " of one of these seeds at least" if over_seeds else ""
        notes.append(
            f"{MAY_BE_ZERO}: zero is inside that interval{seeds}: the flatness gap’s sign is "
            "not known, and its absolute value, which the bounds take, is rather too large."
        )
    return notes


def _times(ratios: Sequence[float]) -> str:
    """How many times R is exceeded."""
    least, most = (format_number(pick(ratios), digits=2) for pick in (min, max))
    return f"{most} times" if least == most else f"{least} to {most} times"
