"""Whether what is read as a trial's result can be one: its id, its settings, its numbers.

A results folder may be anybody's, and a file in it may have got another's name.
"""

import json
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd

from gisgd_ray.config.frozen import canonical, flatten, id_of, unflatten
from gisgd_ray.config.space import field_paths, validated
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.results.journal import Status
from gisgd_ray.theory.quantities import QUANTITIES, quantity

OWN = ("trial_id", "status")
"""Which :func:`require_own` sees to."""
NUMBERS = ("bound/", "term/", "gap/", "sum/", "train/", "test/", "time/", "resources/")
"""What the names of numbers of the user's own begin with; a measure of one may be a word."""
WORDS = [q.name for q in QUANTITIES.values() if q.kind == "text" and q.name not in OWN]
"""What is said in words, or not at all."""


def require_own(row: Mapping[str, Any], trial_id: str, path: Path) -> None:
    """See that a row is of this trial: of its id, and with the settings that have this id.

    A row of another version, whose settings are not valid any more, still has the id of its own.

    Args:
        path: of the journal that it is in.

    Raises:
        UserError: it is not.
    """
    if fault := _fault_of(row, trial_id):
        raise UserError(
            f"the row in {path} {fault}; move that file away to have trial {trial_id} run again, "
            "or restore it"
        )


def _fault_of(row: Mapping[str, Any], trial_id: str) -> str:
    """Why a row cannot be this trial's; empty where it can."""
    if row.get("trial_id") != trial_id:
        return f"is of trial {row.get('trial_id')!r}, not of {trial_id}"
    if row.get("status") not in set(Status):
        return f"has the status {row.get('status')!r}, which is none of {', '.join(Status)}"
    if _settings_are_named(row, trial_id):
        return ""
    try:
        config = validated(_settings(row))
    except UserError as fault:
        return f"has settings that are not valid, or not in this version of gisgd-ray ({fault})"
    except (TypeError, AttributeError):  # a section and a field of one name
        return "has settings that do not go together"
    return f"has the settings of trial {config.trial_id}, not of {trial_id}"


def _settings_are_named(row: Mapping[str, Any], trial_id: str) -> bool:
    """Whether an id is that of a row's settings, be they valid in this version or not."""
    settings = _settings(row)
    try:
        if is_of_old_schema(row):
            return id_of(canonical(unflatten(settings))) == trial_id
        changed = json.loads(row["settings"])
        if id_of(canonical(changed)) != trial_id:
            return False
        config = config_of(row)
        if config is not None:
            return config.trial_id == trial_id
        # Of another version: what it has beside the fields of this one is not known here.
        known = {name: value for name, value in settings.items() if name in field_paths()}
        del changed["schema"]
        unflatten(settings)  # or raises, where a section and a field have one name
        return config_of(known) is not None and flatten(changed).items() <= settings.items()
    except (TypeError, AttributeError, ValueError, KeyError):  # not what was written
        return False


def is_of_old_schema(row: Mapping[str, Any]) -> bool:
    """Whether the row is from a version that named trials by all their settings."""
    return "settings" not in row


def is_of_this_version(row: Mapping[str, Any]) -> bool:
    """Whether a row's settings are valid, and its id the one that this version gives them."""
    config = config_of(row)
    return config is not None and config.trial_id == row["trial_id"]


def config_of(row: Mapping[str, Any]) -> TrialConfig | None:
    """The trial that a row is of; None where its settings are not valid in this version."""
    try:
        return validated(_settings(row))
    except (UserError, TypeError, AttributeError):
        return None


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if is_setting(name)}


def is_setting(name: str) -> bool:
    """Whether a column is a setting, of this version or another."""
    section, dot, _ = name.partition(".")
    return section in TrialConfig.model_fields and (bool(dot) or section in ("seed", "replicas"))


def require_numbers(record: Mapping[str, Any], trial_id: str, where: Path) -> None:
    """See that what a row or a point calls a number, or says in words, is that or nothing.

    Raises:
        UserError: it is not.
    """
    for name, value in record.items():
        if is_numeric(name) and not _is_number(value):
            raise _of_another_kind(name, value, trial_id, where)
        if name in WORDS and not _is_word(value):
            raise _of_another_kind(name, value, trial_id, where, kind="word")


def require_number_columns(table: pd.DataFrame, where: Path) -> None:
    """The same of a whole table with a column ``trial_id``."""
    for name in map(str, table.columns):
        of_numbers = is_numeric(name) and pd.api.types.is_float_dtype(table[name])
        if not of_numbers:
            require_column(name, table[name], table["trial_id"], where)


def require_column(name: str, values: Iterable[Any], trial_ids: Iterable[Any], where: Path) -> None:
    """The same of one column of these trials."""
    kind = "number" if is_numeric(name) else "word" if name in WORDS else ""
    is_right = {"number": _is_number, "word": _is_word}.get(kind)
    if is_right is None:
        return
    for trial_id, value in zip(trial_ids, values, strict=True):
        if not is_right(value):
            raise _of_another_kind(name, value, trial_id, where, kind=kind)


def is_numeric(name: str) -> bool:
    """Whether a column is of numbers: the catalogue's, or the user's own by its name."""
    known = quantity(name)
    return name.startswith(NUMBERS) if known is None else known.kind in ("number", "count")


def _is_number(value: Any) -> bool:
    if value is None:
        return True
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and not (isinstance(value, int) and abs(value) >= 2**63)  # what tables can hold


def is_nothing(value: Any) -> bool:
    """Whether a cell of a table is empty."""
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def _is_word(value: Any) -> bool:
    return is_nothing(value) or isinstance(value, str)


def _of_another_kind(
    name: str, value: Any, trial_id: Any, where: Path, *, kind: str = "number"
) -> UserError:
    shown = json.dumps(str(value)[:40], ensure_ascii=False)
    return UserError(
        f"{name} = {shown} of trial {trial_id} in {where} is no {kind}: it is damaged, or not what "
        "gisgd-ray wrote; restore it, or move it away"
    )
