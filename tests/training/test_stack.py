"""Trials in a stack against each of them alone, and against loops over samples in float64."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from gisgd_ray.config.frozen import unflatten
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.networks.losses import LossName
from gisgd_ray.training import checkpoint, dense
from gisgd_ray.training import loop as training
from gisgd_ray.training.stack import Stack, StackedNetwork, shape
from gisgd_ray.training.state import TrainState
from tests.support import reference
from tests.support.runs import config, finish, weight_bits
from tests.training.test_dense import CASES, REAL, built, by_sample, samples

LONG: dict[str, Any] = {
    "training.max_epochs": 1000,
    "training.max_steps": 220,
    "training.stop_loss": None,
    "training.stop_at_full_accuracy": False,
    "training.evaluation.every": 7,
    "measurement.sensitivity": False,
    "measurement.flatness": False,
    "measurement.smoothness": False,
    "measurement.mean_gradient_gap": False,
    "measurement.hessian_trace": "off",
}
CLIPPED = {"scheme.name": "clipping", "scheme.start_epoch": 0, "scheme.factor": 0.5}
MEMBERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rate": {"training.learning_rate": 0.05},
    "seed": {"seed": 3},
    "noise": {"seed": 4, "data.label_noise": 0.3},
    "clipped": CLIPPED,
    "applied": CLIPPED | {"measurement.dispersion_of": "applied", "seed": 7},
    "flooded": {"scheme.name": "flooding", "scheme.level": 1.5},
    # Epochs of other lengths: their last batches, of other sizes, come at other times.
    "fewer samples": {"data.train_fraction": 0.03},
    "none left over": {"training.last_batch": "drop"},
    "milestones": {"training.lr_milestones": [2, 5]},
    "stops early": {"training.max_steps": 90, "seed": 9},
}


def members(changes: dict[str, Any]) -> list[TrialConfig]:
    return [config(LONG | changes | own) for own in MEMBERS.values()]


def together(configs: Sequence[TrialConfig]) -> list[TrainState]:
    """Their runs, from start to end in one stack that those which are over leave."""
    states = [training.start(each) for each in configs]
    go_on(states)
    return states


def go_on(states: Sequence[TrainState]) -> None:
    left = list(states)
    while left:
        stack = Stack(left)
        while all(state.stopped is None for state in left):
            for state in stack.train():
                training.measure(state)
        left = [state for state in left if state.stopped is None]


def assert_alike(found: TrainState, alone: TrainState) -> None:
    """Within 1e-5 in the steps and the weights."""
    assert (found.step, found.stopped) == (alone.step, alone.stopped)
    for name, column in alone.series.columns().items():
        # Relative to what the column reaches: a dispersion is a difference.
        scale = np.nanmax(np.abs(column)) if np.isfinite(column).any() else 0.0
        ours = found.series.columns()[name]
        np.testing.assert_allclose(ours, column, rtol=1e-5, atol=1e-5 * scale, err_msg=name)
    for ours, theirs in zip(found.history, alone.history, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-4, nan_ok=True)
    weights = reference.weights(alone.model)
    difference = float((reference.weights(found.model) - weights).norm())
    assert difference <= 1e-5 * float(weights.norm())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training.loss": "squared", "training.learning_rate": 0.02},
        {"training.batch_size": 9},
        {"training.batch_size": 1, "measurement.dispersion": False},
        {"model.width": 1},
        {"measurement.dispersion": False},
    ],
    ids=str,
)
def test_two_hundred_steps_are_those_of_each_alone(changes: dict[str, Any]) -> None:
    configs = members(changes)
    assert len({shape(each) for each in configs}) == 1
    for found in together(configs):
        assert_alike(found, finish(training.start(found.config)).state)
        assert len(found.series) == found.step == found.config.training.max_steps


def test_the_schemes_in_it_have_clipped_and_ascended() -> None:
    by_name = dict(zip(MEMBERS, together(members({})), strict=True))
    for name, low, high in (("clipped", 0, 1), ("flooded", -1, 1), ("plain", 1, 1)):
        factors = by_name[name].series.gradient_factor
        assert low <= factors.min() <= factors.max() <= high
        assert (factors.min() < 1) == (name != "plain")


@pytest.mark.parametrize("name", ["linear", "two_layer_relu"])
def test_networks_of_one_output_on_samples_of_their_own(name: str) -> None:
    teacher: dict[str, Any] = {"data.dataset": "teacher", "data.train_fraction": 0.05}
    teacher |= {"model.name": name, "training.loss": "squared"}
    if name == "two_layer_relu":
        teacher["model.width"] = 16
    plain = unflatten(LONG | teacher | {"training.learning_rate": 0.3})
    own: list[dict[str, Any]] = [{}, {"seed": 2}, {"seed": 5}]
    for found in together([TrialConfig.model_validate(plain | each) for each in own]):
        assert_alike(found, finish(training.start(found.config)).state)
        assert name == "linear" or np.isfinite(found.series.active_loss).all()


def test_neither_their_order_nor_who_else_is_there_matters() -> None:
    names = ["rate", "noise", "clipped", "stops early"]
    configs = [config(LONG | MEMBERS[name]) for name in names]
    first = together(configs)
    for found, again in zip(first, together(configs[::-1])[::-1], strict=True):
        assert_alike(again, found)
    assert_alike(together(configs[1:2])[0], first[1])
    assert_alike(together([configs[1], config(LONG | {"seed": 21})])[0], first[1])


@pytest.fixture(params=["products", "Gram matrices"])
def either_way(request, monkeypatch):
    """1^T K 1 of all layers by the one of its two forms."""
    monkeypatch.setattr(dense, "GRAM_WORK", 0 if request.param == "products" else math.inf)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(("name", "loss"), CASES)
def test_sums_of_the_gram_matrix_of_each(name: str, loss: LossName) -> None:
    """And their update; of the middle two of four networks, side by side."""
    models = [built(name) for _ in range(4)]
    with torch.no_grad():
        for r, model in enumerate(models):
            for parameter in model.parameters():
                parameter.mul_(1 + r / 10)
    before = [copy.deepcopy(model) for model in models]
    b = 13
    x, y = samples(2 * b, real=name in REAL)
    inputs, targets = x.view(2, b, *x.shape[1:]), y.view(2, b)
    expected = [by_sample(models[1 + g], inputs[g], targets[g], loss) for g in range(2)]
    network = StackedNetwork(models, loss)
    with torch.inference_mode():
        network.passes(slice(1, 3), inputs, targets)
        sums = network.traces(), network.totals()
        network.descend([0.3, 0.15])
    for g, (losses, gradients) in enumerate(expected):
        gram = gradients @ gradients.T
        np.testing.assert_allclose(network.losses[g], losses, rtol=1e-5, atol=1e-6)
        in_float64 = network.in_float64(g)
        tolerance = {"rtol": 2e-5, "atol": 2e-5 * np.trace(gram) + 1e-12}
        np.testing.assert_allclose(in_float64, (np.trace(gram), gram.sum()), **tolerance)
        np.testing.assert_allclose([s[g] for s in sums], (np.trace(gram), gram.sum()), **tolerance)
        pairs = list(zip(before[1 + g].parameters(), models[1 + g].parameters(), strict=True))
        moved = [new.double() - old.double() for old, new in pairs if old.requires_grad]
        found = torch.cat([each.detach().flatten() for each in moved])
        mean = gradients.mean(axis=0)
        np.testing.assert_allclose(found, -(0.3, 0.15)[g] * mean, rtol=1e-4, atol=1e-6)
        assert all(torch.equal(old, new) for old, new in pairs if not old.requires_grad)
    for r in (0, 3):
        assert torch.equal(reference.weights(models[r]), reference.weights(before[r]))


def test_one_that_diverges_harms_no_other() -> None:
    wild = config(LONG | {"training.learning_rate": 1e4})
    others = [config(LONG), config(LONG | {"seed": 5})]
    found = together([others[0], wild, others[1]])
    assert [state.diverged for state in found] == [False, True, False]
    alone = [finish(training.start(each)).state for each in (others[0], wild, others[1])]
    assert found[1].stopped == alone[1].stopped
    for state, other in zip(found[::2], alone[::2], strict=True):
        assert_alike(state, other)


def test_each_goes_on_from_a_checkpoint_of_its_own() -> None:
    """Of different steps, some alone for a while; each checkpoint as large as if it were alone."""
    configs = [config(LONG | MEMBERS[name]) for name in ("clipped", "noise", "seed")]
    expected = together(configs)
    states = [training.start(each) for each in configs]
    for state, steps in zip(states, (0, 10, 37), strict=True):
        while not training.train(state, pause=lambda s=state, t=steps: s.step >= t):
            if state.step >= steps:
                break
            training.measure(state)
    stack = Stack(states)
    count = iter(range(1000))
    stack.train(pause=lambda: next(count) >= 11)
    contents = [checkpoint.dump(state) for state in states]
    for state, content in zip(states, contents, strict=True):
        weights = 4 * reference.weights(state.model).numel()
        assert weights < len(content) < 2 * weights
    resumed = [
        checkpoint.load(each, content) for each, content in zip(configs, contents, strict=True)
    ]
    for state, saved in zip(resumed, states, strict=True):
        assert weight_bits(state) == weight_bits(saved)
    go_on(resumed)
    for found, whole in zip(resumed, expected, strict=True):
        assert_alike(found, whole)


class TestShape:
    def test_what_trials_may_differ_in(self) -> None:
        free: list[dict[str, Any]] = [
            *MEMBERS.values(),
            {"training.stop_loss": 0.5},
            {"training.last_batch": "drop"},
            {"measurement.noise_stds": (0.1,)},
            {"measurement.sensitivity": False},
        ]
        assert len({shape(config(each)) for each in free}) == 1

    @pytest.mark.parametrize(
        "changes",
        [
            {"training.batch_size": 30},
            {"model.width": 17},
            {"training.loss": "squared"},
            {"measurement.dispersion": False},
        ],
        ids=str,
    )
    def test_what_they_may_not(self, changes: dict[str, Any]) -> None:
        assert shape(config(changes)) not in (None, shape(config()))

    @pytest.mark.parametrize(
        "changes",
        [
            {"replicas": 2},
            {"data.flip": True},
            {"scheme.name": "gmp"},
            {"training.momentum": 0.9},
            {"measurement.dispersion_estimator": "groups"},
        ],
        ids=str,
    )
    def test_what_none_may_be(self, changes: dict[str, Any]) -> None:
        assert shape(config(changes)) is None

    def test_networks_that_are_not_dense(self) -> None:
        assert shape(config({"model": {"name": "alexnet"}, "data.dataset": "cifar10"})) is None

    def test_others_are_refused(self) -> None:
        states = [training.start(config(each)) for each in ({}, {"training.batch_size": 30})]
        with pytest.raises(ValueError, match="share no stack"):
            Stack(states)
        with pytest.raises(ValueError, match="share no stack"):
            Stack([training.start(config({"scheme.name": "gmp"}))])
