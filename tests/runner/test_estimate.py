"""How long a sweep takes, by hand where everything is known and within bounds where it is not."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gisgd_ray.config.checks import planned_epoch_steps, planned_steps
from gisgd_ray.config.frozen import Schedule
from gisgd_ray.config.model import AlexNetConfig
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import DataError
from gisgd_ray.runner import estimate as estimating
from gisgd_ray.runner.estimate import (
    ACTOR_S,
    MEMORISED,
    TRIED,
    Cost,
    Estimate,
    alikeness,
    duration,
    estimate,
    measured_cost,
    num_points,
    spread,
    steps_range,
)
from tests.support.runs import config, run

ENDLESS = {"training.max_epochs": 10**6}
PLANNED = 4e6


def exponential(rate: float, steps: int) -> NDArray[np.float64]:
    return 2.0 * np.exp(-rate * np.arange(1.0, steps + 1))


def power(exponent: float, steps: int) -> NDArray[np.float64]:
    losses: NDArray[np.float64] = 2.0 * np.arange(1.0, steps + 1) ** -exponent
    return losses


# ---------------------------------------------------------------- how many steps


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 3e-3])
@pytest.mark.parametrize("steps", [100, 1001])
def test_an_exponential_decay_ends_where_the_hopeful_guess_says(rate: float, steps: int) -> None:
    target = 2.0 * math.exp(-rate * 5 * steps)
    given = config({**ENDLESS, "training.stop_loss": target})
    low, high = steps_range(given, exponential(rate, steps), over=False)
    assert low == pytest.approx(5 * steps, rel=0.02)
    assert high >= low


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
@pytest.mark.parametrize(("beyond", "within"), [(2, 0.02), (10, 0.06)])
def test_a_power_law_ends_where_the_gloomy_guess_says(
    exponent: float, beyond: int, within: float
) -> None:
    """Within 2 % twice as far as was seen; further on, what the windows' means are off grows."""
    target = 2.0 * (beyond * 1000) ** -exponent
    given = config({**ENDLESS, "training.stop_loss": target})
    low, high = steps_range(given, power(exponent, 1000), over=False)
    assert high == pytest.approx(beyond * 1000, rel=within)
    assert low < high


@pytest.mark.parametrize("losses", [np.full(100, 2.0), np.linspace(1, 2, 100), np.full(100, 1e999)])
def test_a_loss_that_does_not_fall_may_take_all_the_steps(losses: Any) -> None:
    assert steps_range(config(ENDLESS), losses, over=False) == (100, PLANNED)


SLOWEST = np.repeat([np.nextafter(2.0, 3), 2.0], 4)


@pytest.mark.parametrize("losses", [2.0 - 1e-9 * np.arange(100.0), SLOWEST])
def test_a_loss_that_falls_too_slowly_takes_all_the_steps(losses: Any) -> None:
    given = config({**ENDLESS, "training.stop_loss": 1e-4})
    assert steps_range(given, losses, over=False) == (PLANNED, PLANNED)


@pytest.mark.parametrize("target", [1e-6, 1e-3, 0.1, 0.5])
@pytest.mark.parametrize("rate", [1e-9, 1e-6, 1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("law", [exponential, power])
def test_the_hopeful_guess_is_never_above_the_gloomy_one(
    law: Callable[[float, int], Any], rate: float, target: float
) -> None:
    for steps, most in ((5, 3), (8, 20), (100, 30), (100, 10**6)):
        given = config({"training.max_epochs": most, "training.stop_loss": target})
        taken = min(steps, 4 * most)
        low, high = steps_range(given, law(rate, taken), over=False)
        assert taken <= low <= high <= planned_steps(given)


def test_a_loss_that_is_there_already_ends_within_as_many_steps_again() -> None:
    given = config({**ENDLESS, "training.stop_loss": 1.0})
    assert steps_range(given, exponential(0.01, 100), over=False) == (100, 200)
    limited = config({"training.max_epochs": 30, "training.stop_loss": 1.0})
    assert steps_range(limited, exponential(0.01, 100), over=False) == (100, 120)


def test_a_run_that_was_over_is_exact() -> None:
    for changes in ({}, ENDLESS, {"training.stop_loss": None}):
        assert steps_range(config(changes), exponential(0.01, 7), over=True) == (7, 7)


def test_without_a_stopping_rule_every_planned_step_is_taken() -> None:
    losses = exponential(0.01, 100)
    for changes, steps in (({}, 12), ({"training.max_steps": 7}, 7)):
        given = config({"training.stop_loss": None, **changes})
        assert steps_range(given, losses[:5], over=False) == (steps, steps)
    refused = {"data.label_noise": 0.5, "training.stop_at_full_accuracy": False}
    given = config({**ENDLESS, "training.stop_loss": None, **refused})
    assert steps_range(given, losses, over=False) == (PLANNED, PLANNED)


@pytest.mark.parametrize(
    "changes",
    [{"training.stop_at_full_accuracy": True}, {"data.label_noise": 0.5}],
)
@pytest.mark.parametrize("stop_loss", [None, 1e-4])
def test_full_accuracy_ends_a_run_at_a_loss_at_which_labels_are_memorised(
    changes: dict[str, Any], stop_loss: float | None
) -> None:
    """A lower loss to stop at is then not reached."""
    given = config({**ENDLESS, **changes, "training.stop_loss": stop_loss})
    low, _ = steps_range(given, exponential(0.001, 1000), over=False)
    assert low == pytest.approx(math.log(2 / MEMORISED) / 0.001, rel=0.02)


def test_the_higher_of_two_losses_ends_the_run() -> None:
    changes = {"training.stop_at_full_accuracy": True, "training.stop_loss": 0.5}
    low, _ = steps_range(config(ENDLESS | changes), exponential(0.001, 1000), over=False)
    assert low == pytest.approx(math.log(2 / 0.5) / 0.001, rel=0.02)


def test_few_steps_tell_nothing() -> None:
    losses = exponential(0.01, 7)
    assert steps_range(config(), losses[:2], over=False) == (4, 12)
    assert steps_range(config({"training.max_steps": 3}), losses[:2], over=False) == (3, 3)


# ---------------------------------------------------------------- how many points


def counted(given: TrialConfig, steps: int, *more: Schedule) -> int:
    schedules, epoch = (given.training.evaluation, *more), planned_epoch_steps(given)
    return sum(any(s.is_due(step, epoch) for s in schedules) for step in range(steps + 1))


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("steps", [0, 12, 600, 601])
def test_points_on_a_regular_schedule(every: int, unit: str, steps: int) -> None:
    changes = {"training.evaluation.every": every, "training.evaluation.unit": unit}
    given = config(changes)
    assert math.floor(num_points(given, steps)) == counted(given, steps)


@pytest.mark.parametrize("every", [1, 5, 10])
@pytest.mark.parametrize("steps", [0, 1, 100, 5000])
def test_points_that_are_log_spaced(every: int, steps: int) -> None:
    given = config({"training.evaluation.every": every, "training.evaluation.unit": "log"})
    assert num_points(given, steps) == pytest.approx(counted(given, steps), abs=3)


@pytest.mark.parametrize("sensitivity", [False, True])
@pytest.mark.parametrize("trace", [(1, "step"), (6, "step"), (5, "epoch"), (4, "step"), None])
def test_the_points_of_measures_count(trace: tuple[int, str] | None, sensitivity: bool) -> None:
    """Where schedules meet there is one point."""
    path, changes = "measurement.hessian_schedule", {"measurement.sensitivity": sensitivity}
    changes |= {"measurement.sensitivity_schedule.every": 9}
    changes |= {"measurement.sensitivity_schedule.unit": "step"}
    if trace is not None:
        changes |= {f"{path}.every": trace[0], f"{path}.unit": trace[1]}
    given = config(changes)
    m = given.measurement
    due = [m.hessian_schedule] if m.hessian_schedule is not None else []
    due += [m.sensitivity_schedule] if sensitivity else []
    # Of a whole number of all periods: four steps are an epoch.
    assert num_points(given, 1800) == pytest.approx(counted(given, 1800, *due), rel=1e-12)


# ---------------------------------------------------------------- the sum


def calibrated(costs: dict[int, Cost]) -> Callable[[TrialConfig], Cost]:
    """Costs by batch size."""
    return lambda given: costs[given.training.batch_size]


def by_batch(*sizes: int, **changes: Any) -> list[TrialConfig]:
    return [config({"training.batch_size": size, **changes}) for size in sizes]


def test_the_cost_of_one_trial_by_hand() -> None:
    cost = Cost(start_s=3.0, step_s=0.5, point_s=2.0, steps=(8.0, 80.0))
    # Four steps an epoch: 1 + 2 and 1 + 20 points.
    assert cost.seconds(config()) == (3 + 4 + 6, 3 + 40 + 42)


def test_the_cost_of_measures_by_hand() -> None:
    """Each on its schedule, whatever the others do, and those without one at the end."""
    changes = {"measurement.sensitivity": True, "measurement.sensitivity_schedule.every": 3}
    changes |= {"measurement.sensitivity_schedule.unit": "step", "measurement.smoothness": False}
    measures = {"Sensitivity": 10.0, "Trace": 100.0, "Flatness": 1000.0, "Smoothness": 10000.0}
    cost = Cost(start_s=0.0, step_s=0.0, point_s=0.0, steps=(12.0, 120.0), measures_s=measures)
    assert cost.seconds(config(changes)) == (1100 + 50, 1100 + 410)


@pytest.mark.parametrize(
    ("together", "low", "high"),
    [(1, 13 + 6, 85 + 60), (2, 13, 85), (4, 13, 85)],
)
def test_the_wall_time_by_hand(together: int, low: float, high: float) -> None:
    """The longest trial lasts as long as it lasts, however many run beside it."""
    costs = {
        50: Cost(start_s=3.0, step_s=0.5, point_s=2.0, steps=(8.0, 80.0)),
        100: Cost(start_s=0.0, step_s=1.0, point_s=0.0, steps=(6.0, 60.0)),
    }
    found = estimate(by_batch(50, 100), together=together, calibrate=calibrated(costs))
    assert (found.low_s, found.high_s) == (ACTOR_S + low, ACTOR_S + high)
    # (3 + 21) / 2 points, and at two steps an epoch (4 + 31) / 2.
    assert found.points == round(12 + 17.5)
    assert (found.trials, found.tried) == (2, 2)


def test_the_trials_share_the_time_of_all() -> None:
    cost = Cost(start_s=0.0, step_s=1.0, point_s=0.0, steps=(10.0, 20.0))
    trials = [config({"seed": seed}) for seed in range(12)]
    for together, low in ((1, 120), (2, 60), (5, 24), (12, 10), (100, 10)):
        found = estimate(trials, together=together, calibrate=lambda _: cost)
        assert found.low_s == pytest.approx(ACTOR_S + low)
        assert found.high_s == pytest.approx(ACTOR_S + 2 * low)
    assert (found.trials, found.tried) == (12, 1)


def test_trials_cost_what_the_one_most_like_them_does() -> None:
    sizes = [20 + i for i in range(2 * TRIED)]
    asked: list[int] = []

    def calibrate(given: TrialConfig) -> Cost:
        asked.append(given.training.batch_size)
        return Cost(0.0, 0.0, 0.0, (1.0, 1.0)) if given.model.name == "mlp" else dear

    dear = Cost(start_s=100.0, step_s=0.0, point_s=0.0, steps=(1.0, 1.0))
    mlps = by_batch(*sizes)
    model = AlexNetConfig(filters=4, hidden=8)
    others = [TrialConfig.model_validate({**dict(trial), "model": model}) for trial in mlps]
    found = estimate([*mlps, *others], together=1, calibrate=calibrate)
    assert len(asked) == found.tried == TRIED
    assert found.low_s == ACTOR_S + 100 * len(others)


def test_nothing_to_run_takes_no_time_and_is_not_tried() -> None:
    def calibrate(_: TrialConfig) -> Cost:
        raise AssertionError("there is nothing to try")

    assert estimate([], together=4, calibrate=calibrate) == Estimate(0.0, 0.0, 0, 0, 0)


# ---------------------------------------------------------------- which are tried


def test_the_trials_tried_are_spread_along_the_list() -> None:
    trials = by_batch(*range(20, 31))
    chosen = [t.training.batch_size for t in spread(trials, 6)]
    assert chosen == [20, 22, 24, 26, 28, 30]
    assert spread(trials, 2) == [trials[0], trials[-1]]
    assert spread(trials, 11) == trials
    assert spread(trials, 50) == trials


def test_seeds_are_not_tried_apart() -> None:
    trials = [t for seed in range(9) for t in by_batch(20, 30, seed=seed)]
    assert [t.training.batch_size for t in spread(trials, 6)] == [20, 30]


def test_what_decides_the_time_of_a_step_makes_trials_alike() -> None:
    trial = config({"training.learning_rate": 0.3, "seed": 5, "training.batch_size": 50})
    same_network = config()
    same_otherwise = trial.changed({"model.width": 32})
    assert alikeness(trial.flat(), same_network.flat()) > alikeness(
        trial.flat(), same_otherwise.flat()
    )
    nearer = config({"training.batch_size": 50})
    assert alikeness(trial.flat(), nearer.flat()) > alikeness(trial.flat(), same_network.flat())
    assert alikeness(trial.flat(), trial.flat()) == (
        sum(p.startswith(("model.", "scheme.", "data.dataset")) for p in trial.flat()),
        len(trial.flat()),
    )


# ---------------------------------------------------------------- in words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (89.4, "89 s"),
        (90, "1.5 min"),
        (3600, "60 min"),
        (5400, "1.5 h"),
        (86400, "24 h"),
        (1.5 * 86400, "1.5 d"),
        (20 * 86400, "20 d"),
        (365 * 86400, "365 d"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Estimate(0.0, 0.0, 0, 0, 0), "nothing is left to run"),
        (
            Estimate(100, 100, 3, 9, 1),
            "between 83 s and 2 min, by some seconds of 1 trial on this machine",
        ),
        (
            Estimate(60, 7200, 9, 9, 6),
            "between 50 s and 2.4 h, by some seconds of 6 trials on this machine",
        ),
    ],
)
def test_an_estimate_for_people(found: Estimate, text: str) -> None:
    assert str(found) == text


# ---------------------------------------------------------------- measured


def test_a_trial_that_ends_while_it_is_tried_is_known_exactly() -> None:
    changes = {"training.stop_loss": 1.5, "training.max_epochs": 40}
    cost = measured_cost(config(changes))
    steps = run(changes).state.step
    assert 0 < steps < 160
    assert cost.steps == (steps, steps)
    assert min(cost.start_s, cost.step_s, cost.point_s) > 0


def test_a_trial_that_goes_on_is_left_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "SECONDS_EACH", 0.3)
    cost = measured_cost(config({**ENDLESS, "training.stop_loss": None}))
    assert cost.steps == (PLANNED, PLANNED)
    assert min(cost.start_s, cost.step_s, cost.point_s) > 0
    assert cost.step_s < 0.3


def test_every_measure_is_tried_with_few_draws_and_counted_with_all() -> None:
    changes = {"measurement.sensitivity": True, "measurement.hessian_trace": "pyhessian"}
    every = config(changes | {"measurement.sensitivity_draws": 3998})
    found = measured_cost(every).measures_s
    names = {"Sensitivity", "Trace", "MeanGradientGap", "Flatness", "Smoothness"}
    assert set(found) == names
    # 2 draws were taken, which are three gradients: all 3,998 would take minutes.
    few = measured_cost(config(changes | {"measurement.sensitivity_draws": 2})).measures_s
    assert 0 < few["Sensitivity"] < 1
    assert 100 < found["Sensitivity"] / few["Sensitivity"] < 20_000


def test_those_that_time_is_too_short_for_cost_what_others_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimating, "LAST_BEGINS_S", 0.0)
    monkeypatch.setattr(estimating, "SECONDS_EACH", 0.1)
    found = estimate(by_batch(20, 30, 40, 50), together=1)
    assert (found.trials, found.tried) == (4, 1)
    assert found.low_s > ACTOR_S


def test_a_diverging_trial_is_known_exactly() -> None:
    changes = {"training.learning_rate": 1e4}
    finished = run(changes)
    assert finished.state.diverged
    assert measured_cost(config(changes)).steps == (finished.state.step,) * 2


def test_an_estimate_of_what_is_trained() -> None:
    trials = [config({"seed": seed}) for seed in range(4)]
    found = estimate(trials, together=2)
    assert (found.trials, found.tried) == (4, 1)
    assert found.points == 4 * 4  # W_0 and three epochs
    assert ACTOR_S < found.low_s == found.high_s < ACTOR_S + 60


def test_nothing_is_downloaded_to_try_a_trial_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GISGD_DATA", str(tmp_path))
    trials = [config(), config({"data.dataset": "mnist"})]
    found = estimate(trials, together=2)
    here = f"mnist is not in {tmp_path} (12 MB, which the sweep itself will download)"
    assert str(found) == f"not known, since a dry run downloads nothing, and {here}"
    assert (found.trials, found.tried, found.points) == (2, 0, 0)
    # Nor where it is tried on another machine, which alone knows what it has.
    with pytest.raises(DataError, match="a dry run downloads nothing, and mnist is not in"):
        measured_cost(trials[1])
    assert list(tmp_path.iterdir()) == []


def test_the_schedule_of_the_small_trial_is_what_these_tests_take_it_to_be() -> None:
    assert config().training.evaluation == Schedule(every=1, unit="epoch")
    assert planned_epoch_steps(config()) == 4
