"""A run saved between two steps, and continued bit for bit.

No random stream needs saving: every draw is a function of (seed, purpose, counter). What a run has
measured, its points and their steps, grows with it: a checkpoint can leave that out, for a caller
that keeps it in pieces (:func:`dump_measured`), and is then of one size at every step, but for the
steps since the last measuring point and the rates since the last of Psi.
"""

import hashlib
import io
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.dataset import Dataset
from gisgd_ray.device import Device, device_of
from gisgd_ray.errors import UserError
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.training.interpolated import InterpolatedSum
from gisgd_ray.training.loop import start
from gisgd_ray.training.sensitivity_terms import SensitivityTerms
from gisgd_ray.training.state import TrainState
from gisgd_ray.training.terms import TrajectoryTerms

MAGIC = b"gisgd-ray checkpoint 3\n"
PROGRESS = ("step", "stopped", "diverged", "seconds")
"""Fields of the state that are kept as they are."""


class CheckpointError(UserError):
    """A checkpoint that this trial cannot go on from, whenever and wherever it is read."""


def dump(state: TrainState, *, without: int = 0) -> bytes:
    """The run as the content of a file: a line, the SHA-256 of the rest, the rest.

    The first ``without`` measuring points and the steps up to them are left out, for
    :func:`load` to get from elsewhere.
    """
    content = {
        "config": state.config.model_dump(mode="json"),
        "own_data": state.own_data,
        "models": [_own(replica.model.state_dict()) for replica in state.replicas],
        "stepper": state.stepper.state_dict(),
        "measured": _measured(state, without),
        "unmeasured": _tensors(StepSeries.concatenate(state.unmeasured)),
        "terms": asdict(state.terms),
        "sensitivity": asdict(state.sensitivity),
        "mean_gradient_gap": asdict(state.mean_gradient_gap),
        "progress": {name: getattr(state, name) for name in PROGRESS},
    }
    return _packed(content)


def _own(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights alone: of a view, as into a stack of other runs, all would be saved."""
    return {name: value.clone() for name, value in weights.items()}


def dump_measured(state: TrainState, begin: int) -> bytes:
    """The measuring points behind the first ``begin``, and the steps behind those, likewise."""
    return _packed(_measured(state, begin))


def _measured(state: TrainState, begin: int) -> dict[str, Any]:
    points, steps = state.measured_since(begin)
    return {"begin": begin, "points": points, "steps": _tensors(steps)}


def _packed(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getvalue()
    return MAGIC + hashlib.sha256(body).digest() + body


def _unpacked(content: bytes, device: torch.device) -> Any:
    """Raises CheckpointError; of a content with code in it, UnpicklingError."""
    head = len(MAGIC) + hashlib.sha256().digest_size
    body = content[head:]
    if content[:head] != MAGIC + hashlib.sha256(body).digest():
        raise CheckpointError(
            f"the checkpoint ({len(content)} bytes) is damaged, cut off or of another version; "
            "the one before it will do, or the start"
        )
    return torch.load(io.BytesIO(body), map_location=device, weights_only=True)


def load(
    config: TrialConfig,
    content: bytes,
    *,
    device: Device | torch.device | str = "cpu",
    dataset: Dataset | None = None,
    pieces: Callable[[int], bytes] | None = None,
) -> TrainState:
    """The run of :func:`dump`, ready to :func:`~gisgd_ray.training.loop.advance`.

    Args:
        config: the trial's.
        content: of the file.
        device: where it goes on.
        dataset: the one that the run was started with, if it was one of the user's own.
        pieces: given a number of measuring points, the piece of :func:`dump_measured` that ends
            there; needed if the checkpoint leaves out what was measured.

    Raises:
        CheckpointError: it is of another configuration or version, cut off or damaged. (What else
            is raised, as by ``pieces`` or when memory runs out, is no fault of the checkpoint's.)
    """
    device = device_of(device)
    try:
        saved_state = _unpacked(content, device.torch)
        saved = TrialConfig.model_validate(saved_state["config"])
    except _OTHER_CONTENT as fault:
        raise _of_another_version(fault) from fault
    if saved != config:
        raise CheckpointError(
            f"the checkpoint belongs to trial {saved.trial_id}, not to {config.trial_id}; "
            "start the trial anew or choose another output folder"
        )
    if saved_state.get("own_data", False) != (dataset is not None):
        remedy = "without dataset=" if dataset is not None else "with the same, dataset=..."
        raise CheckpointError(
            "the checkpoint's run was started "
            f"{'on the configured data' if dataset is not None else 'on a dataset of its own'}; go "
            f"on {remedy}"
        )
    state = start(config, device=device, dataset=dataset)
    try:
        for replica, weights in zip(state.replicas, saved_state["models"], strict=True):
            _require_same_shapes(replica.model.state_dict(), weights)
            replica.model.load_state_dict(weights)
        state.stepper.load_state_dict(saved_state["stepper"])
        measured = [saved_state["measured"]]
        while measured[0]["begin"]:
            measured.insert(0, _piece(pieces, measured[0]["begin"]))
        state.history = [point for piece in measured for point in piece["points"]]
        state.stretches = [_series(piece["steps"]) for piece in measured]
        state.unmeasured = [_series(saved_state["unmeasured"])]
        state.terms = TrajectoryTerms(**saved_state["terms"])
        if sum(map(len, state.stretches)) != state.terms.steps:
            raise ValueError("it lacks some of its steps")
        state.sensitivity = SensitivityTerms(**saved_state["sensitivity"])
        state.mean_gradient_gap = InterpolatedSum(**saved_state["mean_gradient_gap"])
        for name in PROGRESS:
            setattr(state, name, saved_state["progress"][name])
    except _OTHER_CONTENT as fault:
        raise _of_another_version(fault) from fault
    return state


_OTHER_CONTENT = (pickle.UnpicklingError, KeyError, TypeError, ValueError, AttributeError)
"""What a content of other names and shapes leads to. Not RuntimeError: that is the device's."""


def _of_another_version(fault: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint is of another version of gisgd-ray ({type(fault).__name__}: {fault}); the "
        "one before it will do, or the start"
    )


def _piece(pieces: Callable[[int], bytes] | None, end: int) -> dict[str, Any]:
    """What was measured up to the ``end``-th measuring point; raises ValueError where it is not."""
    if pieces is None:
        raise ValueError("what the run has measured is not in it")
    piece: dict[str, Any] = _unpacked(pieces(end), torch.device("cpu"))
    if not 0 <= piece["begin"] < end == piece["begin"] + len(piece["points"]):
        raise ValueError("what the run has measured is in other pieces")
    return piece


def _require_same_shapes(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Raises ValueError: torch would raise a RuntimeError, which a device's faults are as well."""
    if {n: v.shape for n, v in ours.items()} != {n: v.shape for n, v in theirs.items()}:
        raise ValueError("its network has other weights")


def _tensors(series: StepSeries) -> dict[str, torch.Tensor]:
    arrays, draws = series.columns(), series.conditional_dispersions
    if draws is not None:
        arrays["conditional_dispersions"] = draws
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _series(columns: dict[str, torch.Tensor]) -> StepSeries:
    arrays = {name: column.cpu().numpy() for name, column in columns.items()}
    draws = arrays.pop("conditional_dispersions", None)
    if arrays.keys() != StepSeries.empty().columns().keys():
        raise ValueError("its steps have other columns")
    return replace(StepSeries.of(arrays), conditional_dispersions=draws)
