"""A space of trials: any field of :class:`TrialConfig` as a value, a grid or a distribution."""

import difflib
import itertools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from gisgd_ray.config import Frozen, TrialConfig, unflatten
from gisgd_ray.errors import UserError
from gisgd_ray.randomness import derived_seed


class Uniform(Frozen):
    """Uniform on [low, high]; rounded for an integer field."""

    kind: Literal["uniform"] = "uniform"
    low: float
    high: float

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low:g} must be below high = {self.high:g}")
        return self

    def draw(self, rng: np.random.Generator) -> Any:
        return float(rng.uniform(self.low, self.high))


class LogUniform(Frozen):
    """Uniform in the logarithm on [low, high], low above 0; rounded for an integer field."""

    kind: Literal["log_uniform"] = "log_uniform"
    low: float = Field(gt=0)
    high: float

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low:g} must be below high = {self.high:g}")
        return self

    def draw(self, rng: np.random.Generator) -> Any:
        return float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))


class Choice(Frozen):
    """One of the values, each as likely."""

    kind: Literal["choice"] = "choice"
    values: tuple[Any, ...] = Field(min_length=1)

    def draw(self, rng: np.random.Generator) -> Any:
        return self.values[int(rng.integers(len(self.values)))]


Distribution = Annotated[Uniform | LogUniform | Choice, Field(discriminator="kind")]
_DISTRIBUTION: TypeAdapter[Uniform | LogUniform | Choice] = TypeAdapter(Distribution)


class SearchSpace(Frozen):
    """Fields by dotted path; what is not named keeps :class:`TrialConfig`'s default.

    A value is taken as it is; a list is a grid (of a list-valued field, a list of lists); a
    distribution is drawn ``samples`` times. The trials are the product of grids, draws and seeds,
    the same ones every time.

    >>> space = SearchSpace(fields={"training.learning_rate": [0.1, 0.2]}, seeds=3)
    >>> len(space.trials())
    6
    """

    fields: dict[str, Any] = Field(default_factory=dict, description="dotted path -> values")
    seeds: int = Field(1, ge=1, description="replicates: seeds seed, seed+1, ... per point")
    samples: int = Field(1, ge=1, description="draws from the distributions")
    sampling_seed: int = Field(0, ge=0, description="seed of those draws")

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = field_paths()
        for path, values in self.fields.items():
            if path not in known:
                close = difflib.get_close_matches(path, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
                raise ValueError(f"{path} is not a field of a trial{hint}")
            if _is_grid(path, values) and len(values) == 0:
                raise ValueError(f"{path} = [] is an empty grid; give at least one value")
            if isinstance(values, dict):
                try:
                    _DISTRIBUTION.validate_python(values)
                except ValidationError as error:
                    raise ValueError(f"{path}: {_sentences(error)}") from None
        if self.samples > 1 and not self._distributions():
            raise ValueError(f"samples = {self.samples} needs a field with a distribution")
        if self.seeds > 1 and isinstance(self.fields.get("seed"), list):
            raise ValueError(f"seeds = {self.seeds} and a grid of seed exclude each other")
        return self

    def trials(self) -> list[TrialConfig]:
        """Every trial of the space, validated, in the order of the grids, seeds innermost.

        Raises:
            UserError: a combination is not a valid trial; names field, value and what would do.
        """
        trials: dict[str, TrialConfig] = {}
        for flat in self._combinations():
            first = flat.get("seed", 0)
            for seed in range(first, first + self.seeds) if self.seeds > 1 else [first]:
                config = validated({**flat, "seed": seed})
                trials.setdefault(config.trial_id, config)
        return list(trials.values())

    def swept_fields(self) -> list[str]:
        """The fields that differ between trials (without ``seed``)."""
        drawn = self._distributions()
        return [
            path
            for path, values in self.fields.items()
            if path in drawn or (_is_grid(path, values) and len(values) > 1)
        ]

    def overridden(self, overrides: Mapping[str, Any], **settings: Any) -> "SearchSpace":
        """A copy with some fields replaced or added, and ``seeds`` and the like set."""
        return make_space({**self.fields, **overrides}, **{**self._settings(), **settings})

    def _settings(self) -> dict[str, Any]:
        return self.model_dump(exclude={"fields"})

    def _distributions(self) -> dict[str, Uniform | LogUniform | Choice]:
        return {
            path: _DISTRIBUTION.validate_python(values)
            for path, values in self.fields.items()
            if isinstance(values, dict | Uniform | LogUniform | Choice)
        }

    def _combinations(self) -> Iterator[dict[str, Any]]:
        distributions = self._distributions()
        grids = {
            path: values if _is_grid(path, values) else [values]
            for path, values in self.fields.items()
            if path not in distributions
        }
        for sample in range(self.samples):
            drawn = {
                path: _fit(path, distribution.draw(_rng(self.sampling_seed, path, sample)))
                for path, distribution in distributions.items()
            }
            for values in itertools.product(*grids.values()):
                yield {**dict(zip(grids, values, strict=True)), **drawn}


def make_space(fields: Mapping[str, Any], **settings: Any) -> SearchSpace:
    """A :class:`SearchSpace`, its faults told as :class:`UserError`."""
    try:
        return SearchSpace(fields=dict(fields), **settings)
    except ValidationError as error:
        raise UserError(_sentences(error)) from None


def validated(flat: Mapping[str, Any]) -> TrialConfig:
    """A trial from fields under dotted paths.

    Raises:
        UserError: one sentence per fault: field, value, what would do.
    """
    nested = unflatten(dict(flat))
    for section, tag in (("model", "mlp"), ("scheme", "sgd")):
        if section in nested:
            nested[section].setdefault("name", tag)
    try:
        return TrialConfig.model_validate(nested)
    except ValidationError as error:
        raise UserError(_sentences(error)) from None


def param_space(trials: list[TrialConfig], **run: Any) -> dict[str, Any]:
    """Ray Tune's ``param_space``: a grid over the trials, and ``run`` the same for all.

    The trials are expanded here and not by Ray, so that they are known, checked and counted before
    anything starts, and finished ones can be left out.
    """
    from ray import tune

    return {"trial": tune.grid_search([t.model_dump(mode="json") for t in trials]), "run": run}


def field_paths() -> dict[str, list[tuple[type[BaseModel], FieldInfo]]]:
    """Every field of a trial by dotted path, with the models that declare it.

    A path of a tagged union (``model.width``) is listed once, with every variant that has it.
    """
    paths: dict[str, list[tuple[type[BaseModel], FieldInfo]]] = {}

    def walk(model: type[BaseModel], prefix: str) -> None:
        for name, info in model.model_fields.items():
            variants = [t for t in (info.annotation, *get_args(info.annotation)) if _is_model(t)]
            if not variants:
                paths.setdefault(prefix + name, []).append((model, info))
            elif type(None) in get_args(info.annotation):
                # An optional section (a schedule, say) is also a field: null switches it off.
                paths.setdefault(prefix + name, []).append((model, info))
            for variant in variants:
                walk(variant, f"{prefix}{name}.")

    walk(TrialConfig, "")
    return paths


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_grid(path: str, values: Any) -> bool:
    """Whether ``values`` is a grid of the field, not one value of a list-valued field."""
    if not isinstance(values, list | tuple):
        return False
    if not _takes_lists(path):
        return True
    return len(values) > 0 and isinstance(values[0], list | tuple)


def _takes_lists(path: str) -> bool:
    return any("tuple" in str(info.annotation) for _, info in field_paths()[path])


def _fit(path: str, value: Any) -> Any:
    """A draw rounded where the field is an integer."""
    is_integer = any(info.annotation is int for _, info in field_paths()[path])
    return round(value) if is_integer and isinstance(value, float) else value


def _rng(seed: int, path: str, sample: int) -> np.random.Generator:
    """A stream per field and draw: adding a field or a draw changes no other."""
    return np.random.default_rng(derived_seed(seed, "search_space", path, sample))


def _sentences(error: ValidationError) -> str:
    """Pydantic's findings as sentences: field, value, what is wrong."""
    findings = [dict(finding) for finding in error.errors()]
    # A bad item makes its list bad as well: only the item is told.
    innermost = [
        finding
        for finding in findings
        if not any(
            len(other["loc"]) > len(finding["loc"])
            and other["loc"][: len(finding["loc"])] == finding["loc"]
            for other in findings
        )
    ]
    return "; ".join(_sentence(finding) for finding in innermost)


def _sentence(finding: dict[str, Any]) -> str:
    # The location of a tagged union names the variant after the section; the field does not.
    tags = _variant_names()
    path = ".".join(str(part) for part in finding["loc"] if part not in tags)
    message = finding["msg"].removeprefix("Value error, ")
    if finding["type"] == "value_error":
        return f"{path}: {message}" if path and not message.startswith(path) else message
    value = finding["input"]
    if finding["type"] == "extra_forbidden":
        section, _, name = path.rpartition(".")
        variant = next((str(part) for part in finding["loc"] if part in tags), None)
        owner = f"{section} {variant!r}" if variant else section or "a trial"
        return f"{path} = {value!r}: {owner} has no field {name!r}{_fields_of(section, variant)}"
    if finding["type"] == "union_tag_invalid":
        message = f"{path}.name = {finding['ctx']['tag']!r}: expected one of "
        return message + str(finding["ctx"]["expected_tags"])
    message = message[0].lower() + message[1:]
    return f"{path} = {value!r}: {message}"


def _variant_names() -> set[str]:
    variants = {model for owners in field_paths().values() for model, _ in owners}
    models = {m.model_fields["name"].default for m in variants if "name" in m.model_fields}
    return models | {d.model_fields["kind"].default for d in (Uniform, LogUniform, Choice)}


def _fields_of(section: str, variant: str | None) -> str:
    names = [
        path.rpartition(".")[2]
        for path, owners in field_paths().items()
        if path.rpartition(".")[0] == section
        and (
            variant is None
            or any(model.model_fields["name"].default == variant for model, _ in owners)
        )
    ]
    return f"; it has {', '.join(names)}" if names else ""
