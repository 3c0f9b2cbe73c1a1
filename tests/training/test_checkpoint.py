"""A run saved anywhere and restored continues as if nothing had happened, to the bit."""

import math
from typing import Any

import pytest
import torch

from gisgd_ray.errors import UserError
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.training import checkpoint
from gisgd_ray.training import loop as training
from tests.support.runs import (
    Finished,
    config,
    finish,
    optimizer_bits,
    run,
    series_bits,
    untimed,
    weight_bits,
)

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

CASES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum and milestones, between epochs": {
        "training.momentum": 0.9,
        "training.nesterov": True,
        "training.weight_decay": 1e-3,
        "training.lr_milestones": [1, 2],
        "training.evaluation": {"every": 3, "unit": "step"},
        "data.label_noise": 0.3,
        "seed": 2,
    },
    "probes on a schedule, flooding, a step limit": {
        "scheme.name": "flooding",
        "scheme.level": 2.2,
        "training.max_steps": 9,
        "training.loss": "squared",
        "measurement.hessian_trace": "pyhessian",
        "measurement.hessian_probes": 2,
        "measurement.hessian_schedule": {"every": 5, "unit": "step"},
        "training.last_batch": "drop",
    },
    "every step, dispersion off": {
        "training.evaluation": {"every": 1, "unit": "step"},
        "training.max_epochs": 2,
        "measurement.dispersion": False,
    },
    "sensitivity between the points of evaluation": {
        "measurement.sensitivity": True,
        "measurement.sensitivity_draws": 2,
        "measurement.sensitivity_schedule": {"every": 3, "unit": "step"},
        "measurement.noise_stds": [0.1, 1e-6],
        "data.label_noise": 0.2,
    },
    "replicas": {
        "replicas": 3,
        "seed": 2,
        "data.label_noise": 0.3,
        "training.evaluation": {"every": 3, "unit": "step"},
        "training.lr_milestones": [1],
        "measurement.hessian_schedule": {"every": 5, "unit": "step"},
        # Posteriors on all replicas, on several of them and on one.
        "measurement.noise_stds": [10.0, 1.0, 1e-6],
    },
    "replicas, sensitivity, log-spaced, squared loss": {
        "replicas": 2,
        "training.loss": "squared",
        "training.last_batch": "drop",
        "measurement.sensitivity": True,
        "measurement.sensitivity_draws": 2,
        "measurement.sensitivity_schedule": {"every": 2, "unit": "log"},
        "measurement.noise_stds": [0.1],
    },
    "theorem 4": {
        "data.dataset": "teacher",
        "data.train_fraction": 0.01,
        "model.name": "two_layer_relu",
        "training.loss": "squared",
    },
    "diverging": {"training.learning_rate": 1.0, "training.divergence_loss": 22.5},
}


def saved_and_loaded(state: training.TrainState) -> training.TrainState:
    content = checkpoint.dump(state)
    torch.manual_seed(12345)
    restored = checkpoint.load(state.config, content)
    assert restored is not state
    return restored


def assert_same(found: Finished, expected: Finished) -> None:
    assert weight_bits(found.state) == weight_bits(expected.state)
    assert optimizer_bits(found.state) == optimizer_bits(expected.state)
    assert series_bits(found.series) == series_bits(expected.series)
    assert [untimed(p) for p in found.state.history] == [untimed(p) for p in expected.state.history]
    assert untimed(found.row) == untimed(expected.row)


@pytest.mark.parametrize("name", CASES)
def test_restored_at_every_possible_point(name):
    expected = run(CASES[name])
    total = len(expected.points)
    assert total >= 3
    original = training.start(config(CASES[name]))
    for done in range(total + 1):
        # `original` has measured so many points, none at first and all at last.
        restored = saved_and_loaded(original)
        rest = finish(restored)
        assert_same(rest, expected)
        points = [untimed(point) for point in rest.points]
        assert points == [untimed(point) for point in expected.points[done:]]
        if done < total:
            training.advance(original)
    assert_same(Finished(original, [], original.series), expected)


@pytest.mark.parametrize("name", CASES)
def test_restored_after_every_point_in_turn(name):
    expected = run(CASES[name])
    state, points = training.start(config(CASES[name])), []
    while state.stopped is None:
        points.append(untimed(training.advance(state)[0]))
        state = saved_and_loaded(state)
    assert points == [untimed(point) for point in expected.points]
    assert_same(Finished(state, [], state.series), expected)


def test_seconds_go_on_from_where_they_were():
    state = training.start(config())
    training.advance(state)
    training.advance(state)
    state.seconds["time/training_s"] += 1000
    restored = saved_and_loaded(state)
    assert restored.seconds == state.seconds
    assert 1000 < finish(restored).row["time/training_s"] < 1100


def test_a_checkpoint_of_another_configuration_is_refused():
    state = training.start(config())
    content = checkpoint.dump(state)
    for changes in (
        {"seed": 1},
        {"training.learning_rate": 0.2},
        {"measurement.noise_stds": [1e-3]},
        {"scheme.name": "flooding"},
    ):
        other = config(changes)
        said = f"belongs to trial {state.config.trial_id}, not to {other.trial_id}"
        with pytest.raises(UserError, match=said):
            checkpoint.load(other, content)
    checkpoint.load(config(), content)


def test_saving_leaves_the_run_alone():
    state = training.start(config({"training.momentum": 0.5}))
    while state.stopped is None:
        training.advance(state)
        before = (weight_bits(state), optimizer_bits(state), untimed(training.summary(state)))
        checkpoint.dump(state)
        assert (weight_bits(state), optimizer_bits(state)) == before[:2]
        assert untimed(training.summary(state)) == before[2]
    assert_same(Finished(state, [], state.series), run({"training.momentum": 0.5}))


def finish_in_pieces(state: training.TrainState, steps_at_once: int) -> Finished:
    """Train to the end, paused, saved and restored after every so many steps."""
    points, steps, taken = [], [], 0

    def pause() -> bool:
        nonlocal taken
        taken += 1
        return taken % steps_at_once == 0

    while state.stopped is None:
        due = training.train(state, pause=pause)
        state = saved_and_loaded(state)
        if due:
            assert training.measuring_is_due(state)
            point, new_steps = training.measure(state)
            points.append(point)
            steps.append(new_steps)
    return Finished(state, points, StepSeries.concatenate(steps))


@pytest.mark.parametrize("steps_at_once", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_paused_saved_and_restored_between_two_points(name, steps_at_once):
    expected = run(CASES[name])
    found = finish_in_pieces(training.start(config(CASES[name])), steps_at_once)
    assert_same(found, expected)
    assert [untimed(p) for p in found.points] == [untimed(p) for p in expected.points]
    assert series_bits(found.steps) == series_bits(expected.steps)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        lambda _: b"",
        lambda _: b"something else",
        lambda content: content + b"\0",
    ],
    ids=["cut by a byte", "half", "a bit turned", "empty", "another file", "longer"],
)
def test_a_damaged_checkpoint_is_told_from_a_whole_one(damage):
    content = checkpoint.dump(training.start(config()))
    checkpoint.load(config(), content)
    with pytest.raises(UserError, match="is damaged, cut off or of another version"):
        checkpoint.load(config(), damage(content))


def test_the_diverging_case_diverges_inside_its_second_epoch():
    row = run(CASES["diverging"]).row
    assert row["status"] == "diverged"
    assert row["steps"] == 5
    assert math.isnan(row["bound/theorem2_closed_form"])
