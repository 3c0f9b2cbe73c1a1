"""Runs of every scheme: restored to the bit, undisturbed by measuring, and SGD without effect."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

from gisgd_ray.config.frozen import unflatten
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.dataset import Dataset
from gisgd_ray.schemes.mixup import MixUp
from gisgd_ray.training import checkpoint
from gisgd_ray.training import loop as training
from tests.support.runs import Finished, finish, optimizer_bits, series_bits, untimed, weight_bits

SHORT: dict[str, Any] = {
    "data.train_fraction": 0.01,
    "data.label_noise": 0.4,
    "training.learning_rate": 0.6,
    "training.batch_size": 16,
    "training.momentum": 0.9,
    "training.nesterov": True,
    "training.weight_decay": 1e-3,
    "training.max_epochs": 3,
    "training.stop_at_full_accuracy": False,
    "training.evaluation": {"every": 2, "unit": "step"},
    "measurement.hessian_trace": "off",
    "measurement.flatness": False,
    "measurement.smoothness": False,
    "model": {"name": "mlp", "width": 12},
    "seed": 3,
}
"""n = 40: epochs of 16, 16 and 8 samples, nine steps; measured after 2, 4, 6, 8 and 9.

The mean gradient norm of the second epoch is above that of the first.
"""

RESNET: dict[str, Any] = {
    "model": {"name": "preactresnet18", "filters": 2},
    "training.learning_rate": 0.1,
}


def clipping(variant: str, **fields: Any) -> dict[str, Any]:
    return {"scheme": {"name": "clipping", "variant": variant, "factor": 0.5, **fields}}


def gmp(**fields: Any) -> dict[str, Any]:
    return {"scheme": {"name": "gmp", "draws": 2, "noise_std": 0.05, **fields}}


SCHEMES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "flooding": {"scheme": {"name": "flooding", "level": 2.2}},
    "clipping": clipping("running_minimum", start_epoch=1),
    "clipping, given threshold": clipping("running_minimum", start_epoch=0, initial_threshold=1.5),
    "clipping, automatic": clipping("running_minimum"),
    "clipping, lag": clipping("lag", lag=3, start_epoch=1),
    "clipping, lag, automatic": clipping("lag", lag=2),
    "gmp": gmp(),
    "gmp, scheduled": gmp(final_noise_std=0.2, noise_schedule="cosine"),
    "gmp, absolute": gmp(variant="absolute"),
    "gmp, local": gmp(estimator="local"),
    "amp": {"scheme": {"name": "amp", "radius": 0.1}},
    "sam": {"scheme": {"name": "sam", "radius": 0.1}},
    "dropout": {"scheme": {"name": "dropout", "rate": 0.3}},
    "label_smoothing": {"scheme": {"name": "label_smoothing"}},
    "mixup": {"scheme": {"name": "mixup"}},
    "adversarial": {"scheme": {"name": "adversarial", "pixels": 8.0}},
}


def config(*changes: dict[str, Any]) -> TrialConfig:
    fields = dict(SHORT)
    for some in changes:
        fields |= some
    return TrialConfig.model_validate(unflatten(fields))


@pytest.fixture(autouse=True)
def _small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fourth row and column of the digits, for quick convolutions; 50 to test on."""
    load = training.load_dataset

    def small(*args: Any, **options: Any) -> Dataset:
        full = load(*args, **options)
        return replace(
            full,
            train_x=full.train_x[..., ::4, ::4],
            test_x=full.test_x[:50, :, ::4, ::4],
            test_y=full.test_y[:50],
        )

    monkeypatch.setattr(training, "load_dataset", small)


def stepped(*changes: dict[str, Any], steps: int) -> training.TrainState:
    """A run after some steps, its series known."""
    state = training.start(config(*changes))
    for step in range(steps):
        state.stepper.step(step, learning_rate=state.config.training.learning_rate)
    state.step = steps
    state.add_steps(state.stepper.drain())
    return state


@lru_cache
def uninterrupted(trial: TrialConfig) -> Finished:
    return finish(training.start(trial))


AUGMENTED = {"data.crop_padding": 2, "data.flip": True}
CASES: dict[str, Sequence[dict[str, Any]]] = {
    **{name: [scheme] for name, scheme in SCHEMES.items()},
    "mixup, augmented": [SCHEMES["mixup"], AUGMENTED],
    "clipping, automatic, unmeasured": [
        SCHEMES["clipping, automatic"],
        {"measurement.dispersion": False},
    ],
    "gmp, of the applied gradient": [SCHEMES["gmp"], {"measurement.dispersion_of": "applied"}],
    "preactresnet18, gmp": [SCHEMES["gmp"], RESNET],
    "preactresnet18, sam, augmented": [SCHEMES["sam"], RESNET, AUGMENTED],
    "preactresnet18, clipping": [
        clipping("lag", lag=1, start_epoch=0),
        RESNET,
        {"measurement.dispersion_groups": 4, "training.learning_rate": 0.03},
    ],
}


def interrupted(trial: TrialConfig) -> Finished:
    """Saved and restored after every measuring point."""
    state, points = training.start(trial), []
    while state.stopped is None:
        points.append(training.advance(state)[0])
        content = checkpoint.dump(state)
        torch.manual_seed(12345)
        state = checkpoint.load(trial, content)
    return Finished(state, points, state.series)


def assert_same(found: Finished, expected: Finished) -> None:
    assert weight_bits(found.state) == weight_bits(expected.state)
    assert optimizer_bits(found.state) == optimizer_bits(expected.state)
    assert series_bits(found.series) == series_bits(expected.series)
    assert [untimed(p) for p in found.points] == [untimed(p) for p in expected.points]
    assert untimed(found.row) == untimed(expected.row)


@pytest.mark.parametrize("name", CASES)
def test_restored_after_every_point_in_turn(name):
    trial = config(*CASES[name])
    expected = uninterrupted(trial)
    assert [point["step"] for point in expected.points] == [0, 2, 4, 6, 8, 9]
    assert_same(interrupted(trial), expected)


def test_the_clippings_restored_clip_before_and_after_a_point():
    """After the point at step 6 or the one at 8, by what was seen before it."""
    for name in (name for name in CASES if "clipping" in name):
        clipped = uninterrupted(config(*CASES[name])).series.gradient_factor < 1
        assert clipped[6:8].any(), name
        assert clipped[8], name
        assert not clipped[0], name
        if "automatic" in name:
            assert not clipped[:6].any(), name


STATEFUL = ("clipping", "clipping, automatic", "clipping, lag", "gmp", "gmp, scheduled")
STATEFUL += ("gmp, absolute", "gmp, local", "dropout", "mixup")


@pytest.mark.parametrize("name", STATEFUL)
def test_what_a_scheme_remembers_matters(name, monkeypatch):
    """Were it lost, the tests above would see it."""
    trial = config(SCHEMES[name])
    kind = type(training.start(trial).stepper.scheme)
    monkeypatch.setattr(kind, "load_state_dict", lambda *_: None)
    found = interrupted(trial)
    assert weight_bits(found.state) != weight_bits(uninterrupted(trial).state)


NETWORKS = {"mlp": {}, "preactresnet18": RESNET}
LATER = ("clipping", "clipping, automatic", "clipping, lag", "clipping, lag, automatic")
"""They do nothing in the first steps: the MLP, which is quicker, is taken further."""
ON_EACH_NETWORK = pytest.mark.parametrize(
    ("name", "network"),
    [
        *((name, "mlp") for name in SCHEMES),
        *((name, "preactresnet18") for name in SCHEMES if name not in (*LATER, "gmp, scheduled")),
    ],
)
UNMEASURED = {"measurement.dispersion": False}
OTHERWISE: dict[str, dict[str, Any]] = {
    "not at all": UNMEASURED,
    "of the applied gradient": {"measurement.dispersion_of": "applied"},
    "between groups": {"measurement.dispersion_estimator": "groups"},
}


@ON_EACH_NETWORK
def test_measuring_changes_no_weight(name, network):
    """Dispersion on, off, of the applied gradient, or by groups: the same W_T and buffers."""
    changes, steps = (SCHEMES[name], NETWORKS[network]), 9 if network == "mlp" else 2
    expected = stepped(*changes, steps=steps)
    assert (expected.series.gradient_dispersion > 0).all()
    for how, measurement in OTHERWISE.items():
        if how == "between groups" and network != "mlp":
            continue  # with BatchNorm it always is
        found = stepped(*changes, measurement, steps=steps)
        assert weight_bits(found) == weight_bits(expected), how
        assert optimizer_bits(found) == optimizer_bits(expected), how


def momenta(state: training.TrainState) -> list[list[float]]:
    """Of the optimizer, as numbers: the sign of a zero does not count."""
    return [np.frombuffer(entry, "f4").tolist() for entry in optimizer_bits(state)]


WITHOUT_EFFECT: tuple[dict[str, Any], ...] = (
    {"name": "amp", "radius": 0.0},
    {"name": "sam", "radius": 0.0},
    {"name": "dropout", "rate": 0.0},
    {"name": "label_smoothing", "smoothing": 0.0},
    {"name": "flooding", "level": 0.0},
    {"name": "mixup"},
    {"name": "adversarial", "pixels": 0.0},
)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("scheme", WITHOUT_EFFECT, ids=lambda scheme: scheme["name"])
def test_without_effect_it_is_sgd_bit_for_bit(scheme, network, monkeypatch):
    """Weights, BatchNorm's buffers, momentum, and everything measured, over four steps."""
    monkeypatch.setattr(MixUp, "draw_share", lambda *_: 1.0)
    sgd = stepped(NETWORKS[network], steps=4)
    found = stepped({"scheme": scheme}, NETWORKS[network], steps=4)
    assert weight_bits(found) == weight_bits(sgd)
    assert momenta(found) == momenta(sgd)
    columns, expected = series_bits(found.series), series_bits(sgd.series)
    for series in (columns, expected):
        series.pop("gradient_factor")  # 1, or not known
    assert columns == expected


OWN_PASS_ALONE = ("dropout", "mixup")
"""Unmeasured, these make no pass over the clean batch: the loss recorded is their own."""


@ON_EACH_NETWORK
def test_the_first_step_measured_is_that_of_sgd(name, network):
    """The dispersion and the losses are of the plain gradient at W_0, whatever is applied."""
    changes = (SCHEMES[name], NETWORKS[network])
    sgd = stepped(NETWORKS[network], steps=1).series
    found = stepped(*changes, steps=1).series
    for column in ("gradient_dispersion", "squared_gradient_norm", "loss", "loss_min", "loss_max"):
        assert getattr(found, column)[0] == getattr(sgd, column)[0] > 0, column
    unmeasured = stepped(*changes, UNMEASURED, steps=1).series
    clean = unmeasured.loss[0] == sgd.loss[0]
    assert clean == (name not in OWN_PASS_ALONE)
