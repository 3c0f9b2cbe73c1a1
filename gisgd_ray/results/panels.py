"""Which trials belong together in one panel of a figure, and the panel's title."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from gisgd_ray.config.catalogue import DATASETS, MODELS
from gisgd_ray.numbers import field_name, format_setting
from gisgd_ray.results.tables import varying_fields


@dataclass(frozen=True)
class Title:
    """What the trials of a panel have in common; as text, with names as they are typed.

    >>> title = Title("mlp", "mnist5k").with_setting("data.label_noise", 0.2)
    >>> print(title, title.printed, sep="; ")
    MLP on mnist5k, label_noise = 0.2; MLP on MNIST-5k, label noise = 0.2
    """

    model: str
    dataset: str
    settings: tuple[tuple[str, Hashable], ...] = ()
    """By dotted field."""

    def with_setting(self, path: str, value: Hashable) -> "Title":
        """The title with one setting more."""
        return replace(self, settings=(*self.settings, (path, value)))

    def __str__(self) -> str:
        return ", ".join([f"{MODELS.printed(self.model)} on {self.dataset}", *self._settings()])

    @property
    def printed(self) -> str:
        """As a figure in print has it."""
        where = f"{MODELS.printed(self.model)} on {DATASETS.printed(self.dataset)}"
        return ", ".join([where, *self._settings(spaced=True)])

    def _settings(self, *, spaced: bool = False) -> list[str]:
        return [setting_text(path, value, spaced=spaced) for path, value in self.settings]


def panels(trials: pd.DataFrame, axes: Sequence[str]) -> dict[Title, pd.DataFrame]:
    """The trials by everything that varies besides the figure's own axes, under a title each.

    A panel is a model, a dataset and one value of every other field that varies there, so that
    figures and claims average over nothing but seeds.

    Args:
        trials: rows of ``trials.parquet``.
        axes: dotted fields that the figure itself shows; ``seed`` is always one.
    """
    titled: dict[Title, pd.DataFrame] = {}
    if trials.empty:
        return titled
    for title, group in by_model_and_dataset(trials):
        fields = varying_fields(group, besides=[*axes, "seed"])
        if not fields:
            titled[title] = group
            continue
        keys = [group[path].map(_hashable) for path in fields]
        for values, part in group.groupby(keys, sort=False, dropna=False):
            titled[replace(title, settings=tuple(zip(fields, values, strict=True)))] = part
    return titled


def by_model_and_dataset(trials: pd.DataFrame) -> list[tuple[Title, pd.DataFrame]]:
    """The trials of each model and dataset, in their order."""
    groups = trials.groupby([trials["model.name"], trials["data.dataset"]], sort=False)
    return [(Title(str(model), str(dataset)), part) for (model, dataset), part in groups]


def setting_text(path: str, value: Any, *, spaced: bool = False) -> str:
    """A setting in a title; ``spaced``: its name in words.

    >>> setting_text("model.width", 512.0), setting_text("scheme.name", "sgd")
    ('width = 512', 'scheme = sgd')
    """
    name = field_name(path).replace("_", " ") if spaced else field_name(path)
    return f"{name} = {format_setting(value)}"


def distinct_labels(
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
