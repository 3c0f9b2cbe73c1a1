"""How long a sweep will take, from a few seconds of its own training.

Two things are not known beforehand. The time of a step, of an evaluation and of every measure is
measured, on this machine, for a few of the trials; measures with few draws, as their time is in
proportion to those. Where a loss ends the trial, the number of steps is a guess: from the loss
measured so far it is extrapolated once as falling exponentially, which is too optimistic, and once
as a power of the number of steps, which is too pessimistic; the two are the range.
"""

import math
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations, repeat
from typing import Any

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray

from gisgd_ray.config.checks import planned_epoch_steps, planned_steps
from gisgd_ray.config.frozen import Schedule
from gisgd_ray.config.measurement import MeasurementConfig
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.downloads import data_folder, not_here
from gisgd_ray.device import Device
from gisgd_ray.errors import DataError
from gisgd_ray.training import loop as training
from gisgd_ray.training.measured import MEASURES

TRIED = 6
"""So many trials are tried out at most."""
SECONDS_EACH = 2.0
"""Training time for each of them, at most: where no loss ends a trial a quarter of it does."""
LAST_BEGINS_S = 3.0
"""Another one is tried out up to here, so that a dry run answers within ten seconds."""
UNSURE = 1.2
"""By this factor a machine is faster or slower than in the seconds measured."""
MEMORISED = 0.05
"""Mean training loss (nats) at which a network fits about every label."""
ACTOR_S = 8.0
"""To start Ray and the first processes, which import PyTorch."""


@dataclass(frozen=True)
class Cost:
    """Seconds that a trial takes to start, for a step, for an evaluation, and for each of its
    measures by name; and its number of steps, from an optimistic guess to a pessimistic one."""

    start_s: float
    step_s: float
    point_s: float
    steps: tuple[float, float]
    measures_s: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, config: TrialConfig) -> tuple[float, float]:
        """Of the whole trial, at the optimistic and at the pessimistic number of steps."""
        low, high = (self._seconds(config, steps) for steps in self.steps)
        return low, high

    def _seconds(self, config: TrialConfig, steps: float) -> float:
        points = num_points(config, steps)
        seconds = self.start_s + steps * self.step_s + points * self.point_s
        for each in filter(lambda each: each.is_on(config), MEASURES):
            # At W_0 and on its schedule, which mostly has the end; else at the end alone.
            due = 1 + _num_due(config, steps, each.schedules(config))
            count = points if each.at_every_point else due
            seconds += count * self.measures_s.get(each.name, 0.0)
        return seconds


@dataclass(frozen=True)
class Estimate:
    """Of a sweep; seconds of wall time."""

    low_s: float
    high_s: float
    trials: int
    points: int
    tried: int

    unknown: str = ""
    """Why the time is not known, if it is not."""

    def __str__(self) -> str:
        if self.trials == 0:
            return "nothing is left to run"
        if self.unknown:
            return f"not known, since a dry run downloads nothing, and {self.unknown}"
        span = f"between {duration(self.low_s / UNSURE)} and {duration(self.high_s * UNSURE)}"
        of = "1 trial" if self.tried == 1 else f"{self.tried} trials"
        return f"{span}, by some seconds of {of} on this machine"


def estimate(
    trials: Sequence[TrialConfig],
    *,
    together: int,
    threads: int = 1,
    calibrate: "Callable[[TrialConfig], Cost] | None" = None,
) -> Estimate:
    """Time of these trials, so many of them at once, by trying a few of them out here.

    Args:
        threads: of torch, for each.
        calibrate: tries one out elsewhere.

    Raises:
        DataError: a dataset is missing elsewhere, or damaged.
    """
    missing = not_here_for(trials) if calibrate is None else ""
    if missing:
        return Estimate(0.0, 0.0, len(trials), 0, 0, unknown=missing)
    chosen = spread(trials, TRIED)
    if calibrate is None:
        tried = measured_together(chosen, together=together, threads=threads)
    else:
        tried = [calibrate(t) for t in chosen]
    found = [cost for cost in tried if cost is not None]
    flats = [t.flat() for t, cost in zip(chosen, tried, strict=True) if cost is not None]
    lows, highs, points = [], [], 0.0
    for config in trials:
        flat = config.flat()
        cost = found[max(range(len(found)), key=lambda i: alikeness(flat, flats[i]))]
        low, high = cost.seconds(config)
        lows.append(low)
        highs.append(high)
        points += sum(num_points(config, steps) for steps in cost.steps) / 2
    if not trials:
        return Estimate(0.0, 0.0, 0, 0, 0)
    walls = [ACTOR_S + max(sum(each) / together, *each) for each in (lows, highs)]
    return Estimate(walls[0], walls[1], len(trials), round(points), len(found))


def not_here_for(trials: Iterable[TrialConfig]) -> str:
    """Which of their datasets would have to be downloaded to try them out; "" if none."""
    names = dict.fromkeys(trial.data.dataset for trial in trials)
    return next(filter(None, (not_here(name, data_folder()) for name in names)), "")


def require_here(config: TrialConfig) -> None:
    """Raises DataError where a trial's dataset would have to be downloaded to try it out."""
    if missing := not_here_for([config]):
        raise DataError(f"a dry run downloads nothing, and {missing}")


def spread(trials: Sequence[TrialConfig], count: int) -> list[TrialConfig]:
    """So many of the trials, evenly along the list, seeds apart."""
    different = list({t.changed({"seed": 0}): t for t in trials}.values())
    if len(different) <= count:
        return different
    return [different[round(i)] for i in np.linspace(0, len(different) - 1, count)]


def alikeness(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[int, int]:
    """How many settings two trials share, each a flat table of them: first of those that decide the
    time of a step."""
    same = [path for path, value in a.items() if path in b and b[path] == value]
    decisive = [path for path in same if path.startswith(("model.", "scheme.", "data.dataset"))]
    return len(decisive), len(same)


def measured_together(
    trials: Sequence[TrialConfig], *, together: int, threads: int
) -> list[Cost | None]:
    """Each trial's cost while others run beside it, as they will: they share memory and caches.
    None of those that time is too short for."""
    if not trials:
        return []
    count = min(together, len(trials))
    # A fork has PyTorch already; where this process has other threads it might never return.
    forks = sys.platform == "linux" and threading.active_count() == 1
    context = multiprocessing.get_context("fork" if forks else "spawn")
    first = time.monotonic() + LAST_BEGINS_S
    ends = [math.inf] * count + [first] * (len(trials) - count)
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        return list(pool.map(_cost_until, trials, repeat(threads), ends))


def _cost_until(config: TrialConfig, threads: int, end: float) -> Cost | None:
    return measured_cost(config, threads=threads) if time.monotonic() < end else None


def measured_cost(config: TrialConfig, device: Device | str = "cpu", threads: int = 1) -> Cost:
    """Train a trial for a second, with so many of torch's threads, and measure all once.

    Raises:
        DataError: its dataset would have to be downloaded.
    """
    require_here(config)
    torch.set_num_threads(threads)
    begun = time.perf_counter()
    few = with_few_draws(config)
    # Every replica is started and measured like another, and a step takes less than so many apart.
    shared = 1.0
    if few.replicas is not None:
        shared = few.replicas / 2
        few = few.changed({"replicas": 2})
    state = training.start(few, device=device)
    started = time.perf_counter()
    training.measure(state)
    training.train(state, pause=lambda: True)  # the first step loads what all need
    first_s = state.seconds["time/training_s"]
    enough = SECONDS_EACH if _last_loss(config) > 0 else SECONDS_EACH / 4
    deadline = time.perf_counter() + enough
    while state.stopped is None and time.perf_counter() < deadline:
        if training.train(state, pause=lambda: time.perf_counter() > deadline):
            training.measure(state)
    over = state.stopped is not None
    losses = np.concatenate([part.loss for part in (state.series, *state.unmeasured)])
    if not over:
        training.measure(state, last=True)
    seconds = state.last_seconds
    return Cost(
        start_s=shared * (started - begun),
        step_s=shared * (state.seconds["time/training_s"] - first_s) / max(state.step - 1, 1),
        point_s=shared * seconds["evaluation"],
        steps=steps_range(config, losses, over=over),
        measures_s={
            each.name: shared * seconds[each.name] * each.cost(config) / each.cost(few)
            for each in MEASURES
            if each.name in seconds
        },
    )


def with_few_draws(config: TrialConfig) -> TrialConfig:
    """The trial with as few draws in its measurements as they can be made of."""
    fewest = {
        f"measurement.{name}": next(rule.ge for rule in known.metadata if isinstance(rule, Ge))
        for name, known in MeasurementConfig.model_fields.items()
        if name in ("sensitivity_draws", "flatness_draws", "hessian_probes")
    }
    return config.changed(fewest)


def steps_range(
    config: TrialConfig, losses: NDArray[np.float64], *, over: bool
) -> tuple[float, float]:
    """How many steps the trial will take, given the batch losses of its first ones."""
    taken, most = float(len(losses)), float(planned_steps(config))
    if over:
        return taken, taken
    target = _last_loss(config)
    if target == 0:
        return most, most
    if taken < 8:
        return min(max(taken, planned_epoch_steps(config)), most), most
    half = len(losses) // 2
    width = max(4, len(losses) // 5)
    early = float(losses[max(0, half - width) : half].mean())
    late = float(losses[-width:].mean())
    where = (half - width / 2, taken - width / 2)
    if not late < early or late <= 0:
        return taken, most
    if late <= target:
        return taken, min(most, 2 * taken)
    exponential = where[1] + math.log(late / target) * (where[1] - where[0]) / math.log(
        early / late
    )
    exponent = math.log(early / late) / math.log(where[1] / where[0])
    power = where[1] * math.exp(min(math.log(late / target) / exponent, math.log(most)))
    low, high = (min(max(taken, steps), most) for steps in (exponential, power))
    return low, high


def _last_loss(config: TrialConfig) -> float:
    """At which the trial ends, about; 0 where none ends it. Of two rules the higher loss does."""
    memorised = MEMORISED if config.stops_at_full_accuracy else 0.0
    return max(config.training.stop_loss or 0.0, memorised)


def num_points(config: TrialConfig, steps: float) -> float:
    """Measuring points of a run of so many steps: where the evaluation is due, or any measure.

    Where points that are log-spaced fall on others, they count twice.
    """
    measures = [each for each in MEASURES if each.is_on(config)]
    due = {config.training.evaluation, *(s for each in measures for s in each.schedules(config))}
    return 1 + _num_due(config, steps, due)


def _num_due(config: TrialConfig, steps: float, schedules: Iterable[Schedule]) -> float:
    """At how many of so many steps one of the schedules is due."""
    epoch, due = planned_epoch_steps(config), set(schedules)
    periods = {s.period(epoch) for s in due if s.unit != "log"}
    found: float = sum(s.count(steps, epoch) for s in due if s.unit == "log")
    # Multiples of one period or another, by inclusion and exclusion.
    for size in range(1, len(periods) + 1):
        for some in combinations(periods, size):
            found -= (-1) ** size * (steps / math.lcm(*some))
    return found


def duration(seconds: float) -> str:
    """For people.

    >>> duration(42), duration(150), duration(8000)
    ('42 s', '2.5 min', '2.2 h')
    """
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            count = seconds / size
            return f"{count:.2g} {unit}" if count < 99.5 else f"{count:,.0f} {unit}"
    return f"{seconds:.0f} s"
