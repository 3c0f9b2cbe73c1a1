"""What a sweep took: trial hours, core hours, GPU hours, and money where a price is given."""

import re

import pandas as pd

from gisgd_ray.reporting.numbers import counted, format_number

TIMES = ("time/training_s", "time/measuring_s")
TOLD = re.compile(r"(\d+) CPUs?(?: and ([\d.]+) of a GPU)?")
"""How a launch writes down what each trial takes (:class:`gisgd_ray.packing.Resources`)."""


def cost_facts(
    trials: pd.DataFrame, resources: str, price_per_hour: float | None = None
) -> dict[str, str]:
    """Cost by name, as text; nothing where no trial has recorded its time.

    Args:
        trials: one row each.
        resources: what each trial takes, as in "1 CPU and 0.25 of a GPU for each trial".
        price_per_hour: of one trial's share of a machine, for every hour that it trains or
            measures.
    """
    if not set(TIMES) <= set(trials.columns):
        return {}
    seconds = trials[list(TIMES)].astype(float).sum(axis=1, min_count=1)
    timed = int(seconds.notna().sum())
    if not timed:
        return {}
    hours = float(seconds.sum()) / 3600
    found = TOLD.match(resources)
    cpus = int(found[1]) if found else 1
    share = float(found[2] or 0) if found else 0.0
    assumed = "" if found else ", taking 1 CPU a trial"
    partly = "" if timed == len(trials) else f"; of {timed} of {counted(len(trials), 'trial')}"
    facts = {
        "core hours": f"{_hours(hours * cpus)}{assumed}{partly}, without Ray’s start and what lost "
        "trials did again"
    }
    if "device" in trials.columns:
        on_gpu = trials["device"].astype(str).str.startswith("cuda")
        gpu = float(seconds[on_gpu].sum()) / 3600
        if gpu and share:
            facts["GPU hours"] = f"{_hours(gpu * share)}, {share:g} of a GPU for each trial"
        elif gpu:
            facts["GPU hours"] = f"at most {_hours(gpu)}: what share a trial took is not recorded"
        else:
            facts["GPU hours"] = "0: no trial ran on a GPU"
    if price_per_hour is not None:
        money = f"{hours * price_per_hour:,.2f}"
        facts["cost"] = f"{money}, at {price_per_hour:g} for an hour of a trial"
    return facts


def _hours(hours: float) -> str:
    """Hours to three digits, with what they are in seconds or days where that is plainer.

    >>> _hours(0.05), _hours(12.5), _hours(240.0)
    ('0.0500 h (180 s)', '12.5 h', '240 h (10 days)')
    """
    text = f"{format_number(float(hours), digits=3)} h"
    if hours < 1:
        return f"{text} ({3600 * hours:.0f} s)"
    return f"{text} ({hours / 24:.3g} days)" if hours >= 72 else text
