"""Datasets as whole tensors on the device, label noise, and the batching trajectory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from gisgd_ray.config.catalogue import DATASETS
from gisgd_ray.config.checks import num_train_samples, steps_per_epoch
from gisgd_ray.config.data import DataConfig
from gisgd_ray.data.downloads import data_folder
from gisgd_ray.data.stored import RawDataset, load_raw
from gisgd_ray.errors import DataError
from gisgd_ray.randomness import generator

_CHUNK = 100
"""Samples handled at once where NumPy needs 8 bytes a pixel for a while: what a cache holds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A training and a test split in full, on one device.

    The tensors are shared between the trials of a process: never write to them.

    Attributes:
        train_x, test_x: normalised inputs, ``(n, C, H, W)`` float32 (vectors: ``(n, d_0)``).
        train_y, test_y: labels in ``0 .. num_classes - 1``, ``(n,)`` int64, noise included; in
            regression the targets, ``(n,)`` float32.
        num_classes: K; 1 in regression.
        normalization_mean, normalization_std: one per channel, of inputs scaled to [0, 1].
    """

    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor
    num_classes: int
    normalization_mean: tuple[float, ...]
    normalization_std: tuple[float, ...]

    @property
    def num_samples(self) -> int:
        """n: training samples."""
        return len(self.train_y)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one input, or (d_0,)."""
        return tuple(self.train_x.shape[1:])


def load_dataset(config: DataConfig, *, seed: int, device: torch.device | str = "cpu") -> Dataset:
    """The dataset of a trial: normalised, reduced to ``train_fraction``, labels made noisy.

    Inputs are scaled to [0, 1], then normalised by the per-channel mean and (population) standard
    deviation of the whole training split, or by those of ``config.normalization``. Inputs and clean
    labels are kept for the next trial of this process, so only the noisy labels differ between
    trials of different seeds.

    Args:
        config: which dataset, which fraction of its training split, how much label noise.
        seed: the trial's; decides the label noise, and the samples of the teacher's data.
        device: where the tensors go.

    Raises:
        DataError: a file is missing (and cannot be downloaded) or damaged.
    """
    if DATASETS[config.dataset].classes is None:
        samples = num_train_samples(config)
        return _drawn(config.dataset, seed, samples, str(torch.device(device)))
    base = _load_subset(
        config.dataset,
        num_train_samples(config),
        data_folder(),
        str(torch.device(device)),
        config.moments,
    )
    return noisy(base, config.label_noise, seed=seed)


def noisy(base: Dataset, label_noise: float, *, seed: int) -> Dataset:
    """The dataset with a fraction of the labels of either split redrawn; see
    :func:`with_label_noise`."""
    labels = {
        split: with_label_noise(
            clean, label_noise, num_classes=base.num_classes, seed=seed, split=split
        )
        for split, clean in (("train", base.train_y), ("test", base.test_y))
    }
    return replace(base, train_y=labels["train"], test_y=labels["test"])


@lru_cache(maxsize=2)
def _drawn(name: str, seed: int, num_samples: int, device: str) -> Dataset:
    """Taken as drawn, not normalised."""
    splits = DATASETS[name].function()(seed, num_train=num_samples)
    train_x, train_y, test_x, test_y = (part.to(device) for part in splits)
    return Dataset(
        train_x=train_x,
        train_y=train_y,
        test_x=test_x,
        test_y=test_y,
        num_classes=1,
        normalization_mean=(0.0,),
        normalization_std=(1.0,),
    )


Moments = tuple[tuple[float, ...], tuple[float, ...]]
"""Means and stds, one for all channels or one for each."""


@lru_cache(maxsize=2)
def _load_subset(
    name: str, num_samples: int, folder: Path, device: str, moments: Moments | None
) -> Dataset:
    return subset(_load_full(name, folder, device, moments), num_samples)


def subset(base: Dataset, num_samples: int) -> Dataset:
    """The dataset, its training split cut to a random subset that no seed changes.

    Subsets of one dataset are nested: a larger one holds the smaller ones.
    """
    if num_samples == base.num_samples:
        return base
    # RandomState, unlike torch and NumPy's newer generators, never changes its stream.
    chosen = np.random.RandomState(0).permutation(base.num_samples)[:num_samples]
    index = torch.from_numpy(chosen).to(base.train_x.device)
    return replace(base, train_x=base.train_x[index], train_y=base.train_y[index])


@lru_cache(maxsize=2)
def _load_full(name: str, folder: Path, device: str, moments: Moments | None) -> Dataset:
    return normalized(load_raw(name, folder), device=device, moments=moments)


def normalized(
    raw: RawDataset, *, device: torch.device | str = "cpu", moments: Moments | None = None
) -> Dataset:
    """Scale the pixels to [0, 1] and normalise them by ``moments``, or the training split's own.

    Floats are taken as they are; a channel of a vector is one of its entries. What never varies is
    not divided.

    Bytes have 256 values, so both moments follow exactly (float64) from a histogram per channel,
    and normalising is a look-up: no float copy of the split besides the result.
    """
    if raw.train_images.dtype != np.uint8:
        return _normalized_floats(raw, device=device, moments=moments)
    channels = raw.train_images.shape[1]
    levels = np.arange(256) / 255
    counts = np.zeros((channels, 256), dtype=np.int64)
    for chunk in _chunks(raw.train_images):
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[:, channel].ravel(), minlength=256)
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ levels
    std = np.sqrt((weights * (levels - mean[:, None]) ** 2).sum(axis=1))
    std[std == 0] = 1
    if moments is not None:
        mean, std = _by_channel(moments, channels)
    table = ((levels - mean[:, None]) / std[:, None]).astype(np.float32)

    def look_up(images: NDArray[np.uint8]) -> torch.Tensor:
        result = np.empty(images.shape, dtype=np.float32)
        start = 0
        for chunk in _chunks(images):
            for channel in range(channels):
                result[start : start + len(chunk), channel] = table[channel].take(chunk[:, channel])
            start += len(chunk)
        return torch.from_numpy(result).to(device)

    return _dataset(raw, look_up, mean, std, device)


def _by_channel(moments: Moments, channels: int) -> tuple[NDArray[np.float64], ...]:
    return tuple(np.array(np.broadcast_to(given, channels), np.float64) for given in moments)


def _normalized_floats(
    raw: RawDataset, *, device: torch.device | str, moments: Moments | None
) -> Dataset:
    shape = raw.train_images.shape
    wide = (1, -1, *[1] * (len(shape) - 2))
    axes = tuple(axis for axis in range(len(shape)) if axis != 1)
    count = raw.train_images.size / shape[1]
    mean = raw.train_images.sum(axis=axes, dtype=np.float64) / count
    squares = np.zeros(shape[1])
    for chunk in _chunks(raw.train_images):
        squares += ((chunk - mean.reshape(wide)) ** 2).sum(axis=axes)
    std = np.sqrt(squares / count)
    std[std == 0] = 1
    if not np.isfinite([mean, std]).all():
        raise DataError("the training inputs are not all finite numbers; leave such samples out")
    if moments is not None:
        mean, std = _by_channel(moments, shape[1])

    def scaled(inputs: NDArray[Any]) -> torch.Tensor:
        result = np.empty(inputs.shape, dtype=np.float32)
        start = 0
        for chunk in _chunks(inputs):
            result[start : start + len(chunk)] = (chunk - mean.reshape(wide)) / std.reshape(wide)
            start += len(chunk)
        return torch.from_numpy(result).to(device)

    return _dataset(raw, scaled, mean, std, device)


def _dataset(
    raw: RawDataset,
    scaled: Callable[[NDArray[Any]], torch.Tensor],
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
    device: torch.device | str,
) -> Dataset:
    return Dataset(
        train_x=scaled(raw.train_images),
        train_y=torch.from_numpy(raw.train_labels.astype(np.int64, copy=False)).to(device),
        test_x=scaled(raw.test_images),
        test_y=torch.from_numpy(raw.test_labels.astype(np.int64, copy=False)).to(device),
        num_classes=raw.num_classes,
        normalization_mean=tuple(mean.tolist()),
        normalization_std=tuple(std.tolist()),
    )


def _chunks(images: NDArray[Any]) -> Iterator[NDArray[Any]]:
    bounds = [*range(0, len(images), _CHUNK), len(images)]
    for start, stop in pairwise(bounds):
        yield images[start:stop]


def with_label_noise(
    labels: torch.Tensor, fraction: float, *, num_classes: int, seed: int, split: str
) -> torch.Tensor:
    """Redraw exactly ``round(fraction * n)`` labels uniformly over all K classes.

    A redrawn label may fall on its old class: about ``fraction * (1 - 1/K)`` of the labels change.
    The draw depends on (seed, split, n) alone, so a restored trial has the same labels again.

    Args:
        labels: ``(n,)`` int64, left as they are.
        fraction: from 0 to 1.
        num_classes: K.
        seed: the trial's.
        split: ``"train"`` or ``"test"``, noisy independently of one another.

    Returns:
        A new tensor, or ``labels`` itself if nothing is redrawn.
    """
    count = round(fraction * len(labels))
    if count == 0:
        return labels
    source = generator(seed, "label_noise", split)
    positions = torch.randperm(len(labels), generator=source)[:count]
    redrawn = torch.randint(num_classes, (count,), generator=source)
    noisy = labels.clone()
    noisy[positions.to(labels.device)] = redrawn.to(labels.device)
    return noisy


def epoch_batches(
    num_samples: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    last_batch: Literal["keep", "drop"],
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, ...]:
    """The batches of one epoch: disjoint index tensors from a fresh permutation of the samples.

    The permutation depends on (seed, epoch) alone: nothing needs saving, and a trial restored
    inside an epoch goes on with ``epoch_batches(...)[steps_done_in_epoch:]``.

    Args:
        num_samples: n.
        batch_size: b.
        seed: the trial's.
        epoch: any count; the paper's batching trajectory is that of all epochs in turn.
        last_batch: where b does not divide n, ``"keep"`` the smaller last batch, or ``"drop"`` it
            (the permutation, and so the samples left out, differ from epoch to epoch).
        device: where the indices go, in one copy for the whole epoch.

    Returns:
        As many tensors ``(b,)`` int64 as :func:`gisgd_ray.config.checks.steps_per_epoch` says, the
        last one smaller if kept.
    """
    steps = steps_per_epoch(num_samples, batch_size, last_batch)
    order = torch.randperm(num_samples, generator=generator(seed, "batching", epoch)).to(device)
    return tuple(
        order[start : start + batch_size] for start in range(0, steps * batch_size, batch_size)
    )
