"""What a trial takes in memory at least, known before it starts.

Counted is what grows without bound with a setting: the replicas' weights, and the draws of Psi.
Data and activations come on top, so that a trial which passes may still not fit.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterable
from functools import lru_cache

import torch

from gisgd_ray.config.catalogue import DATASETS
from gisgd_ray.config.measurement import MeasurementConfig
from gisgd_ray.config.model import ModelConfig
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.networks.models import build_model, num_parameters

SCALAR = 8
WEIGHT = 4


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def give_back_freed() -> None:
    """Return to the system what this process has freed: glibc keeps it, by the tens of megabytes
    after a table of thousands of points. Nothing happens with another C library."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def count_parameters(config: TrialConfig) -> int:
    """d of a trial's network, from its shape alone: no weights are made.

    Raises:
        UserError: the network does not suit the data.
    """
    return _parameters(config.model, config.data.dataset)


@lru_cache(maxsize=1024)
def _parameters(model: ModelConfig, dataset: str) -> int:
    data = DATASETS[dataset]
    with torch.device("meta"):
        return num_parameters(build_model(model, data.shape, data.outputs, seed=0))


def replicas_bytes(config: TrialConfig, parameters: int) -> int:
    """Weights of all runs of the trial, and one gradient."""
    return WEIGHT * parameters * ((config.replicas or 1) + 1)


def draws_bytes(config: TrialConfig) -> dict[str, int]:
    """The scalars of every draw, which are kept for the standard error, by the field that asks.

    A draw itself is gone before the next is made.
    """
    m = config.measurement
    per_std = SCALAR * len(m.noise_stds)
    return {
        "sensitivity_draws": 2 * per_std * m.sensitivity_draws if m.sensitivity else 0,
        "flatness_draws": per_std * m.flatness_draws if m.flatness else 0,
        "hessian_probes": SCALAR * m.hessian_probes if m.hessian_trace == "pyhessian" else 0,
    }


def require_memory(trials: Iterable[TrialConfig], available: int) -> None:
    """See that every trial fits into ``available`` bytes.

    Raises:
        UserError: one does not; says what it takes, and how much of the setting would fit.
    """
    for config in trials:
        parameters = count_parameters(config)
        runs, each = replicas_bytes(config, parameters), draws_bytes(config)
        draws = sum(each.values())
        if runs + draws <= available:
            continue
        if draws > runs:
            name = max(each, key=lambda field: each[field])
            field, value = f"measurement.{name}", getattr(config.measurement, name)
            usual = MeasurementConfig.model_fields[name].default
            raise UserError(
                f"{field} = {value} takes {_text(runs + draws)} of memory, and there are "
                f"{_text(available)}; choose fewer, as in the default of {usual}"
            )
        if config.replicas is not None:
            field, value = "replicas", config.replicas
            most = (available - draws) // (WEIGHT * parameters) - 1
        else:
            raise UserError(
                f"model.name = {config.model.name!r} with {parameters:,} parameters takes "
                f"{_text(runs)} of memory, and there are {_text(available)}; choose a smaller one"
            )
        raise UserError(
            f"{field} = {value} takes {_text(runs + draws)} of memory, and there are "
            f"{_text(available)}; choose at most {most}"
        )


def _text(count: int) -> str:
    """Bytes for people: 1.6 GB."""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB", "EB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"
