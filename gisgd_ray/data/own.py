"""Data and weights of the user's own in place of the configured, checked a sentence each."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from gisgd_ray.config.checks import DataFacts
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.dataset import Dataset, subset
from gisgd_ray.errors import UserError

NAME = "the given dataset"


def own_dataset(data: Dataset, config: TrialConfig, device: torch.device) -> Dataset:
    """The given dataset as this trial takes it: on the device, reduced to ``data.train_fraction``.

    ``data.label_noise`` is a replica's to add. Every check of a trial's fields that else is
    made against the configured set is made against these data instead, but for a last batch of one
    sample: the row then says why its bounds are undefined.

    Raises:
        UserError: they are not sound, or do not suit the configuration.
    """
    _require_sound(data)
    moved = {name: getattr(data, name).to(device) for name in _TENSORS}
    n = max(1, round(data.num_samples * config.data.train_fraction))
    data = subset(replace(data, **moved), n)
    real = data.train_y.is_floating_point()
    facts = DataFacts(NAME, n, data.input_shape, real=real, given=True)
    config.require_consistent(facts)
    return data


_TENSORS = ("train_x", "train_y", "test_x", "test_y")


def _require_sound(data: Dataset) -> None:
    """Raises UserError: which tensor, what it is, what would do."""
    classes: Any = data.num_classes  # whatever its annotation says
    if not isinstance(classes, Integral):
        raise UserError(
            f"{NAME}: num_classes = {classes!r} is a {type(classes).__name__}; give the "
            "number of classes as an int, or 1 for real targets"
        )
    for split in ("train", "test"):
        x, y = getattr(data, f"{split}_x"), getattr(data, f"{split}_y")
        for name, tensor in ((f"{split}_x", x), (f"{split}_y", y)):
            if not isinstance(tensor, Tensor):
                raise UserError(f"{NAME}: {name} is a {type(tensor).__name__}; give a torch.Tensor")
        if x.dim() < 2:
            raise UserError(
                f"{NAME}: {split}_x has the shape {tuple(x.shape)}, expected (samples, ...) with "
                "vectors or images; of single numbers give x[:, None]"
            )
        if len(x) == 0:
            raise UserError(
                f"{NAME} has no {split} samples: the gap and the bounds are of both splits; give "
                "at least one"
            )
        if y.dim() != 1 or len(x) != len(y):
            raise UserError(
                f"{NAME}: {split}_y has the shape {tuple(y.shape)}, expected ({len(x)},), one for "
                f"each of {split}_x"
            )
        if x.dtype != torch.float32:
            raise UserError(f"{NAME}: {split}_x is {x.dtype}, expected float32; give x.float()")
        if x.shape[1:] != data.input_shape:
            raise UserError(
                f"{NAME}: an input of {split}_x has the shape {tuple(x.shape[1:])}, and of train_x "
                f"{data.input_shape}; give both alike"
            )
        if y.dtype != data.train_y.dtype:
            raise UserError(
                f"{NAME}: {split}_y is {y.dtype}, and train_y {data.train_y.dtype}; give both alike"
            )
        _require_targets(y, f"{split}_y", data.num_classes)
        for name, tensor in ((f"{split}_x", x), (f"{split}_y", y)):
            if not tensor.isfinite().all():
                raise UserError(f"{NAME}: {name} is not finite everywhere")
    channels = data.input_shape[0]
    for name in ("normalization_mean", "normalization_std"):
        count = len(getattr(data, name))
        if count not in (1, channels):
            raise UserError(
                f"{NAME}: {name} has {count} values, and an input has {channels} channels; give "
                f"one for all, or {channels}"
            )


def _require_targets(y: Tensor, name: str, num_classes: int) -> None:
    if y.is_floating_point():
        if y.dtype != torch.float32 or num_classes != 1:
            raise UserError(
                f"{NAME}: {name} is {y.dtype} with num_classes = {num_classes}; real targets are "
                "float32 with num_classes = 1, classes are int64"
            )
        return
    if y.dtype != torch.int64:
        raise UserError(f"{NAME}: {name} is {y.dtype}; give classes as int64, y.long()")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        raise UserError(
            f"{NAME}: {name} has classes from {low} to {high}, and num_classes = {num_classes}; "
            f"classes are from 0 to num_classes - 1"
        )


def own_weights(
    given: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]], models: Sequence[nn.Module]
) -> None:
    """Put weights of the user's own, W_0, into the models: state dicts, one for all or one each.

    Raises:
        UserError: which of them does not fit, and how.
    """
    states = [given] * len(models) if isinstance(given, Mapping) else list(given)
    if len(states) != len(models):
        raise UserError(
            f"initial_state has {len(states)} state dicts for {len(models)} runs; give one for "
            "all, or one for each"
        )
    for index, (state, model) in enumerate(zip(states, models, strict=True)):
        which = "initial_state" if isinstance(given, Mapping) else f"initial_state[{index}]"
        expected = model.state_dict()
        if lacking := [name for name in expected if name not in state]:
            raise UserError(f"{which} lacks {', '.join(lacking)}, which the network has")
        if foreign := [str(name) for name in state if name not in expected]:
            raise UserError(f"{which} has {', '.join(foreign)}, which the network has not")
        for name, value in expected.items():
            found = state[name]
            if not isinstance(found, Tensor) or found.shape != value.shape:
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise UserError(
                    f"{which}: {name} is {shape}, expected a tensor of {tuple(value.shape)}"
                )
            if not found.isfinite().all():
                raise UserError(f"{which}: {name} is not finite everywhere")
        model.load_state_dict(state)
