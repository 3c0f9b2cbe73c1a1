"""What a launch would run: its trials, their names, and what they will take."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gisgd_ray.config.catalogue import DATASETS, MODELS, SCHEMES
from gisgd_ray.config.frozen import flatten
from gisgd_ray.config.space import SearchSpace, require_few
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.numbers import counted
from gisgd_ray.results.tables import finished_ids, reusable
from gisgd_ray.runner import cli
from gisgd_ray.runner.progress import setting_label

SHOWN = 40
"""A longer list of trials is cut: the first and the last of them are shown."""
MANY = 5_000
"""Of more trials it is said that they are being planned, which then takes seconds."""


@dataclass(frozen=True)
class Plan:
    """The trials of a sweep at one scale."""

    trials: list[TrialConfig]
    labels: dict[str, str]
    """A trial's name for people: the fields in which it differs from the others."""
    swept: list[str]

    def left(self, folder: Path, others: Iterable[Path] = ()) -> "Left":
        """What earlier launches into the sweep's folder, or into those others, have not completed.

        Raises:
            UserError: one of the folders has a damaged journal, or another trial's row.
        """
        own = finished_ids(folder, self.trials)
        reused = {other: set(reusable(other, self.trials)) - own for other in others}
        ids = own.union(*reused.values())
        waiting = [t for t in self.trials if t.trial_id not in ids]
        done = [t for t in self.trials if t.trial_id in ids]
        return Left(waiting, done, own, [other for other, ids in reused.items() if ids])


@dataclass(frozen=True)
class Left:
    """What is left to run of a plan."""

    waiting: list[TrialConfig]
    done: list[TrialConfig]
    """All others."""
    own: set[str]
    """Ids of those completed in the sweep's own folder."""
    taken_from: list[Path]
    """Other folders that have completed trials which this one lacks."""


def make_plan(
    panels: Mapping[str, SearchSpace],
    options: cli.Options,
    scale: str,
    *,
    check: Callable[[TrialConfig], None] | None = None,
) -> Plan:
    """Every trial of a sweep's panels with the command line's changes, validated.

    Raises:
        UserError: a field, a value or a combination is wrong, or does not suit the figure; or there
            are too many trials.
    """
    spaces = cli.apply(panels, options, scale=scale)
    if (count := require_few(spaces.values())) > MANY:
        print(f"Planning {count:,} trials ...", file=sys.stderr, flush=True)
    trials = {t.trial_id: t for space in spaces.values() for t in space.trials()}
    if check is not None:
        for config in trials.values():
            check(config)
    # Last: PyTorch comes with these.
    for t in {(t.data.dataset, t.model.name, t.scheme.name): t for t in trials.values()}.values():
        for record in (DATASETS[t.data.dataset], MODELS[t.model.name], SCHEMES[t.scheme.name]):
            record.function()
    swept = list(dict.fromkeys(p for space in spaces.values() for p in space.swept_fields()))
    if len(spaces) > 1:
        swept = ["data.dataset", "model.name", *_schemes_apart(trials.values()), *swept]
        swept = list(dict.fromkeys(swept))
    labels = {trial_id: setting_label(config, swept) for trial_id, config in trials.items()}
    return Plan(list(trials.values()), labels, swept)


def _schemes_apart(trials: Iterable[TrialConfig]) -> list[str]:
    """``scheme.name`` if there are several, and what tells trials of one scheme apart."""
    found: dict[str, dict[str, set[Any]]] = {}
    for config in trials:
        for path, value in flatten(config.scheme.model_dump(), "scheme.").items():
            found.setdefault(path, {}).setdefault(config.scheme.name, set()).add(value)
    names = found.pop("scheme.name")
    within = [path for path, by in found.items() if any(len(values) > 1 for values in by.values())]
    return (["scheme.name"] if len(names) > 1 else []) + within


def plan_lines(plan: Plan, waiting: Sequence[TrialConfig], where: str, item: str) -> list[str]:
    """The trials, which of them are still to run, and where they go."""
    to_run = {config.trial_id for config in waiting}
    shown = list(plan.labels.items())
    if (hidden := len(shown) - SHOWN) > 0:
        shown[SHOWN // 2 : -SHOWN // 2] = []
    lines = [
        f"{trial_id}  {'to run' if trial_id in to_run else 'finished':<8}  {label}"
        for trial_id, label in shown
    ]
    if hidden > 0:
        lines.insert(SHOWN // 2, f"... {hidden} more ...")
    lines.append(
        f"{item}: {counted(len(plan.trials), 'trial')}, {len(to_run)} to run, results in {where}"
    )
    return lines
