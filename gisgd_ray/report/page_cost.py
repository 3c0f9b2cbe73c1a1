"""What a sweep took: trial hours, core hours, GPU hours, and money where a price is given."""

import pandas as pd

from gisgd_ray.numbers import counted, format_number

TIMES = ("time/training_s", "time/measuring_s")
CPUS, GPUS = "resources/cpus", "resources/gpus"
"""What Ray set aside for a trial, as its row has it; not those of earlier versions."""


def cost_facts(trials: pd.DataFrame, price_per_hour: float | None = None) -> dict[str, str]:
    """Cost by name, as text; nothing where no trial has recorded its time.

    Args:
        trials: one row each.
        price_per_hour: of one trial's share of a machine, for every hour that it trains or
            measures.
    """
    if not set(TIMES) <= set(trials.columns):
        return {}
    seconds = trials[list(TIMES)].astype(float).sum(axis=1, min_count=1)
    timed = trials[seconds.notna()]
    if timed.empty:
        return {}
    hours = seconds[timed.index] / 3600
    some = f"; of {len(timed)} of {counted(len(trials), 'trial')}" * (len(timed) < len(trials))
    facts = {
        "trial hours": f"{_hours(float(hours.sum()))}{some}, without Ray’s start and what lost "
        "trials did again",
        "core hours": _shares(timed, hours, CPUS),
    }
    if "device" in timed.columns:
        on_gpu = timed["device"].astype(str).str.startswith("cuda")
        facts["GPU hours"] = "0: no trial ran on a GPU"
        if on_gpu.any():
            facts["GPU hours"] = _shares(timed[on_gpu], hours[on_gpu], GPUS)
    if price_per_hour is not None:
        money = f"{hours.sum() * price_per_hour:,.2f}"
        facts["cost"] = f"{money}, at {price_per_hour:g} for an hour of a trial"
    return facts


def _shares(trials: pd.DataFrame, hours: "pd.Series[float]", name: str) -> str:
    """The trials' hours, each times what it took; and of how many that is not known."""
    if name not in trials.columns or trials[name].isna().all():
        return "not known: what a trial took is not recorded"
    taken = trials[name].astype(float)
    text = _hours(float((hours * taken).sum()))
    if unknown := int(taken.isna().sum()):
        text += f", and what {counted(unknown, 'trial')} more took is not known"
    return text


def _hours(hours: float) -> str:
    """Hours to three digits, with what they are in seconds or days where that is plainer.

    >>> _hours(0.05), _hours(12.5), _hours(240.0)
    ('0.0500 h (180 s)', '12.5 h', '240 h (10 days)')
    """
    text = f"{format_number(float(hours), digits=3)} h"
    if hours < 1:
        return f"{text} ({3600 * hours:.0f} s)"
    return f"{text} ({hours / 24:.3g} days)" if hours >= 72 else text
