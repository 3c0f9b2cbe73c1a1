"""Schemes, networks and measures that do not go together: the sentence, and its remedy."""

import re
from typing import Any

import pytest
import torch

from gisgd_ray.config.catalogue import DATASETS, MODELS, SCHEMES
from gisgd_ray.config.space import validated
from gisgd_ray.data.augmentation import crop_and_flip
from gisgd_ray.errors import UserError
from gisgd_ray.networks.models import vgg16
from tests.config.test_consistency import LINEAR, RELU, TEACHER, said, said_of_options

IMAGES = {"data.dataset": "cifar10"}
GROUPS = {"measurement.dispersion_estimator": "groups"}
BY_SAMPLE = {"measurement.dispersion_estimator": "per_sample"}
APPLIED = {"measurement.dispersion_of": "applied"}
SCALING = [name for name, known in SCHEMES.items() if known.gradient != "another"]


def told(fields: dict[str, Any]) -> str:
    """What a user is told, the same from the command line as from Python."""
    shown = {path: str(value).lower() if value is True else value for path, value in fields.items()}
    argv = [part for path, value in shown.items() for part in (f"--{path}", str(value))]
    assert said_of_options(*argv) == said(fields)
    return said(fields)


# ---------------------------------------------------------------- single fields of a scheme

BEYOND = [
    ("gmp", "rho", 1.5, "less than or equal to 1", 1),
    ("gmp", "rho", -0.1, "greater than or equal to 0", 0),
    ("gmp", "draws", 0, "greater than or equal to 1", 1),
    ("gmp", "draws", -3, "greater than or equal to 1", 1),
    ("gmp", "noise_std", 0, "greater than 0", 1e-9),
    ("gmp", "noise_std", -0.03, "greater than 0", 0.03),
    ("gmp", "final_noise_std", 0, "greater than 0", 1e-9),
    ("clipping", "factor", 0, "greater than 0", 1e-9),
    ("clipping", "factor", -1, "greater than 0", 0.1),
    ("clipping", "factor", 1.1, "less than or equal to 1", 1),
    ("clipping", "start_epoch", -1, "greater than or equal to 0", 0),
    ("clipping", "initial_threshold", 0, "greater than 0", 1e-9),
    ("clipping", "lag", 0, "greater than or equal to 1", 1),
    ("clipping", "variant", "average", "'running_minimum' or 'lag'", "lag"),
    ("gmp", "variant", "lag", "'average' or 'absolute'", "absolute"),
    ("amp", "radius", -0.5, "greater than or equal to 0", 0),
    ("amp", "inner_learning_rate", 0, "greater than 0", 1),
    ("sam", "radius", -0.05, "greater than or equal to 0", 0),
    ("flooding", "level", -0.1, "greater than or equal to 0", 0),
    ("dropout", "rate", 1, "less than 1", 0.99),
    ("dropout", "rate", -0.1, "greater than or equal to 0", 0),
    ("label_smoothing", "smoothing", 1, "less than 1", 0.99),
    ("label_smoothing", "smoothing", 1.5, "less than 1", 0.99),
    ("mixup", "alpha", 0, "greater than 0", 1e-9),
    ("mixup", "alpha", -1, "greater than 0", 1),
    ("adversarial", "pixels", -1, "greater than or equal to 0", 0),
    ("adversarial", "pixels", 256, "less than or equal to 255", 255),
]


@pytest.mark.parametrize(("scheme", "field", "bad", "wanted", "good"), BEYOND)
def test_beyond_the_bounds_of_a_scheme(
    scheme: str, field: str, bad: Any, wanted: str, good: Any
) -> None:
    path = f"scheme.{field}"
    expected = f"{path} = {bad!r}: input should be {wanted}"
    assert told({"scheme.name": scheme, path: bad}) == expected
    assert validated({"scheme.name": scheme, path: good}).flat()[path] == good


def test_a_scheme_that_does_not_exist() -> None:
    assert told({"scheme.name": "ema"}) == (
        f"scheme.name = 'ema': expected one of {', '.join(map(repr, SCHEMES))}"
    )
    assert said({"scheme.name": "amp", "scheme.rho": 0.5}) == (
        "scheme.rho = 0.5: scheme 'amp' has no field 'rho'; it has name, radius, "
        "inner_learning_rate"
    )


def test_the_absolute_variant_needs_one_loss_of_the_batch() -> None:
    absolute = {"scheme.name": "gmp", "scheme.variant": "absolute"}
    assert told({**absolute, "scheme.estimator": "local"}) == (
        "scheme.variant = 'absolute' takes the mean loss of a batch under one perturbation of the "
        "weights, which scheme.estimator = 'local' has none of; choose scheme.estimator = "
        "'weights'"
    )
    assert validated({**absolute, "scheme.estimator": "weights"})
    assert validated({"scheme.name": "gmp", "scheme.estimator": "local"})


# ---------------------------------------------------------------- clipping within the run

LAG = {"scheme.name": "clipping", "scheme.variant": "lag", "scheme.start_epoch": 0}
# mnist5k in batches of 60: 67 steps in an epoch, 66 without the last batch.
LIMITS: list[tuple[dict[str, Any], int]] = [
    ({"training.max_epochs": 3}, 201),
    ({"training.max_epochs": 3, "training.last_batch": "drop"}, 198),
    ({"training.max_epochs": 3, "training.max_steps": 70}, 70),
    ({"training.max_steps": 2}, 2),
]


@pytest.mark.parametrize(("limits", "steps"), LIMITS)
def test_a_lag_reaches_back_within_the_run(limits: dict[str, Any], steps: int) -> None:
    fields = LAG | limits
    assert validated({**fields, "scheme.lag": steps - 1})
    for lag in (steps, steps + 1):
        assert told({**fields, "scheme.lag": lag}) == (
            f"scheme.lag = {lag} leaves no step with a norm that much earlier: training has "
            f"{steps} steps at most; choose scheme.lag = {steps - 1} or less"
        )
    assert validated({**fields, "scheme.variant": "running_minimum", "scheme.lag": steps})


def test_the_lag_that_is_named_can_be_given() -> None:
    """A number that the command line takes, not one with a comma that makes it a grid."""
    said_of_many = told({**LAG, "scheme.lag": 40_000})
    assert "training has 33,500 steps at most" in said_of_many
    assert said_of_many.endswith("choose scheme.lag = 33499 or less")


def test_one_step_has_no_lag() -> None:
    one = {**LAG, "training.max_steps": 1, "scheme.lag": 1}
    assert "scheme.lag = 1 leaves no step" in told(one)
    assert "choose scheme.lag = 1 " not in told(one)  # which is refused as well
    assert validated({**one, "scheme.variant": "running_minimum"})


def test_clipping_starts_within_the_run() -> None:
    fields = {"scheme.name": "clipping", "training.max_epochs": 3}
    for epoch in (3, 4):
        assert told({**fields, "scheme.start_epoch": epoch}) == (
            f"scheme.start_epoch = {epoch} starts no clipping within training.max_epochs = 3; "
            "choose at most 2, or null"
        )
    for start in (2, 0, None):
        assert validated({**fields, "scheme.start_epoch": start})


def test_an_automatic_start_needs_a_third_epoch() -> None:
    fields = {"scheme.name": "clipping", "training.max_epochs": 5}
    assert told({**fields, "training.max_steps": 134}) == (
        "scheme.start_epoch = null compares the mean gradient norms of two epochs and begins in "
        "the third, and training has 134 steps at most, an epoch having 67; choose "
        "scheme.start_epoch = 0, or more epochs"
    )
    assert validated({**fields, "training.max_steps": 135})


def test_the_step_limit_counts_for_the_start_as_well() -> None:
    fields = {"scheme.name": "clipping", "scheme.start_epoch": 2}
    assert validated({**fields, "training.max_steps": 135})
    assert "scheme.start_epoch = 2" in said({**fields, "training.max_steps": 134})


# ---------------------------------------------------------------- images


@pytest.mark.parametrize("dataset", [n for n, known in DATASETS.items() if len(known.shape) == 3])
@pytest.mark.parametrize("model", [n for n, known in MODELS.items() if not known.theorem])
def test_some_networks_need_large_images(model: str, dataset: str) -> None:
    side, needed = min(DATASETS[dataset].shape[1:]), MODELS[model].smallest_image or 1
    fields = {"model.name": model, "data.dataset": dataset}
    if side >= needed:
        assert validated(fields)
        return
    assert told(fields) == (
        f"model.name = {model!r} needs images of at least {needed}x{needed} pixels, and those of "
        f"data.dataset = {dataset!r} are {side}x{side}; choose another data.dataset, or model.name "
        "= 'preactresnet18' or 'mlp'"
    )


def test_vgg16_is_not_built_for_small_images() -> None:
    for height, width in ((8, 8), (31, 32), (32, 31)):
        with pytest.raises(UserError) as caught:
            vgg16((3, height, width), 10, filters=1, hidden=2)
        assert str(caught.value) == (
            f"model.name = 'vgg16' needs images of at least 32x32 pixels, not {height}x{width}; "
            "choose another data.dataset, or model.name = 'preactresnet18' or 'mlp'"
        )
    built = vgg16((3, 32, 32), 10, filters=1, hidden=2).eval()
    assert built(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("path", "value", "shown", "fine", "instead"),
    [
        ("model.name", "alexnet", "'alexnet'", "mlp", "'mlp'"),
        ("model.name", "vgg16", "'vgg16'", "mlp", "'mlp'"),
        ("model.name", "preactresnet18", "'preactresnet18'", "mlp", "'mlp'"),
        ("data.crop_padding", 1, "1", 0, "0"),
        ("data.flip", True, "true", False, "false"),
        ("scheme.name", "adversarial", "'adversarial'", "sgd", "'sgd'"),
    ],
)
def test_vectors_are_no_images(path: str, value: Any, shown: str, fine: Any, instead: str) -> None:
    assert told({**TEACHER, path: value}) == (
        f"{path} = {shown} needs images, and data.dataset = 'teacher' has vectors; choose another "
        f"data.dataset, or {path} = {instead}"
    )
    assert validated({path: value, **IMAGES})
    assert validated({**TEACHER, path: fine})


@pytest.mark.parametrize(("dataset", "side"), [("mnist5k", 28), ("cifar10", 32)])
def test_every_crop_has_something_of_the_image(dataset: str, side: int) -> None:
    fields = {"data.dataset": dataset}
    image, corner = torch.ones(1, 1, side, side), torch.zeros(1, dtype=torch.int64)
    for padding, anything in ((side - 1, True), (side, False)):
        crop = crop_and_flip(
            image, corner, corner, corner.bool(), padding=padding, black=torch.zeros(1)
        )
        assert bool(crop.any()) is anything
    assert validated({**fields, "data.crop_padding": side - 1})
    for padding in (side, side + 1):
        assert told({**fields, "data.crop_padding": padding}) == (
            f"data.crop_padding = {padding} leaves crops without any of the {side}x{side} image; "
            f"choose at most {side - 1}"
        )


# ---------------------------------------------------------------- targets and layers


def test_smoothing_needs_classes() -> None:
    assert told({**TEACHER, "scheme.name": "label_smoothing"}) == (
        "scheme.name = 'label_smoothing' needs classes, and data.dataset = 'teacher' has real "
        "targets; choose another scheme"
    )
    for scheme, known in SCHEMES.items():
        if known.needs in (None, "layers"):
            assert validated({**TEACHER, "scheme.name": scheme})
    assert validated({"scheme.name": "label_smoothing", "training.loss": "squared"})


@pytest.mark.parametrize("fields", [LINEAR, RELU], ids=lambda fields: fields["model.name"])
def test_dropout_needs_units_between_layers_that_are_trained(fields: dict[str, Any]) -> None:
    """On a network with one such layer it would be plain SGD under another name."""
    told_of = told({**fields, "scheme.name": "dropout"})
    name = fields["model.name"]
    assert told_of.startswith(
        f"scheme.name = 'dropout' needs units between layers, and model.name = {name!r} has one "
    )
    assert told_of.endswith("layer; choose another scheme")
    assert validated({**fields, "scheme.name": "gmp"})
    assert validated({**TEACHER, "scheme.name": "dropout"}).model.name == "mlp"


# ---------------------------------------------------------------- which dispersion


@pytest.mark.parametrize("model", ["vgg16", "preactresnet18"])
def test_batchnorm_has_no_gradients_by_sample(model: str) -> None:
    fields = {**IMAGES, "model.name": model}
    assert told({**fields, **BY_SAMPLE}) == (
        "measurement.dispersion_estimator = 'per_sample' (BackPACK's) needs gradients by sample, "
        f"and the BatchNorm of model.name = {model!r} mixes the samples of a batch in training; "
        "choose 'groups' or 'auto'"
    )
    for estimator in ("groups", "auto"):
        asked = {"measurement.dispersion_estimator": estimator}
        assert validated({**fields, **asked}).dispersion_estimator == "groups"
    assert validated({**fields, **BY_SAMPLE, "measurement.dispersion": False})


@pytest.mark.parametrize("scheme", SCHEMES)
def test_by_sample_only_multiples_of_the_plain_gradient_are_known(scheme: str) -> None:
    fields = {**BY_SAMPLE, "scheme.name": scheme}
    assert validated(fields).dispersion_estimator == "per_sample"
    if scheme in SCALING:
        assert validated({**fields, **APPLIED}).dispersion_estimator == "per_sample"
        return
    assert told({**fields, **APPLIED}) == (
        "measurement.dispersion_estimator = 'per_sample' with dispersion_of = 'applied' needs a "
        f"scheme whose gradient is a multiple of the plain one, not scheme.name = {scheme!r}; "
        "choose 'groups' or 'auto'"
    )
    for estimator in ("groups", "auto"):
        asked = {**fields, **APPLIED, "measurement.dispersion_estimator": estimator}
        assert validated(asked).dispersion_estimator == "groups"
    assert validated({**fields, **APPLIED, "measurement.dispersion": False})


@pytest.mark.parametrize(
    "grouped",
    [
        GROUPS,
        {"model.name": "preactresnet18"},
        {**APPLIED, "scheme.name": "gmp"},
    ],
)
def test_every_batch_holds_all_groups(grouped: dict[str, Any]) -> None:
    groups = "measurement.dispersion_groups"
    # 4000 = 66 * 60 + 40: the last batch is the smallest.
    assert validated({**grouped, groups: 40})
    told_of_last = told({**grouped, groups: 41})
    assert told_of_last.startswith(
        f"{groups} = 41 is more than the last batch (n = 4000) of size = 40; choose "
        f"{groups} = 40 or less, another batch size, or training.last_batch = 'drop'"
    )
    dropped = {**grouped, "training.last_batch": "drop"}
    assert validated({**dropped, groups: 60})
    for fields in (dropped, {**grouped, "training.batch_size": 50}):
        b = fields.get("training.batch_size", 60)
        assert validated({**fields, groups: b})
        told_of_all = told({**fields, groups: b + 1})
        assert told_of_all.startswith(
            f"{groups} = {b + 1} is more than training.batch_size = {b}; choose {groups} = {b} or "
            "less"
        )
        # Every batch is as small: to drop one helps nothing.
        assert "last_batch" not in told_of_all
    assert validated({groups: 4001})  # of no estimator that is used
    assert validated({**grouped, groups: 41, "measurement.dispersion": False})


# ---------------------------------------------------------------- replicas


@pytest.mark.parametrize(
    ("path", "value", "shown", "plain"),
    [
        ("training.momentum", 5e-324, "5e-324", "0.0"),
        ("training.momentum", 0.9, "0.9", "0.0"),
        ("training.weight_decay", 5e-4, "0.0005", "0.0"),
        *(("scheme.name", name, name, "sgd") for name in list(SCHEMES)[1:]),
        ("data.crop_padding", 4, "4", "0"),
        ("data.flip", True, "true", "false"),
        ("training.max_gradient_norm", 50.0, "50.0", "null"),
        ("training.precision", "bfloat16", "bfloat16", "float32"),
        ("measurement.dispersion_estimator", "groups", "groups", "per_sample"),
    ],
)
def test_replicas_advance_by_plain_sgd_alone(path: str, value: Any, shown: str, plain: str) -> None:
    """Whichever quotation marks the values have."""
    told_of = re.sub("[\"']", "", told({path: value, "replicas": 4}))
    assert told_of == (
        "replicas = 4 needs plain SGD on networks without BatchNorm, measured by sample, but "
        f"{path} = {shown}; choose {path} = {plain}, or replicas = null"
    )
    assert validated({path: value})
    fine = {"0": 0, "0.0": 0.0, "false": False, "null": None}.get(plain, plain)
    assert validated({path: fine, "replicas": 4}).replicas == 4


@pytest.mark.parametrize("model", ["vgg16", "preactresnet18"])
@pytest.mark.parametrize(
    "measured",
    [{}, {"measurement.dispersion": False}, {"measurement.dispersion": False, **BY_SAMPLE}],
)
def test_replicas_have_no_batchnorm(model: str, measured: dict[str, Any]) -> None:
    """However it is measured: the network is at fault, and the estimator no remedy."""
    fields = {**IMAGES, "model.name": model, **measured, "replicas": 2}
    told_of = said(fields)
    assert "replicas = 2" in told_of
    assert f"model.name = {model!r}" in told_of
    assert "choose measurement" not in told_of
    assert validated({**fields, "replicas": None})


def test_what_replicas_still_may() -> None:
    assert validated({**RELU, "replicas": 2, "measurement.network_theorem": "off"})
    assert validated({"replicas": 2, "training.initialization": "kaiming"})
    assert validated({"replicas": 2, **APPLIED}).dispersion_estimator == "per_sample"
