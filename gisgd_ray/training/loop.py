"""The step loop: when to step, when to measure, when to stop. Plain PyTorch.

Reads top to bottom: :func:`start` builds a :class:`TrainState`; :func:`advance` trains up to the
next measuring point and returns what was measured there, in two halves (:func:`train`,
:func:`measure`) for who must be able to stop in between; ``state.stopped`` says when and why it is
over; :func:`summary` is the row of the finished run.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gisgd_ray.config.checks import steps_per_epoch
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.dataset import Dataset, load_dataset, noisy
from gisgd_ray.data.own import own_dataset, own_weights
from gisgd_ray.device import Device, device_of
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.networks.models import build_model, num_parameters
from gisgd_ray.training.evaluation import EVALUATED, losses_and_gap
from gisgd_ray.training.measured import MEASURES
from gisgd_ray.training.sensitivity_terms import SensitivityTerms
from gisgd_ray.training.state import Point, TrainState
from gisgd_ray.training.stepping import Replica, build_stepper
from gisgd_ray.training.terms import (
    CLOSED_FORMS,
    REMARK,
    UNDEFINED_REASON,
    StepSums,
    TrajectoryTerms,
    bounds_at,
    remark,
    undefined_reason,
    within_undefined_reason,
)


def start(
    config: TrialConfig,
    *,
    device: Device | torch.device | str = "cpu",
    dataset: Dataset | None = None,
    initial_state: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]] | None = None,
) -> TrainState:
    """A run before its first step; the same config gives the same W_0, data and batches.

    Args:
        config: the trial.
        device: where it runs.
        dataset: replaces the configured one, for data of one's own in a notebook, normalised;
            ``data.train_fraction`` and ``data.label_noise`` apply to it.
        initial_state: W_0 of one's own, the ``state_dict`` of such a network; of replicas one for
            all, or a sequence.

    Raises:
        DataError: the dataset cannot be read.
        UserError: the configuration's fields do not go together or do not suit the data, what is
            given does not suit the configuration, or there is no such device.
    """
    device = device_of(device)
    device.set_arithmetic(config.training.precision)
    if dataset is None:
        config.require_consistent()
    own = None if dataset is None else own_dataset(dataset, config, device.torch)
    replicas = [_replica(config, seed, device.torch, own) for seed in config.replica_seeds]
    if initial_state is not None:
        own_weights(initial_state, [replica.model for replica in replicas])
    data, model = replicas[0].dataset, replicas[0].model
    t, noise_stds = config.training, config.measurement.noise_stds
    n, d = data.num_samples, num_parameters(model)
    return TrainState(
        config=config,
        stepper=build_stepper(config, replicas),
        steps_per_epoch=steps_per_epoch(n, t.batch_size, t.last_batch),
        num_samples=n,
        num_parameters=d,
        terms=TrajectoryTerms(
            num_samples=n,
            num_parameters=d,
            noise_stds=noise_stds,
            stochastic=config.replicas is not None,
        ),
        sensitivity=SensitivityTerms(noise_stds),
        own_data=own is not None,
    )


def _replica(config: TrialConfig, seed: int, device: torch.device, own: Dataset | None) -> Replica:
    if own is None:
        dataset = load_dataset(config.data, seed=seed, device=device)
    else:
        dataset = noisy(own, config.data.label_noise, seed=seed)
    model = build_model(
        config.model,
        dataset.input_shape,
        dataset.num_classes,
        seed=seed,
        initialization=config.training.initialization,
    )
    return Replica(seed, model.to(device).train(), dataset)


def advance(state: TrainState) -> tuple[Point, StepSeries]:
    """Train up to the next measuring point; what is measured there, and the steps on the way.

    The first call measures W_0 and takes no step. After the last, ``state.stopped`` is set.
    """
    train(state)
    return measure(state)


def train(state: TrainState, pause: Callable[[], bool] | None = None) -> bool:
    """Take steps until a measuring point is due (True), or ``pause`` says so after a step (False).

    A paused run can be saved, and trained on as if nothing had happened.
    """
    with taking_steps([state]):
        paused, until = False, next_point(state)
        while not paused and state.step < until:
            rate = learning_rate(state.config, state.step // state.steps_per_epoch)
            state.stepper.step(state.step, learning_rate=rate)
            state.step += 1
            paused = pause is not None and pause()
    return measuring_is_due(state)


@contextmanager
def taking_steps(states: Sequence[TrainState]) -> Iterator[None]:
    """Context in which these runs take steps together: what is measured of the steps is kept, and
    their time, to each its share."""
    begun, cpu_begun = time.perf_counter(), time.process_time()
    yield
    for state in states:
        state.unmeasured.append(state.stepper.drain())
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
    for state in states:
        state.seconds["time/training_s"] += seconds / len(states)
        # On a CPU that other work shares, the time that tells one scheme's steps from another's.
        state.seconds["time/training_cpu_s"] += cpu_seconds / len(states)


def try_out(state: TrainState, steps: int) -> None:
    """Take so many steps at most and then every measurement of a trial's end, as if it were there.

    What a trial takes and whether it can run at all is known after that.
    """
    while state.stopped is None and state.step < steps:
        if train(state, pause=lambda: state.step >= steps) and state.step < steps:
            measure(state)
    if state.stopped is None:
        measure(state, last=True)


def measure(state: TrainState, *, last: bool = False) -> tuple[Point, StepSeries]:
    """What there is to measure at the point that :func:`train` has reached, and the steps to it.

    ``last`` ends the run here, whatever its own rules say.
    """
    begun = time.perf_counter()
    new_steps = _cut_at_divergence(state, StepSeries.concatenate(state.unmeasured))
    state.unmeasured = []
    if len(new_steps):
        state.add_steps(new_steps)
    point = _measure(state, new_steps, last=last)
    state.history.append(point)
    state.seconds["time/measuring_s"] += time.perf_counter() - begun
    return point, new_steps


def measuring_is_due(state: TrainState) -> bool:
    """Whether the run stands at a measuring point that has not been measured yet."""
    return state.step >= next_point(state)


def next_point(state: TrainState) -> int:
    """The step of the first measuring point that has not been measured yet."""
    if not state.history:
        return 0
    config, step = state.config, state.last_point["step"]
    t, per_epoch = config.training, state.steps_per_epoch
    measured = [each.schedules(config) for each in MEASURES if each.is_on(config)]
    schedules = [t.evaluation, *(schedule for each in measured for schedule in each)]
    limits = [limit for limit in (t.max_steps, t.max_epochs * per_epoch) if limit and limit > step]
    return min([*limits, *(schedule.next(step, per_epoch) for schedule in schedules)])


def learning_rate(config: TrialConfig, epoch: int) -> float:
    """lambda in one epoch (from 0): the configured rate times lr_factor per milestone passed."""
    passed = sum(epoch >= milestone for milestone in config.training.lr_milestones)
    return config.training.learning_rate * config.training.lr_factor**passed


def evaluation_is_due(state: TrainState) -> bool:
    """Whether the evaluation schedule, and so the stopping rule, is due after the current step."""
    t = state.config.training
    return state.is_due(t.evaluation) or state.step == t.max_steps


def _cut_at_divergence(state: TrainState, steps: StepSeries) -> StepSeries:
    """Mark the run as diverged at its first bad batch loss; drop the steps after it."""
    limit = state.config.training.divergence_loss
    bad = ~(steps.loss <= limit)  # also true of NaN
    if not bad.any():
        return steps
    first = int(bad.argmax())
    state.diverged = True
    state.step = state.step - len(steps) + first + 1
    state.stopped = f"batch loss {steps.loss[first]:.4g} at step {state.step}"
    return steps.head(first + 1)


def _measure(state: TrainState, new_steps: StepSeries, *, last: bool) -> Point:
    """Everything due at the current weights, as one point."""
    config = state.config
    point: Point = {"step": state.step, "epoch": state.epoch}
    # The rate of the last step taken, not that of the epoch which begins here.
    point["learning_rate"] = learning_rate(config, max(state.step - 1, 0) // state.steps_per_epoch)
    if state.stopped is not None:
        # Diverged on the way: the weights are already some steps past the last step kept.
        point |= dict.fromkeys(EVALUATED, math.nan)
    else:
        with _timed(state, "evaluation"):
            point |= losses_and_gap(state)
        # A point that only another schedule asked for must not end the run.
        if evaluation_is_due(state):
            state.stopped, state.diverged = stop_reason(state, point)
        if last and state.stopped is None:
            state.stopped = "broken off"
    if len(new_steps) > 0:
        since = StepSums()
        since.add(new_steps)
        point |= since.means()
    point |= state.terms.metrics()
    if state.diverged:
        return point
    over = state.stopped is not None
    for each in MEASURES:
        if each.is_on(config) and (over or each.at_every_point or each.is_due(state)):
            with _timed(state, each.name):
                point |= each.measure(state, point)
    if over:
        sizes = {"num_parameters": state.num_parameters, "steps": state.step}
        point |= bounds_at(config.measurement.noise_stds, point, **sizes)
    return point


@contextmanager
def _timed(state: TrainState, name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    state.last_seconds[name] = time.perf_counter() - begun


def stop_reason(state: TrainState, point: Point) -> tuple[str | None, bool]:
    """Why the run ends at this point (None: it goes on), and whether that is divergence."""
    t = state.config.training
    train_loss = point["train/loss"]
    if not math.isfinite(train_loss) or train_loss > t.divergence_loss:
        return f"training loss {train_loss:.4g} at step {state.step}", True
    if t.stop_loss is not None and train_loss < t.stop_loss:
        return "stop_loss", False
    if state.config.stops_at_full_accuracy and point["train/accuracy"] == 1.0:
        return "full_accuracy", False
    if t.max_steps is not None and state.step >= t.max_steps:
        return "max_steps", False
    if state.step >= t.max_epochs * state.steps_per_epoch:
        return "max_epochs", False
    return None, False


def summary(state: TrainState) -> dict[str, Any]:
    """The finished run's row, without its configuration: status and final metrics.

    The per-step measures are means over all steps of the run here, and over the steps since the
    point before in the history.
    """
    terms, trace_off = state.terms, state.config.measurement.hessian_trace == "off"
    trace = state.last_point.get("measure/hessian_trace", math.nan)
    reasons = [
        "the run diverged, so that no Hessian trace was measured at its end"
        if state.diverged
        else undefined_reason(terms, hessian_trace=trace, trace_off=trace_off),
        within_undefined_reason(terms),
    ]
    measured = [each for each in MEASURES if each.is_on(state.config)]
    reasons += [each.undefined_reason(state) for each in measured]
    remarks = [remark(terms), *(each.remark(state) for each in measured)]
    row = {
        "status": "diverged" if state.diverged else "finished",
        "stop_reason": state.stopped,
        "outside_theorem": state.config.outside_theorem(),
        "steps": state.step,
        "epochs": state.epoch,
        "num_samples": state.num_samples,
        "num_parameters": state.num_parameters,
        "num_test_samples": len(state.dataset.test_y),
        "num_classes": state.dataset.num_classes,
        "data/normalization_mean": list(state.dataset.normalization_mean),
        "data/normalization_std": list(state.dataset.normalization_std),
        **{k: v for k, v in state.last_point.items() if k not in ("step", "epoch")},
        **{name: state.last_point.get(name, math.nan) for name in CLOSED_FORMS},
        **terms.means(),
        **_dispersion_estimator(state.config),
        "measure/ill_conditioned_steps": terms.ill_conditioned_steps,
        REMARK: "; ".join(filter(None, remarks)) or None,
        UNDEFINED_REASON: "; ".join(filter(None, reasons)) or None,
        **state.seconds,
    }
    for each in measured:
        row |= each.row(state)
    return row


def _dispersion_estimator(config: TrialConfig) -> Point:
    """How and of which gradient the dispersion was measured, in words; empty if it was not."""
    m = config.measurement
    if not m.dispersion:
        return {}
    by_groups = config.dispersion_estimator == "groups"
    return {
        "measure/gradient_dispersion_estimator": f"between {m.dispersion_groups} groups"
        if by_groups
        else "per-sample norms",
        "measure/gradient_dispersion_of": f"{m.dispersion_of} gradient",
    }
