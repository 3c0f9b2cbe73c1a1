"""Every field of every network and training scheme: its default, its edges, what lies beyond."""

import math
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from gisgd_ray.config.model import ModelConfig
from gisgd_ray.config.scheme import SchemeConfig
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from tests.config.test_config import (
    ABOVE_ONE,
    BELOW_ONE,
    BIGGEST,
    MODELS,
    NEEDS,
    SCHEMES,
    TINY,
    trial,
)

Edges = tuple[Any, list[Any], list[Any]]
COUNT: tuple[list[Any], list[Any]] = ([1, 64, BIGGEST], [0, -1, 1.5, 2**63, None, "many"])
POSITIVE: tuple[list[Any], list[Any]] = ([TINY, 1e308], [0, -0.1, None, "small"])

# Written by hand: the default, values at the very edge and the nearest ones beyond it.
VARIANTS: dict[str, dict[str, Edges]] = {
    "mlp": {"width": (512, *COUNT)},
    "alexnet": {"filters": (64, *COUNT), "hidden": (4096, *COUNT)},
    "linear": {},
    "two_layer_relu": {"width": (100, *COUNT)},
    "vgg16": {"filters": (64, *COUNT), "hidden": (4096, *COUNT)},
    "preactresnet18": {"filters": (64, *COUNT)},
    "sgd": {},
    "flooding": {"level": (0.02, [0, TINY, 1e3], [-TINY, None, "low"])},
    "clipping": {
        "variant": ("running_minimum", ["running_minimum", "lag"], ["average", "", None]),
        "factor": (0.1, [TINY, 1], [0, -TINY, ABOVE_ONE, None]),
        "start_epoch": (None, [None, 0, 499], [-1, 500, 1.5, 2**63, "auto"]),
        "initial_threshold": (None, [None, TINY, 1e308], [0, -TINY, "none"]),
        # 4,000 samples in batches of 60, 500 epochs: 33,500 steps.
        "lag": (50, [1, 33_499], [0, -1, 33_500, 1.5, 2**63, None]),
    },
    "gmp": {
        "draws": (3, [1, BIGGEST], [0, -1, 1.5, 2**63, None]),
        "rho": (0.5, [0, TINY, BELOW_ONE, 1], [-TINY, ABOVE_ONE, None, "half"]),
        "noise_std": (0.03, *POSITIVE),
        "final_noise_std": (None, [None, TINY, 1e308], [0, -TINY, "small"]),
        "noise_schedule": ("linear", ["linear", "cosine", "geometric"], ["constant", None]),
        "variant": ("average", ["average", "absolute"], ["lag", True, None]),
        "estimator": ("weights", ["weights", "local"], ["auto", None]),
    },
    "amp": {
        "radius": (0.5, [0, TINY, 1e308], [-TINY, None, "wide"]),
        "inner_learning_rate": (1.0, *POSITIVE),
    },
    "sam": {"radius": (0.05, [0, TINY, 1e308], [-TINY, None, "wide"])},
    "dropout": {"rate": (0.1, [0, TINY, BELOW_ONE], [-TINY, 1, None, "some"])},
    "label_smoothing": {"smoothing": (0.2, [0, TINY, BELOW_ONE], [-TINY, 1, None])},
    "mixup": {"alpha": (1.0, *POSITIVE)},
    "adversarial": {"pixels": (1.0, [0, TINY, 255], [-TINY, 255.1, None])},
}
CASES = [(name, field) for name, fields in VARIANTS.items() for field in fields]
GOOD = [(name, field, value) for name, field in CASES for value in VARIANTS[name][field][1]]
BAD = [(name, field, value) for name, field in CASES for value in VARIANTS[name][field][2]]


def section(name: str) -> str:
    return "model" if name in MODELS else "scheme"


def variant(name: str, **fields: Any) -> TrialConfig:
    """A trial with this network or scheme; what it needs of other fields is chosen."""
    if "lag" in fields:
        fields = {"variant": "lag", **fields}  # what its bounds are for
    return trial(
        {f"{section(name)}.{key}": value for key, value in {"name": name, **fields}.items()}
    )


def models() -> dict[str, type[BaseModel]]:
    unions = [get_args(get_args(union)[0]) for union in (ModelConfig, SchemeConfig)]
    return {model.model_fields["name"].default: model for union in unions for model in union}


def test_the_table_names_every_field_of_every_variant() -> None:
    assert models().keys() == VARIANTS.keys()
    for name, model in models().items():
        assert list(model.model_fields) == ["name", *VARIANTS[name]]


@pytest.mark.parametrize("name", VARIANTS)
def test_defaults(name: str) -> None:
    expected = {"name": name} | {field: edges[0] for field, edges in VARIANTS[name].items()}
    assert getattr(variant(name), section(name)).model_dump() == expected


@pytest.mark.parametrize(("name", "field", "value"), GOOD)
def test_accepted_at_the_edge(name: str, field: str, value: Any) -> None:
    assert variant(name, **{field: value}).flat()[f"{section(name)}.{field}"] == value


@pytest.mark.parametrize(("name", "field", "value"), BAD)
def test_refused_beyond_the_edge(name: str, field: str, value: Any) -> None:
    with pytest.raises((ValidationError, UserError)) as caught:
        variant(name, **{field: value})
    if isinstance(caught.value, UserError):  # beyond what the run has
        assert f"scheme.{field} = {value} " in str(caught.value)
    else:
        assert caught.value.errors()[0]["loc"] == (section(name), name, field)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "inf"])
@pytest.mark.parametrize(("name", "field"), CASES)
def test_nan_and_infinity_are_refused(name: str, field: str, value: Any) -> None:
    for bad in (value, [value]):
        with pytest.raises(ValidationError):
            variant(name, **{field: bad})


@pytest.mark.parametrize(("name", "field"), CASES)
def test_any_changed_field_changes_the_id(name: str, field: str) -> None:
    default, good, _ = VARIANTS[name][field]
    value = next(v for v in reversed(good) if v != default)
    base = {"variant": "lag"} if field == "lag" else {}
    changed, unchanged = variant(name, **base, **{field: value}), variant(name, **base)
    assert changed != unchanged
    assert changed.trial_id != unchanged.trial_id


def test_every_variant_has_a_name_of_its_own() -> None:
    """SAM and AMP of one radius, say, are two trials."""
    assert len({variant(name).trial_id for name in SCHEMES}) == len(SCHEMES)
    radius = [variant(name, radius=0.3).trial_id for name in ("amp", "sam")]
    assert radius[0] != radius[1]
    vgg16, resnet = (
        trial({**NEEDS["vgg16"], "model.name": name}) for name in ("vgg16", "preactresnet18")
    )
    assert vgg16.trial_id != resnet.trial_id


def test_pinned_id_with_every_field_of_the_tables_of_schemes() -> None:
    """A changed id orphans every result on disk: change this only on purpose."""
    config = TrialConfig.model_validate(
        {
            "data": {"dataset": "cifar10", "crop_padding": 4, "flip": True},
            "model": {"name": "vgg16", "filters": 32},
            "scheme": {"name": "gmp", "rho": 0.25, "final_noise_std": 0.01, "variant": "absolute"},
            "training": {
                "initialization": "kaiming",
                "max_gradient_norm": 50,
                "precision": "bfloat16",
            },
            "measurement": {"dispersion_of": "applied", "dispersion_groups": 5},
        }
    )
    assert config.trial_id == "d0f47d148ae4"
