"""What was run and what it took: configuration, data and cost of a sweep's trials, as text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import pandas as pd

from gisgd_ray.config.space import field_paths
from gisgd_ray.numbers import counted, format_number, format_setting, is_missing
from gisgd_ray.results.row_check import is_setting

MAX_LISTED = 8


@dataclass(frozen=True)
class Configuration:
    """The trials' configuration by dotted field, as text."""

    swept: dict[str, str]
    differing: dict[str, str]
    """Fields that differ but are not swept: constants of a panel, or of a model family."""
    shared: dict[str, str]


def configuration(trials: pd.DataFrame, swept: Sequence[str]) -> Configuration:
    """Every configuration field of the table, sorted by whether and why it varies."""
    found = Configuration({}, {}, {})
    for path in map(str, trials.columns):
        if not is_setting(path) or not _is_theirs(path, trials):
            continue
        values = list(trials[path])
        if path.startswith(("model.", "scheme.")):
            # Only some families have the field: nothing there is not a value of its own.
            values = [value for value in values if not is_missing(value)] or values
        texts = list(dict.fromkeys(map(format_setting, values)))
        if path in swept or (path == "seed" and len(texts) > 1):
            found.swept[path] = _listed(values)
        elif len(texts) > 1:
            found.differing[path] = _listed(values)
        else:
            found.shared[path] = texts[0] if texts else ""
    return found


def _is_theirs(path: str, trials: pd.DataFrame) -> bool:
    """Whether some trial has this field: a table has those of all models and schemes.

    An empty one is null, where it may be: another model's is none of these trials', nor is a
    section's, that is null itself, or is not.
    """
    if trials[path].notna().any() or path not in (known := field_paths()):
        return True
    if any(trials[name].notna().any() for name in trials if str(name).startswith(f"{path}.")):
        return False
    named = f"{path.partition('.')[0]}.name"
    families = set(trials[named]) if named in trials else set()
    return any(
        type(None) in get_args(field.annotation)
        and ("name" not in of.model_fields or of.model_fields["name"].default in families)
        for of, field in known[path]
    )


def _listed(values: Iterable[Any]) -> str:
    """Distinct values; many numbers as a range."""
    distinct = {format_setting(value): value for value in values}
    if len(distinct) <= MAX_LISTED:
        return ", ".join(distinct)
    try:
        low, high = min(distinct.values()), max(distinct.values())
        return f"{len(distinct)} values, {low:.6g} to {high:.6g}"
    except (TypeError, ValueError):
        return ", ".join([*list(distinct)[:MAX_LISTED], f"… ({len(distinct)} values)"])


def present(trials: pd.DataFrame) -> set[str]:
    """Names of the columns that have a value in some trial, ``name@`` for each noise std's."""
    filled = trials.columns[trials.notna().any()]
    return {"".join(str(name).partition("@")[:2]) for name in filled}


def nowhere(trials: pd.DataFrame, switch: str) -> bool:
    """Whether a switch is off in every trial, and there is one."""
    if switch not in trials.columns or trials.empty:
        return False
    return not trials[switch].fillna(True).astype(bool).any()


def data_facts(trials: pd.DataFrame) -> dict[str, str]:
    """n, d, normalisation and devices; per model and dataset where there are several."""
    facts: dict[str, list[str]] = {}
    names = {
        "num_samples": "training samples n",
        "num_test_samples": "test samples",
        "num_parameters": "parameters d",
        "data/normalization_mean": "input mean (subtracted)",
        "data/normalization_std": "input std (divided by)",
        "device": "device",
    }
    by = ["model.name", "data.dataset"]
    if not set(by) <= set(trials.columns):
        return {}
    groups = list(trials.groupby(by, sort=False))
    for (model, dataset), group in groups:
        where = f" ({model} on {dataset})" if len(groups) > 1 else ""
        for column, name in names.items():
            texts = distinct(group, column)
            if texts:
                facts.setdefault(name, []).append(", ".join(first(texts, MAX_LISTED)) + where)
    return {name: "; ".join(texts) for name, texts in facts.items()}


def distinct(trials: pd.DataFrame, column: str) -> list[str]:
    """The distinct values of a column as text, in order; [] without the column."""
    if column not in trials.columns:
        return []
    return list(dict.fromkeys(_text(value) for value in trials[column] if not is_missing(value)))


def first(texts: list[str], most: int) -> list[str]:
    """The first so many, and how many there are."""
    return texts if len(texts) <= most else [*texts[:most], f"… ({len(texts)} values)"]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if hasattr(value, "__len__"):
        return ", ".join(format_number(float(v)) for v in value)
    # Counts are floats where a failed trial has none.
    return format_number(int(value)) if float(value).is_integer() else format_number(value)


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
