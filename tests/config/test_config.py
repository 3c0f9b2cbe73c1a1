"""Every field of a trial at and beyond its bounds, the variants of a section, the trial's name.

The fields of single models and schemes are in test_scheme_config.py.
"""

import json
import math
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from gisgd_ray.config.catalogue import DATASETS, MODELS, SCHEMES
from gisgd_ray.config.data import DataConfig
from gisgd_ray.config.frozen import Schedule, changes, flatten, unflatten
from gisgd_ray.config.measurement import MeasurementConfig
from gisgd_ray.config.model import (
    AlexNetConfig,
    LinearConfig,
    MLPConfig,
    TwoLayerReLUConfig,
    VGG16Config,
)
from gisgd_ray.config.scheme import FloodingConfig, SAMConfig
from gisgd_ray.config.sections import Sections
from gisgd_ray.config.space import field_paths
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError

TINY = 5e-324  # the smallest positive float
ABOVE_ONE = math.nextafter(1, 2)
BELOW_ONE = math.nextafter(1, 0)
BIGGEST = 2**63 - 1  # what a table's column holds

# Written by hand: of every field, values at its very edge and the nearest ones beyond it.
FIELDS: dict[str, tuple[list[Any], list[Any]]] = {
    "data.dataset": (list(DATASETS), ["MNIST", "imagenet", "", 1, None]),
    "data.train_fraction": ([0.02, 1, 1.0], [0, -TINY, ABOVE_ONE, None, "all"]),
    "data.label_noise": ([0, TINY, 1], [-TINY, ABOVE_ONE, None]),
    "data.normalization": (
        ["auto", "authors", "0.1307/0.3081", "-1/5e-324"],
        ["", "mean", "0.1307", "0.1/0", "0.1/-1", "nan/1", "0:0/1:1", "0/1/2", 0.1, None],
    ),
    "data.crop_padding": ([0, 1, 27], [-1, 28, 1.5, 2**63, None]),
    "data.flip": ([True, False], ["left", 2, None]),
    "model.name": (list(MODELS), ["network", "MLP", "vgg", None, 0]),
    "scheme.name": (list(SCHEMES), ["erm", "SGD", "label smoothing", None, 0]),
    "training.learning_rate": ([TINY, 1e308], [0, -0.1, None, "fast", [0.1]]),
    "training.batch_size": ([2, 20.0, "20", 4000], [0, -1, 1.5, 4001, None]),
    "training.last_batch": (["keep", "drop"], ["pad", True, None]),
    "training.loss": (["cross_entropy", "squared"], ["mse", None]),
    "training.initialization": (["pytorch", "xavier", "kaiming"], ["he", None]),
    "training.momentum": ([0, TINY, BELOW_ONE], [-TINY, 1, None]),
    "training.nesterov": ([False], [2, "maybe", None]),
    "training.weight_decay": ([0, TINY, 10], [-TINY, None]),
    "training.max_gradient_norm": ([None, TINY, 50], [0, -TINY, "never"]),
    "training.lr_milestones": ([[], [1], [1, 2, 400]], [[0], [2, 1], [3, 3], [1.5], 5, None]),
    "training.lr_factor": ([TINY, 1, 2], [0, -1, None]),
    "training.precision": (["float32", "bfloat16"], ["float16", "float64", 32, None]),
    "training.stop_loss": ([None, TINY, 5], [0, -1, "never"]),
    "training.stop_at_full_accuracy": ([None, True, False], ["sometimes", 2]),
    "training.max_epochs": ([1, BIGGEST], [0, 1.5, 2**63, None]),
    "training.max_steps": ([None, 1, BIGGEST], [0, 1.5, 2**63]),
    "training.divergence_loss": ([TINY, 1e308], [0, -1, None]),
    "training.evaluation.every": ([1, BIGGEST], [0, 1.5, 2**63, None]),
    "training.evaluation.unit": (["epoch", "step", "log"], ["second", None]),
    "measurement.dispersion": ([True, False], ["often", 2, None]),
    "measurement.dispersion_of": (["plain", "applied"], ["both", True, None]),
    "measurement.dispersion_estimator": (
        ["auto", "per_sample", "groups"],
        ["backpack", False, None],
    ),
    "measurement.dispersion_groups": ([2, BIGGEST], [1, 2.5, 2**63, None]),
    "measurement.hessian_trace": (["auto", "exact", "pyhessian", "off"], ["on", False, None]),
    "measurement.hessian_schedule": ([None, {"every": 2}], [1, "epoch", {"each": 2}]),
    "measurement.hessian_schedule.every": ([1, 500], [0, 1.5, 501, 2**63, None]),
    "measurement.hessian_schedule.unit": (["epoch", "step", "log"], ["second", None]),
    "measurement.hessian_samples": ([None, 1, 4000], [0, 1.5, 4001, 2**63]),
    "measurement.hessian_probes": ([2, BIGGEST], [1, 1.5, 2**63, None]),
    "measurement.noise_stds": ([[TINY], [1, 1e-3]], [[], [0.0], [0.1, -1], 0.1, [None], None]),
    "measurement.sensitivity": ([True, False], ["often", 2, None]),
    "measurement.sensitivity_schedule.every": ([1, BIGGEST], [0, 1.5, 2**63, None]),
    "measurement.sensitivity_schedule.unit": (["epoch", "step", "log"], ["second", None]),
    "measurement.sensitivity_draws": ([2, BIGGEST], [0, 1, 2.5, 2**63, None]),
    "measurement.sensitivity_fraction": ([TINY, 1], [0, -TINY, ABOVE_ONE, None]),
    "measurement.flatness": ([True, False], ["often", 2, None]),
    "measurement.flatness_target": ([TINY, 1], [0, -TINY, ABOVE_ONE, None]),
    "measurement.flatness_draws": ([4, 6, BIGGEST - 1], [0, 2, 3, 5, 4.5, 2**63, None]),
    "measurement.smoothness": ([True, False], ["often", 2, None]),
    "measurement.mean_gradient_gap": ([True, False], ["often", 2, None]),
    "measurement.network_theorem": (
        ["auto", "theorem3", "theorem4", "off"],
        ["theorem2", True, None],
    ),
    "seed": ([0, 1, BIGGEST], [-1, 0.5, 2**63, None]),
    "replicas": ([None, 2, 10**6], [0, 1, 2.5, 10**6 + 1, 2**63]),
}
REGRESSION = {"data.dataset": "teacher", "training.loss": "squared"}
NEEDS: dict[str, dict[str, Any]] = {
    "teacher": {"training.loss": "squared"},
    **{name: REGRESSION for name, known in MODELS.items() if known.theorem},
    **{n: {"data.dataset": "cifar10"} for n, k in MODELS.items() if (k.smallest_image or 1) > 28},
    "theorem3": {"model.name": "linear", **REGRESSION},
    "theorem4": {"model.name": "two_layer_relu", **REGRESSION},
}
"""What other fields have to be where a field is this."""
TAGS = [*MODELS, *SCHEMES]
NUMBERS = [p for p, (_, bad) in FIELDS.items() if any(v in bad for v in (-TINY, 0, 1.5))]
NUMBERS += ["training.lr_milestones", "measurement.noise_stds"]


def trial(fields: dict[str, Any]) -> TrialConfig:
    """A trial from fields under dotted paths; what they need of other fields is chosen."""
    chosen: dict[str, Any] = {}
    for value in fields.values():
        chosen |= NEEDS.get(str(value), {})
    nested = unflatten(chosen | fields)
    for section, name in (("model", "mlp"), ("scheme", "sgd")):
        if section in nested:
            nested[section].setdefault("name", name)
    config = TrialConfig.model_validate(nested)
    config.require_consistent()
    return config


def submodels() -> list[type[BaseModel]]:
    owners = {owner for owners in field_paths().values() for owner, _ in owners}
    return sorted(owners | {TrialConfig}, key=lambda model: model.__name__)


# ---------------------------------------------------------------- fields and their bounds


def test_the_table_names_every_field() -> None:
    of_one_variant = {p for p in field_paths() if p.startswith(("model.", "scheme."))}
    of_one_variant -= {"model.name", "scheme.name"}
    assert list(FIELDS) == [path for path in field_paths() if path not in of_one_variant]


@pytest.mark.parametrize(
    ("path", "value"), [(p, v) for p, (good, _) in FIELDS.items() for v in good]
)
def test_accepted_at_the_edge(path: str, value: Any) -> None:
    flat = trial({path: value}).flat()
    if path == "measurement.hessian_schedule" and value is not None:
        assert flat[f"{path}.every"] == 2
    elif path == "training.batch_size":
        assert flat[path] == int(value)
        assert type(flat[path]) is int
    else:
        assert flat[path] == value


@pytest.mark.parametrize(("path", "value"), [(p, v) for p in FIELDS for v in FIELDS[p][1]])
def test_refused_beyond_the_edge(path: str, value: Any) -> None:
    with pytest.raises((ValidationError, UserError)) as caught:
        trial({path: value})
    if isinstance(caught.value, UserError):  # beyond what the configured data have
        assert path in str(caught.value)
        return
    said = caught.value.errors()[0]
    # A tagged union is told at the tag's section, and names its variant in the place.
    place = [str(part) for part in said["loc"] if part not in TAGS]
    assert ".".join(place).startswith(path.removesuffix(".name")) or path in said["msg"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "inf"])
@pytest.mark.parametrize("path", NUMBERS)
def test_nan_and_infinity_are_refused(path: str, value: Any) -> None:
    for bad in (value, [value]):
        with pytest.raises(ValidationError):
            trial({path: bad})


def test_mnist5k_is_the_default_and_needs_nothing() -> None:
    config = TrialConfig()
    assert config == trial({}) == TrialConfig.model_validate({})
    assert (config.data.dataset, config.model.name, config.scheme.name) == ("mnist5k", "mlp", "sgd")
    assert config.outside_theorem() is None
    assert (config.data.crop_padding, config.data.flip, config.data.augmented) == (0, False, False)
    assert config.training.max_gradient_norm is None
    assert config.training.precision == "float32"
    m = config.measurement
    assert (m.dispersion_of, m.dispersion_estimator, m.dispersion_groups) == ("plain", "auto", 2)


@pytest.mark.parametrize("model", submodels(), ids=lambda model: model.__name__)
def test_every_model_is_frozen_closed_and_described(model: type[BaseModel]) -> None:
    value = model()
    for name, info in model.model_fields.items():
        assert info.description, f"{model.__name__}.{name}"
        assert not info.description.endswith(".")
        with pytest.raises(ValidationError, match="frozen"):
            setattr(value, name, getattr(value, name))
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        model.model_validate({"surprise": 1, **value.model_dump()})
    assert model.__doc__
    assert hash(value) == hash(model())


# ---------------------------------------------------------------- variants, and what follows


def test_what_leaves_the_theorem_is_named() -> None:
    leaves = {
        "momentum 0.5": {"training.momentum": 0.5},
        "weight decay 0.0005": {"training.weight_decay": 5e-4},
        "gradient norm limited to 50": {"training.max_gradient_norm": 50},
        "passes in bfloat16": {"training.precision": "bfloat16"},
        "augmented data": {"data.crop_padding": 1},
        "batch normalisation": {"model.name": "vgg16"},
        **{f"scheme {name}": {"scheme.name": name} for name in list(SCHEMES)[1:]},
    }
    for said, fields in leaves.items():
        assert trial(fields).outside_theorem() == said
    assert trial({"data.flip": True}).outside_theorem() == "augmented data"
    assert trial({"model.name": "preactresnet18"}).outside_theorem() == "batch normalisation"
    every = {path: value for fields in leaves.values() for path, value in fields.items()}
    assert trial(every).outside_theorem() == ", ".join([*list(leaves)[:6], list(leaves)[-1]])
    # The theorems take any sequence of learning rates, and any W_0.
    for fields in ({"training.lr_milestones": [3]}, {"training.initialization": "kaiming"}):
        assert trial(fields).outside_theorem() is None


@pytest.mark.parametrize(
    ("section", "foreign"),
    [
        ("model", {"name": "mlp", "filters": 3}),
        ("model", {"name": "mlp", "hidden": 3}),
        ("model", {"name": "alexnet", "width": 3}),
        ("model", {"name": "linear", "width": 3}),
        ("model", {"name": "two_layer_relu", "filters": 3}),
        ("model", {"name": "preactresnet18", "hidden": 3}),
        ("scheme", {"name": "sgd", "level": 0.1}),
        ("scheme", {"name": "amp", "rho": 0.1}),
        ("scheme", {"name": "sam", "inner_learning_rate": 0.1}),
        ("scheme", {"name": "dropout", "alpha": 0.1}),
    ],
)
def test_a_variant_has_no_field_of_another(section: str, foreign: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs") as caught:
        TrialConfig.model_validate({section: foreign})
    assert caught.value.errors()[0]["loc"] == (section, foreign["name"], list(foreign)[1])


def test_the_tag_chooses_the_variant() -> None:
    assert isinstance(trial({"model.width": 7}).model, MLPConfig)
    alexnet = trial({"model.name": "alexnet", "model.filters": 7}).model
    assert alexnet.model_dump() == {"name": "alexnet", "filters": 7, "hidden": 4096}
    assert trial({"model.name": "vgg16", "model.filters": 7}).model == VGG16Config(filters=7)
    assert trial({"scheme.name": "sam", "scheme.radius": 0.5}).scheme == SAMConfig(radius=0.5)
    assert trial({"model.name": "linear"}).model == LinearConfig()
    assert trial({"model.name": "two_layer_relu"}).model == TwoLayerReLUConfig(width=100)
    assert trial({"scheme.name": "flooding"}).scheme == FloodingConfig(level=0.02)
    with pytest.raises(ValidationError, match="does not match any of the expected tags: 'mlp', 'a"):
        trial({"model.name": "resnet"})


def test_which_of_theorems_3_and_4_applies() -> None:
    for model, own in (
        *[("mlp", None), ("alexnet", None), ("vgg16", None), ("preactresnet18", None)],
        *[("linear", "theorem3"), ("two_layer_relu", "theorem4")],
    ):
        assert trial({"model.name": model}).network_theorem == own
        off = {"model.name": model, "measurement.network_theorem": "off"}
        assert trial(off).network_theorem is None
        if own is not None:
            asked = trial({"model.name": model, "measurement.network_theorem": own})
            assert asked.network_theorem == own


@pytest.mark.parametrize("asked", ["auto", "per_sample", "groups"])
def test_how_the_dispersion_is_estimated(asked: str) -> None:
    """auto: by sample wherever samples have gradients of their own that are known."""
    estimator = {"measurement.dispersion_estimator": asked}
    by_sample = "per_sample" if asked == "auto" else asked
    for name, known in SCHEMES.items():
        plain = trial({**estimator, "scheme.name": name})
        assert plain.dispersion_estimator == by_sample
        another = known.gradient == "another"
        if not another or asked != "per_sample":  # else refused
            applied = {"measurement.dispersion_of": "applied", "scheme.name": name}
            expected = "groups" if another else by_sample
            assert trial({**estimator, **applied}).dispersion_estimator == expected
    for name, model in MODELS.items():
        mixes = model.batchnorm
        if not mixes or asked != "per_sample":
            found = trial({**estimator, "model.name": name}).dispersion_estimator
            assert found == ("groups" if mixes else by_sample)


def test_the_seeds_of_replicas() -> None:
    assert list(trial({"seed": 3}).replica_seeds) == [3]
    assert list(trial({"seed": 3, "replicas": 4}).replica_seeds) == [12, 13, 14, 15]
    # Trials of neighbouring seeds share no run.
    seeds = [s for seed in range(5) for s in trial({"seed": seed, "replicas": 3}).replica_seeds]
    assert seeds == list(range(15))


# ---------------------------------------------------------------- the trial's name

PINNED = {
    "default": (TrialConfig(), "c2a8105acd21"),
    "every kind of value": (
        TrialConfig.model_validate(
            {
                "data": {"dataset": "cifar10", "label_noise": 0.2},
                "model": {"name": "alexnet", "filters": 32},
                "scheme": {"name": "flooding", "level": 0.1},
                "training": {"learning_rate": 1e-3, "stop_loss": None, "lr_milestones": (5, 9)},
                "measurement": {"dispersion": False, "hessian_schedule": {"every": 3}},
                "seed": 7,
            }
        ),
        "97ff432d5cec",
    ),
    "stochastic, in regression": (
        TrialConfig.model_validate(
            {
                "data": {"dataset": "teacher"},
                "model": {"name": "two_layer_relu"},
                "training": {"loss": "squared", "evaluation": {"unit": "log", "every": 10}},
                "measurement": {"sensitivity": True, "network_theorem": "off"},
                "replicas": 4,
            }
        ),
        "02fc764db5ae",
    ),
}


@pytest.mark.parametrize("name", PINNED)
def test_pinned_ids(name: str) -> None:
    """A changed id orphans every result on disk: change these only on purpose."""
    config, trial_id = PINNED[name]
    assert config.trial_id == trial_id


def test_a_new_field_with_a_default_changes_no_id() -> None:
    """In a section, in one inside a section, and in one of another class than the default's."""

    class NewerSchedule(Schedule):
        offset: int = 0

    class NewerAlexNet(AlexNetConfig):
        groups: int = 1

    class NewerMeasurement(MeasurementConfig):
        hessian_schedule: NewerSchedule | None = None
        more: bool = False

    class Newer(Sections):
        model: NewerAlexNet | MLPConfig = MLPConfig()
        measurement: NewerMeasurement = NewerMeasurement()
        extra: float = 0.5

    given = {"model": {"name": "alexnet", "filters": 8}, "measurement": {"hessian_schedule": {}}}
    now = TrialConfig.model_validate(given)
    newer = Newer.model_validate(given)
    assert changes(newer) == changes(now)
    assert changes(now) == {
        "model": {"name": "alexnet", "filters": 8},
        "measurement": {"hessian_schedule": {}},
    }
    assert changes(TrialConfig()) == {}
    assert now.trial_id != TrialConfig.model_validate({"model": given["model"]}).trial_id
    moved = Newer.model_validate(given | {"extra": 0.25})
    assert changes(moved) == {**changes(now), "extra": 0.25}


def test_settings_are_what_differs_from_the_defaults() -> None:
    assert TrialConfig().settings == '{"schema":2}'
    config = trial({"training.learning_rate": 1, "training.lr_milestones": (1, 2), "seed": 3})
    assert json.loads(config.settings) == {
        "schema": 2,
        "seed": 3,
        "training": {"learning_rate": 1.0, "lr_milestones": [1, 2]},
    }


@pytest.mark.parametrize("path", [p for p, (good, _) in FIELDS.items() if 0.0 in good])
def test_zero_has_one_name(path: str) -> None:
    assert trial({path: -0.0}).trial_id == trial({path: 0}).trial_id
    assert json.dumps(trial({path: -0.0}).flat()[path]) in ("0", "0.0", "false")


def test_numbers_of_numpy_have_the_names_of_python_s() -> None:
    plain = trial({"training.learning_rate": 0.5, "model.width": 64})
    same = trial({"training.learning_rate": np.float32(0.5), "model.width": np.int64(64)})
    assert plain.trial_id == same.trial_id


def test_equal_moments_have_one_name() -> None:
    def named(*texts: str) -> set[str]:
        return {TrialConfig(data=DataConfig(normalization=t)).trial_id for t in texts}

    assert len(named("0/1", "0/1.0", "0.0/1", "-0.0/1", " 0 / 1e0")) == 1
    assert len(named("0.1307/0.3081", ".1307/.3081", "0.13070/3081e-4")) == 1
    assert len(named("0.1307/0.3081", "0.1307/0.30810000000000004")) == 2
    assert DataConfig(normalization="0.1307:0/0.3081:1").normalization == "0.1307:0/0.3081:1"


def test_equal_configs_have_equal_ids() -> None:
    whole = trial({"training.learning_rate": 1, "training.weight_decay": 0, "model.width": 64})
    same = TrialConfig.model_validate_json(
        '{"model": {"width": 64.0, "name": "mlp"}, "seed": 0,'
        ' "training": {"weight_decay": 0.0, "learning_rate": 1.0}}'
    )
    assert whole == same
    assert whole.trial_id == same.trial_id
    assert TrialConfig.model_validate(whole.model_dump(mode="json")).trial_id == whole.trial_id
    assert TrialConfig.model_validate_json(whole.model_dump_json()).trial_id == whole.trial_id
    assert trial(whole.flat()).trial_id == whole.trial_id
    assert trial({"training.lr_milestones": (1, 2)}).trial_id == (
        trial({"training.lr_milestones": [1, 2]}).trial_id
    )


@pytest.mark.parametrize("path", FIELDS)
def test_any_changed_field_changes_the_id(path: str) -> None:
    default = field_paths()[path][0][1].default
    values = [*FIELDS[path][0], True] if path == "training.nesterov" else FIELDS[path][0]
    value = next(v for v in reversed(values) if v != default)
    base: dict[str, Any] = dict(NEEDS.get(str(value), {}))
    if path == "training.nesterov":
        base["training.momentum"] = 0.5
    if path.startswith("measurement.hessian_schedule."):
        base["measurement.hessian_schedule.every"] = 5
    changed = trial(base | {path: value})
    assert changed != trial(base)
    assert changed.trial_id != trial(base).trial_id


def test_neighbouring_floats_have_different_ids() -> None:
    ids = {trial({"training.learning_rate": v}).trial_id for v in (0.1, math.nextafter(0.1, 1))}
    assert len(ids) == 2
    assert all(len(name) == 12 and set(name) <= set("0123456789abcdef") for name in ids)


# ---------------------------------------------------------------- flat and nested


@pytest.mark.parametrize(
    ("nested", "flat"),
    [
        ({}, {}),
        ({"a": 1}, {"a": 1}),
        ({"a": {"b": {"c": None}, "d": [{"e": 2}]}}, {"a.b.c": None, "a.d": [{"e": 2}]}),
        ({"a": {"b": 1}, "c": 0, "d": ()}, {"a.b": 1, "c": 0, "d": ()}),
    ],
)
def test_flatten_and_unflatten(nested: dict[str, Any], flat: dict[str, Any]) -> None:
    assert flatten(nested) == flat
    assert unflatten(flat) == nested
    assert unflatten(dict(reversed(flat.items()))) == nested


def test_flat_names_every_field_of_the_trial_and_nothing_else() -> None:
    expected = {p for p in FIELDS if not p.startswith("measurement.hessian_schedule.")}
    assert set(TrialConfig().flat()) == expected | {"model.width"}
    scheduled = trial({"measurement.hessian_schedule.every": 2}).flat()
    assert scheduled["measurement.hessian_schedule.unit"] == "epoch"
    for config, _ in PINNED.values():
        assert TrialConfig.model_validate(unflatten(config.flat())) == config
        assert json.loads(json.dumps(config.flat())) == config.flat()
