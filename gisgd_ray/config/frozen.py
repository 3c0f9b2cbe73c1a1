"""Base of every configuration model, schedules along training, and settings as flat tables."""

import hashlib
import json
import math
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

LISTED = 1_000_000
"""Of a longer range no list is made."""
_PLAIN = frozenset({str, int, float, bool, type(None)})


def plain(value: Any) -> Any:
    """Arrays, tensors and series as lists, and their numbers as Python's.

    Whatever has ``tolist`` counts as one: a configuration needs neither NumPy nor torch.

    Raises:
        ValueError: a set, or what is read once only; begins with the path of the field.

    >>> plain((range(2), True)), plain({"a": range(3)})
    ([[0, 1], True], {'a': [0, 1, 2]})
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {name: _plain_at(name, each) for name, each in value.items()}
    if isinstance(value, range):  # one that is long is counted, and refused, as it is
        return list(value) if len(value) < LISTED else value
    if isinstance(value, set | frozenset):
        raise ValueError(f" = {value!r} is a set, which has no order; give a list")
    if isinstance(value, Iterator | KeysView | ValuesView | ItemsView):
        raise ValueError(f": a {type(value).__name__} is read once only; give list(...) of it")
    to_list = getattr(value, "tolist", None)
    return plain(to_list()) if callable(to_list) else value


def _plain_at(name: Any, value: Any) -> Any:
    try:
        return plain(value)
    except ValueError as fault:
        rest = str(fault)
        raise ValueError(f"{name}{'' if rest[0] in ' :' else '.'}{rest}") from None


def without_minus_zero(value: Any) -> Any:
    """-0.0, alone or in a tuple, as 0.0: equal settings are written alike."""
    if isinstance(value, tuple):
        return tuple(map(without_minus_zero, value))
    return 0.0 if type(value) is float and value == 0 else value


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation is made of."""
    return {annotation}.union(*map(_kinds, get_args(annotation)))


def _has_boolean(value: Any) -> bool:
    return any(type(each) is bool for each in (value if type(value) is list else (value,)))


def _boolean(name: str, value: Any) -> InitErrorDetails:
    """The finding of a boolean where a number belongs: true is no 1.0."""
    fault = PydanticCustomError("boolean", "input should be a number, not true or false")
    return InitErrorDetails(type=fault, loc=(name,), input=value)


class Frozen(BaseModel):
    """Base of every configuration model: immutable, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        # A dict is of a model inside, which does the same.
        odd = [name for name, v in given.items() if type(v) not in _PLAIN and type(v) is not dict]
        found = {**given, **{n: _plain_at(n, given[n]) for n in odd}} if odd else given
        if faults := [
            _boolean(n, v) for n, v in found.items() if _has_boolean(v) and cls._counts(n)
        ]:
            raise ValidationError.from_exception_data(cls.__name__, faults)
        return found

    @classmethod
    def _counts(cls, name: str) -> bool:
        """Whether a field is a number, or numbers, and never true or false."""
        info = cls.model_fields.get(name)
        kinds = set() if info is None else _kinds(info.annotation)
        return bool not in kinds and bool({int, float} & kinds)

    @field_validator("*")
    @classmethod
    def _fits_a_table(cls, value: Any) -> Any:
        """No integer beyond 64 bits: the tables could not be written once the trial is over. And no
        minus zero."""
        if isinstance(value, int) and value >= 2**63:
            raise PydanticCustomError("too_large", "input should be less than 2**63")
        return without_minus_zero(value)


class Schedule(Frozen):
    """When something happens along training: every so many epochs or steps, or log-spaced."""

    every: int = Field(
        1,
        ge=1,
        description="how many epochs or steps lie between two points; with unit log, how many "
        "points lie in a factor of ten of steps",
    )
    unit: Literal["epoch", "step", "log"] = Field(
        "epoch", description="what `every` counts; log: points log-spaced in steps, from step 1"
    )

    def is_due(self, step: int, steps_per_epoch: int) -> bool:
        """Whether it fires after update ``step``; it always does before the first (step 0)."""
        if self.unit == "log":
            # Points round(10^(j / every)); rounding makes neighbours coincide at the start.
            j = round(self.every * math.log10(step)) if step else 0
            near = {round(10 ** (i / self.every)) for i in range(j - 1, j + 2)}
            return step == 0 or step in near
        return step % self.period(steps_per_epoch) == 0

    def next(self, step: int, steps_per_epoch: int) -> int:
        """The first update after ``step`` after which it fires."""
        if self.unit == "log":
            j = max(0, math.floor(self.every * math.log10(step + 0.5)) - 1)
            while round(10 ** (j / self.every)) <= step:
                j += 1 + j // 2**50  # the next one that a float can tell from it
            return round(10 ** (j / self.every))
        period = self.period(steps_per_epoch)
        return step - step % period + period

    def count(self, steps: float, steps_per_epoch: int) -> float:
        """About how many points lie after step 0 and up to ``steps``."""
        if self.unit == "log":
            return min(self.every * math.log10(max(steps, 1)), steps)
        return steps / self.period(steps_per_epoch)

    def period(self, steps_per_epoch: int) -> int:
        """Steps up to the first point."""
        if self.unit == "log":
            return 1
        return self.every * (steps_per_epoch if self.unit == "epoch" else 1)


def changes(model: BaseModel, default: BaseModel | None = None) -> dict[str, Any]:
    """The fields that differ from a default's, by default those of the model's own class; nested.

    A section of another class than the default's, as another network is, is named and has what
    differs from the defaults of its own class; where the default is none, it is there even if that
    is nothing.
    """
    default = type(model)() if default is None else default
    found: dict[str, Any] = {}
    for name in type(model).model_fields:
        value, usual = getattr(model, name), getattr(default, name)
        if not isinstance(value, BaseModel):
            if value != usual:
                found[name] = value
        elif type(value) is type(usual):
            if inner := changes(value, usual):
                found[name] = inner
        else:
            tag = {"name": value.name} if hasattr(value, "name") else {}
            found[name] = tag | changes(value)
    return found


def id_of(settings: str) -> str:
    """Stable name of settings as canonical JSON: 12 hex digits of its SHA-256."""
    return hashlib.sha256(settings.encode()).hexdigest()[:12]


def canonical(settings: dict[str, Any]) -> str:
    """JSON without spaces, keys in order."""
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to one level, keys joined with dots; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`flatten`."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[leaf] = value
    return nested
