"""Which trials share a process as a stack, and how many."""

import math
import time
from collections.abc import Hashable, Sequence
from functools import partial

import torch

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.device import Device
from gisgd_ray.training import loop as training
from gisgd_ray.training.stack import Stack, shape
from gisgd_ray.training.state import TrainState

GAIN = 0.9
"""A stack is doubled while a trial's step then takes at most this share of its time before."""
FIRST = 8
"""A stack of two or three pays for the calls of batched products and has little of them."""
STEPS, TIMED = 20, 3
"""So many steps are timed at once, so often."""


def formed(trials: Sequence[TrialConfig], size: int) -> list[list[TrialConfig]]:
    """The trials in stacks of one shape, of at most ``size`` each and about as many in each; those
    that can share none alone."""
    found: list[list[TrialConfig]] = []
    for alike in _alike(trials):
        each = math.ceil(len(alike) / math.ceil(len(alike) / size))
        found += [alike[i : i + each] for i in range(0, len(alike), each)]
    return found


def most_alike(trials: Sequence[TrialConfig]) -> list[TrialConfig]:
    """The trials of the shape that most have."""
    return max(_alike(trials), key=len)


def _alike(trials: Sequence[TrialConfig]) -> list[list[TrialConfig]]:
    groups: dict[Hashable, list[TrialConfig]] = {}
    for trial in trials:
        groups.setdefault(shape(trial) or trial.trial_id, []).append(trial)
    return list(groups.values())


def fastest_size(alike: Sequence[TrialConfig], device: Device) -> int:
    """How many of these, of one shape, a stack had best have on this device: :data:`FIRST` if that
    is faster than one alone, then doubled while the time per trial and step falls and memory
    allows."""
    size, best = 1, step_seconds(alike[:1], device)
    while size < len(alike):
        more = min(max(FIRST, 2 * size), len(alike))
        try:
            found = step_seconds(alike[:more], device)
        except torch.OutOfMemoryError:
            break
        if found > GAIN * best:
            break
        size, best = more, found
    return size


def begun(trials: Sequence[TrialConfig], device: Device) -> list[TrainState]:
    """Their runs, which take steps at once, as if W_0 had been measured."""
    states = [training.start(trial, device=device) for trial in trials]
    for state in states:
        state.history.append({"step": 0})
    return states


def step_seconds(trials: Sequence[TrialConfig], device: Device) -> float:
    """Seconds per trial and step: of one alone as it would run alone, of several in a stack."""
    states = begun(trials, device)
    stack = Stack(states) if len(states) > 1 else None
    taken: list[float] = []
    for _ in range(1 + TIMED):  # the first of them warms up
        since, before = time.perf_counter(), states[0].step
        pause = partial(_is_at, states[0], before + STEPS)
        if stack is not None:
            stack.train(pause)
        else:
            training.train(states[0], pause)
        device.synchronize()
        steps = states[0].step - before
        taken.append((time.perf_counter() - since) / steps / len(states))
        for state in states:  # as if this point had been measured
            state.history[-1] = {"step": state.step}
    return min(taken[1:])


def _is_at(state: TrainState, step: int) -> bool:
    return state.step >= step
