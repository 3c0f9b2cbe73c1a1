"""A run saved between two measuring points, and continued bit for bit.

No random stream needs saving: every draw is a function of (seed, purpose, counter).
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gisgd_ray.config import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.measures.dispersion import StepSeries
from gisgd_ray.sensitivity_terms import SensitivityTerms
from gisgd_ray.state import TrainState
from gisgd_ray.terms import TrajectoryTerms
from gisgd_ray.training import start

FILE_NAME = "state.pt"


def save(state: TrainState, folder: Path) -> None:
    """Write the run into ``folder``, the file appearing under its name only when complete."""
    content = {
        "config": state.config.model_dump(mode="json"),
        "models": [replica.model.state_dict() for replica in state.replicas],
        "stepper": state.stepper.state_dict(),
        "series": {name: torch.from_numpy(a) for name, a in state.series.columns().items()},
        "terms": asdict(state.terms),
        "sensitivity": asdict(state.sensitivity),
        "progress": _progress(state),
    }
    partial = folder / (FILE_NAME + ".partial")
    torch.save(content, partial)
    partial.rename(folder / FILE_NAME)


def load(config: TrialConfig, folder: Path, *, device: torch.device | str = "cpu") -> TrainState:
    """The run saved in ``folder``, ready to :func:`~gisgd_ray.training.advance`.

    Raises:
        UserError: the checkpoint is of another configuration.
    """
    content = torch.load(folder / FILE_NAME, map_location=device, weights_only=True)
    saved = TrialConfig.model_validate(content["config"])
    if saved != config:
        raise UserError(
            f"checkpoint {folder} belongs to trial {saved.trial_id}, not to {config.trial_id}; "
            "start the trial anew or choose another output folder"
        )
    state = start(config, device=device)
    for replica, weights in zip(state.replicas, content["models"], strict=True):
        replica.model.load_state_dict(weights)
    state.stepper.load_state_dict(content["stepper"])
    state.stretches = [StepSeries(**{k: v.cpu().numpy() for k, v in content["series"].items()})]
    state.terms = TrajectoryTerms(**content["terms"])
    state.sensitivity = SensitivityTerms(**content["sensitivity"])
    for name, value in content["progress"].items():
        setattr(state, name, value)
    return state


def _progress(state: TrainState) -> dict[str, Any]:
    names = ("step", "history", "stopped", "diverged", "seconds")
    return {name: getattr(state, name) for name in names}
