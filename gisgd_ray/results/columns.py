"""Which columns the tables of a sweep have, in which order, and of which type.

``trials`` has the same for every sweep of the same noise stds: what it sweeps, trains and measures
decides which of them are empty. ``history``, of millions of points maybe, has those that one of
its points has. Every column is of one type everywhere, so that tables of different sweeps stand
below one another by name in pandas, pyarrow, polars and DuckDB. The order: the trial, its settings,
then what was measured, as the catalogue (:mod:`gisgd_ray.theory.quantities`) has it; what it does
not have comes last.
"""

import types
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pyarrow

from gisgd_ray.config.space import field_paths
from gisgd_ray.results.row_check import is_nothing, is_numeric, is_setting, require_column
from gisgd_ray.theory.quantities import QUANTITIES, at, quantity

IDENTITY = ("trial_id", "status", "settings")
"""What a trial is known by, before its settings one by one."""

KINDS = {
    "number": pyarrow.float64(),
    "count": pyarrow.int64(),
    "text": pyarrow.string(),
    "list": pyarrow.list_(pyarrow.float64()),
}
"""Types of the catalogue's kinds. Any value may be missing, of a count as well."""

_PLAIN = {
    bool: pyarrow.bool_(),
    int: pyarrow.int64(),
    float: pyarrow.float64(),
    str: pyarrow.string(),
}
_NUMBERS = (pyarrow.int64(), pyarrow.float64())


@cache
def setting_types() -> dict[str, pyarrow.DataType]:
    """The type of every setting, by its dotted path, from the configuration's models.

    A section that may be null, a schedule say, has a column beside those of its fields, in which
    nothing ever is: of text.

    Raises:
        TypeError: two models, or two schemes, have a field of one name and of two types.
    """
    found = {}
    for path, declared in field_paths().items():
        kinds = {kind for _, info in declared for kind in _types_of(info.annotation)}
        if kinds == set(_NUMBERS):
            kinds = {pyarrow.float64()}
        if len(kinds) > 1:
            raise TypeError(f"{path} is of several types: {', '.join(sorted(map(str, kinds)))}")
        found[path] = kinds.pop() if kinds else pyarrow.string()
    return found


def _types_of(annotation: Any) -> set[pyarrow.DataType]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return {_PLAIN[type(value)] for value in inner}
    if origin in (Union, types.UnionType):
        return {kind for each in inner for kind in _types_of(each)}
    if origin is tuple:
        (kind,) = _types_of(inner[0])
        return {pyarrow.list_(kind)}
    return {_PLAIN[annotation]} if annotation in _PLAIN else set()


def type_of(name: str) -> pyarrow.DataType | None:
    """The type of a column; None of one of the user's own, whose values decide."""
    if known := quantity(name):
        return KINDS[known.kind]
    if name in setting_types():
        return setting_types()[name]
    return pyarrow.float64() if is_numeric(name) else None


def trial_columns(noise_stds: Iterable[float]) -> list[str]:
    """The columns of ``trials.parquet`` for trials with these noise stds."""
    stds = set(noise_stds)
    measured = [
        name
        for q in QUANTITIES.values()
        if "t" in q.tables
        for name in ([at(q.name[:-1], std) for std in stds] if q.at_noise_std else [q.name])
    ]
    return in_order([*measured, *setting_types()])


def in_order(names: Iterable[str]) -> list[str]:
    """The names once each: the trial, its settings, what was measured, the user's own.

    Of a quantity at several noise stds the largest comes first.
    """
    settings = {path: place for place, path in enumerate(setting_types())}
    measured = {name: place for place, name in enumerate(QUANTITIES)}

    def place(name: str) -> tuple[float, ...]:
        if name in IDENTITY:
            return (0, IDENTITY.index(name))
        if is_setting(name):  # maybe one of another version
            return (1, settings.get(name, len(settings)))
        known = quantity(name)
        if known is None:
            return (3,)
        return (2, measured[known.name], -_noise_std(name) if known.at_noise_std else 0)

    return sorted(dict.fromkeys(names), key=place)


def _noise_std(name: str) -> float:
    try:
        return float(name.partition("@")[2])
    except ValueError:  # of a row that was not written here
        return 0.0


class Columns:
    """Records, one after the other, as a table's columns: as dicts they take ten times the memory.

    A record that lacks a column has nothing there.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Any]] = {}
        self._count = 0

    def add(self, record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            column = self._values.setdefault(name, [])
            column += [None] * (self._count - len(column))
            column.append(value)
        self._count += 1

    def values(self, name: str) -> Sequence[Any]:
        """The column, without the records at its end that lack it."""
        return self._values.get(name, [])

    def table(self, where: Path, *, least: Iterable[str] = ()) -> pyarrow.Table:
        """The columns ``least`` and all others that a record has, in their order and types.

        What does not fit its type, as a setting of another version may not, has the one of its
        values, and of several kinds is words.

        Args:
            where: the records are from; for the error.

        Raises:
            UserError: a number is none, or what is said in words is no word.
        """
        columns = {}
        for name in in_order([*least, *self._values]):
            known, values = type_of(name), self._values.get(name)
            if values is None:
                columns[name] = pyarrow.nulls(self._count, known)
                continue
            values += [None] * (self._count - len(values))
            column = None if known is None else _as_type(values, known)
            if column is None:
                require_column(name, values, self.values("trial_id"), where)
                column = _as_they_are(values)
            columns[name.encode(errors="replace").decode()] = column
        return pyarrow.table(columns)


def _as_type(values: Any, kind: pyarrow.DataType) -> pyarrow.Array | None:
    """Values as a column of this type; None where they are not all of it, or of nothing.

    NaN and None are both nothing.
    """
    try:
        found = pyarrow.array(values, from_pandas=True)
        return found.cast(kind) if _converts(found.type, kind) else None
    except (pyarrow.ArrowException, OverflowError, UnicodeError):  # of several kinds; a fraction
        return None


def _as_they_are(values: Sequence[Any]) -> pyarrow.Array:
    """Values as a column of their own type, of several as words; nothing at all is of numbers."""
    try:
        found = pyarrow.array(values, from_pandas=True)
    except (pyarrow.ArrowException, OverflowError, UnicodeError):
        return pyarrow.array([None if is_nothing(v) else _word(v) for v in values])
    return found.cast(pyarrow.float64()) if found.type == pyarrow.null() else found


def _converts(found: pyarrow.DataType, wanted: pyarrow.DataType) -> bool:
    """Whether values of one type may be of another, exactly: Arrow itself would read words."""
    if pyarrow.types.is_list(found) and pyarrow.types.is_list(wanted):
        return _converts(found.value_type, wanted.value_type)
    numbers = found in _NUMBERS and wanted in _NUMBERS
    return numbers or found in (wanted, pyarrow.null())


def _word(value: Any) -> str:
    return str(value).encode(errors="replace").decode()
