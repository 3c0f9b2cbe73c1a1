"""A space of trials: any field of :class:`TrialConfig` as a value, a grid or a distribution."""

import difflib
import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from gisgd_ray.config.frozen import Frozen, plain, unflatten
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError, one_line
from gisgd_ray.seeds import derived_seed

UNMEASURED: dict[str, Any] = {
    "measurement.dispersion": False,
    "measurement.hessian_trace": "off",
    "measurement.flatness": False,
    "measurement.smoothness": False,
    "measurement.mean_gradient_gap": False,
}
"""Fields of trials of which the losses and accuracies are all that is wanted."""


MOST_TRIALS = 100_000
"""Of a sweep. Ten thousand are a large one; so many are planned in a minute."""


LONGEST = 200
"""Characters of a wrong value that are shown."""


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

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        return plain(given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = field_paths()
        for path, values in self.fields.items():
            if path not in known:
                if _is_section(path):
                    inside = ", ".join(_names_in(path))
                    raise ValueError(
                        f"{path} is a section of a trial, not a field; it has {inside}"
                    )
                close = difflib.get_close_matches(path, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
                raise ValueError(f"{path} is not a field of a trial{hint}")
            for section in self.fields:
                if path.startswith(f"{section}."):
                    raise ValueError(f"{section} and {path} exclude each other; give one of them")
            if _is_grid(path, values) and len(values) == 0:
                raise ValueError(f"{path} = [] is an empty grid; give at least one value")
            if _is_distribution(path, values):
                try:
                    _DISTRIBUTION.validate_python(values)
                except ValidationError as error:
                    raise ValueError(f"{path}: {_sentences(error)}") from None
        if self.samples > 1 and not self._distributions():
            raise ValueError(f"samples = {self.samples} needs a field with a distribution")
        if self.seeds > 1 and isinstance(self.fields.get("seed"), list | range):
            raise ValueError(f"seeds = {self.seeds} and a grid of seed exclude each other")
        return self

    def factors(self) -> dict[str, int]:
        """How many values each grid, the seeds and the draws have, where it is more than one."""
        lengths = {
            "seeds": self.seeds,
            "samples": self.samples,
            **{path: len(v) for path, v in self.fields.items() if _is_grid(path, v)},
        }
        return {name: length for name, length in lengths.items() if length > 1}

    def trials(self) -> list[TrialConfig]:
        """Every trial of the space, validated, in the order of the grids, seeds innermost.

        Raises:
            UserError: a combination is not a valid trial, or with a value of a choice that is not
                drawn would not be; names field, value and what would do. Or there are more than
                :data:`MOST_TRIALS`.
        """
        require_few([self])
        self._require_sound_choices()
        trials: dict[str, TrialConfig] = {}
        for flat in self._combinations():
            first = validated(flat)
            for seed in range(first.seed, first.seed + self.seeds):
                try:
                    config = first.changed({"seed": seed})
                except ValidationError as error:
                    raise UserError(_sentences(error)) from None
                trials.setdefault(config.trial_id, config)
        return list(trials.values())

    def swept_fields(self) -> list[str]:
        """The fields that are drawn or take several values (without ``seeds``)."""
        drawn = self._distributions()
        return [
            path
            for path, values in self.fields.items()
            if path in drawn
            or (_is_grid(path, values) and any(value != values[0] for value in values))
        ]

    def _distributions(self) -> dict[str, Uniform | LogUniform | Choice]:
        return {
            path: _DISTRIBUTION.validate_python(values)
            for path, values in self.fields.items()
            if _is_distribution(path, values)
        }

    def _require_sound_choices(self) -> None:
        """See that every value of a choice would do, whatever is drawn.

        Raises:
            UserError: one does not, beside the first values of the other fields.
        """
        first = next(self._combinations())
        for path, distribution in self._distributions().items():
            if isinstance(distribution, Choice):
                for value in distribution.values:
                    validated({**first, path: value})

    def _combinations(self) -> Iterator[dict[str, Any]]:
        distributions = self._distributions()
        grids = {
            path: values if _is_grid(path, values) else [values]
            for path, values in self.fields.items()
            if path not in distributions
        }
        for sample in range(self.samples):
            drawn = {
                path: _draw(path, distribution, _rng(self.sampling_seed, path, sample))
                for path, distribution in distributions.items()
            }
            for values in itertools.product(*grids.values()):
                yield {**dict(zip(grids, values, strict=True)), **drawn}


def make_space(fields: Mapping[str, Any], **settings: Any) -> SearchSpace:
    """A :class:`SearchSpace`, its faults as :class:`UserError`."""
    try:
        return SearchSpace(fields=plain(dict(fields)), **settings)
    except ValidationError as error:
        raise UserError(_sentences(error)) from None
    except ValueError as error:
        raise UserError(str(error)) from None


def require_few(spaces: Collection[SearchSpace]) -> int:
    """How many trials the spaces have, counted without being listed; twins count twice.

    Raises:
        UserError: more than :data:`MOST_TRIALS`.
    """
    counts = {math.prod(factors.values()): factors for factors in map(SearchSpace.factors, spaces)}
    total = sum(math.prod(space.factors().values()) for space in spaces)
    if total > MOST_TRIALS:
        product = " x ".join(f"{name} {length:,}" for name, length in counts[max(counts)].items())
        raise UserError(
            f"these are {total:,} trials ({product}), and a sweep takes at most {MOST_TRIALS:,}; "
            "choose fewer seeds, samples or values, or several sweeps with an --out for each"
        )
    return total


def validated(flat: Mapping[str, Any]) -> TrialConfig:
    """A trial from fields under dotted paths, which go together on the configured data.

    Raises:
        UserError: one sentence per fault: field, value, what would do.
    """
    nested = unflatten(dict(flat))
    for section, tag in (("model", "mlp"), ("scheme", "sgd")):
        if section in nested:
            nested[section].setdefault("name", tag)
    try:
        trial = TrialConfig.model_validate(nested)
    except ValidationError as error:
        raise UserError(_sentences(error)) from None
    trial.require_consistent()
    return trial


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
    if not isinstance(values, list | range):
        return False
    if not takes_lists(path):
        return True
    return len(values) > 0 and isinstance(values[0], list)


def takes_lists(path: str) -> bool:
    """Whether one value of the field is a list."""
    kinds = [
        t for _, info in field_paths()[path] for t in (info.annotation, *get_args(info.annotation))
    ]
    return any(get_origin(kind) is tuple for kind in kinds)


def has_distribution(fields: Mapping[str, Any]) -> bool:
    """Whether any of the fields is drawn."""
    return any(_is_distribution(path, values) for path, values in fields.items())


def _is_distribution(path: str, values: Any) -> bool:
    """Whether ``values`` is a distribution, not one value of a section that may be null."""
    if isinstance(values, Uniform | LogUniform | Choice):
        return True
    return isinstance(values, dict) and ("kind" in values or not _is_section(path))


def _is_section(path: str) -> bool:
    return any(known.startswith(f"{path}.") for known in field_paths())


def _draw(path: str, distribution: Uniform | LogUniform | Choice, rng: np.random.Generator) -> Any:
    """One draw, rounded where it comes from a range and the field is an integer."""
    value = distribution.draw(rng)
    types = {
        t for _, info in field_paths()[path] for t in (info.annotation, *get_args(info.annotation))
    }
    is_integer = int in types and not isinstance(distribution, Choice)
    return round(value) if is_integer else value


def _rng(seed: int, path: str, sample: int) -> np.random.Generator:
    """A stream per field and draw: adding a field or a draw changes no other."""
    return np.random.default_rng(derived_seed(seed, "search_space", path, sample))


def _sentences(error: ValidationError) -> str:
    """Pydantic's findings as sentences: field, value, what is wrong."""
    findings: list[dict[str, Any]] = [dict(finding) for finding in error.errors()]
    # A bad item makes its list bad as well: only the item is named.
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
    variants = _variants()
    path = ".".join(str(part) for part in finding["loc"] if part not in variants)
    variant = next((part for part in finding["loc"] if part in variants), None)
    section, _, name = path.rpartition(".")
    given = finding["input"]
    value = one_line(repr(given), LONGEST)
    message = finding["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    match finding["type"]:
        case "value_error":
            return message if not path or message.startswith(path) else f"{path}: {message}"
        case "extra_forbidden":
            owner = f"{section} {variant!r}".strip() if variant else section or "a trial"
            names = variants[variant].model_fields if variant else _names_in(section)
            known = f"; it has {', '.join(names)}"
            return f"{path} = {value}: {owner} has no field {name!r}{known}"
        case "missing":
            return f"{variant} needs {name}"
        case "union_tag_invalid" | "union_tag_not_found":
            # Of a model or scheme, or of a distribution (whose field the caller names).
            tag = "name" if path else "kind"
            expected = finding["ctx"].get("expected_tags", "'uniform', 'log_uniform', 'choice'")
            return f"{path}.{tag} = {given.get(tag)!r}: expected one of {expected}".lstrip(".")
        case "model_type" if _is_section(path):
            return f"{path} = {value}: expected null; set {path}.{_names_in(path)[0]} instead"
    return f"{path} = {value}: {message}"


def _variants() -> dict[str, type[BaseModel]]:
    """The variants of every tagged union by their tags."""
    owners = {model for owners in field_paths().values() for model, _ in owners}
    models = {m.model_fields["name"].default: m for m in owners if "name" in m.model_fields}
    return models | {d.model_fields["kind"].default: d for d in (Uniform, LogUniform, Choice)}


def _names_in(section: str) -> list[str]:
    """The fields and sections of a section; of the whole trial for the empty name."""
    inside = [
        path.removeprefix(f"{section}.")
        for path in field_paths()
        if not section or path.startswith(f"{section}.")
    ]
    return list(dict.fromkeys(path.partition(".")[0] for path in inside))
