"""Which trials belong together in one panel of a figure, and the panel's title."""

import re
from collections.abc import Hashable, Sequence
from typing import Any

import pandas as pd

from gisgd_ray.config.catalogue import DATASETS, MODELS
from gisgd_ray.numbers import field_name, format_setting
from gisgd_ray.results.tables import varying_fields


def panels(trials: pd.DataFrame, axes: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The trials by everything that varies besides the figure's own axes, under a title each.

    A panel is a model, a dataset and one value of every other field that varies there, so that
    figures and claims average over nothing but seeds.

    Args:
        trials: rows of ``trials.parquet``.
        axes: dotted fields that the figure itself shows; ``seed`` is always one.
    """
    titled: dict[str, pd.DataFrame] = {}
    if trials.empty:
        return titled
    for _, group in trials.groupby(["model.name", "data.dataset"], sort=False):
        title = model_and_dataset(group)
        fields = varying_fields(group, besides=[*axes, "seed"])
        if not fields:
            titled[title] = group
            continue
        keys = [group[path].map(_hashable) for path in fields]
        for values, part in group.groupby(keys, sort=False, dropna=False):
            settings = zip(fields, values, strict=True)
            named = ", ".join(setting_text(path, value) for path, value in settings)
            titled[f"{title}, {named}"] = part
    return titled


def model_and_dataset(trials: pd.DataFrame) -> str:
    """What the trials of a panel have in common, as the paper says it: "MLP on mnist"."""
    model, dataset = trials[["model.name", "data.dataset"]].iloc[0]
    return f"{MODELS.printed(model)} on {dataset}"


def printed(title: str) -> str:
    """A panel's title as a figure in print has it.

    >>> printed("MLP on mnist5k, label_noise = 0.2")
    'MLP on MNIST-5k, label noise = 0.2'
    """
    title = re.sub(r"(?<= on )\w+", lambda m: DATASETS.printed(m.group()), title)
    return re.sub(r"\w+_\w+(?= = )", lambda m: m.group().replace("_", " "), title)


def setting_text(path: str, value: Any) -> str:
    """A setting in a title.

    >>> setting_text("model.width", 512.0), setting_text("scheme.name", "sgd")
    ('width = 512', 'scheme = sgd')
    """
    value = list(value) if isinstance(value, tuple) else value
    return f"{field_name(path)} = {format_setting(value)}"


def told_apart(
    trials: pd.DataFrame, labels: "pd.Series[str]", fields: Sequence[str]
) -> "pd.Series[str]":
    """The label of every trial, with those of these fields that tell trials of one label apart.

    Settings apart are schemes apart: only seeds are averaged over.
    """
    apart = labels.copy()
    for _, rows in trials.groupby(labels, sort=False):
        for path in varying_fields(rows, besides=[*trials.columns.difference(list(fields))]):
            for place in rows.index:
                apart[place] += f", {setting_text(path, trials.at[place, path])}"
    return apart


def _hashable(value: Any) -> Hashable:
    """Lists, as tuple fields come back from a table, are no keys; tuples are."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(value) if isinstance(value, list) else value
