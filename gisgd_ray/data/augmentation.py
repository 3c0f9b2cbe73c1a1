"""Random crops and mirroring of a batch of images, on the device that holds them."""

import torch
from torch import Tensor

from gisgd_ray.config.data import DataConfig
from gisgd_ray.data.dataset import Dataset
from gisgd_ray.randomness import generator


def pixel_range(data: Dataset) -> tuple[Tensor, Tensor]:
    """Normalised values of raw pixels 0 and 255, each (C,), where the images are."""
    mean = torch.tensor(data.normalization_mean, dtype=torch.float64)
    std = torch.tensor(data.normalization_std, dtype=torch.float64)
    device, dtype = data.train_x.device, data.train_x.dtype
    return (-mean / std).to(device, dtype), ((1 - mean) / std).to(device, dtype)


def crop_and_flip(
    images: Tensor, rows: Tensor, columns: Tensor, mirrored: Tensor, *, padding: int, black: Tensor
) -> Tensor:
    """Crops of the size of the image from the image within a black frame.

    Args:
        images: (b, C, H, W), left as they are.
        rows, columns: upper left corner of each crop in the framed image, (b,) int64 in
            0 .. 2 * padding; ``padding`` is the image itself.
        mirrored: which crops are turned left to right, (b,) bool.
        padding: width of the frame in pixels.
        black: value of the frame by channel, (C,).
    """
    b, channels, height, width = images.shape
    size = (b, channels, height + 2 * padding, width + 2 * padding)
    framed = black.view(1, -1, 1, 1).expand(size).clone()
    framed[:, :, padding : padding + height, padding : padding + width] = images
    device = images.device
    down = rows[:, None] + torch.arange(height, device=device)
    across = torch.arange(width, device=device).expand(b, width)
    across = columns[:, None] + torch.where(mirrored[:, None], across.flip(1), across)
    sample = torch.arange(b, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return framed[sample, channel, down[:, None, :, None], across[:, None, None, :]]


class Augmentation:
    """The crops and mirrorings of a run: a function of (seed, step), the same on every device."""

    def __init__(self, *, padding: int, flip: bool, black: Tensor, seed: int):
        self._padding, self._flip, self._black, self._seed = padding, flip, black, seed

    @staticmethod
    def of(config: DataConfig, data: Dataset, *, seed: int) -> "Augmentation | None":
        """That of the configuration, or None if it asks for none."""
        if not config.augmented:
            return None
        black, _ = pixel_range(data)
        return Augmentation(padding=config.crop_padding, flip=config.flip, black=black, seed=seed)

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """Images (b, C, H, W) of update ``step`` + 1, augmented anew."""
        source = generator(self._seed, "augmentation", step)
        corners = torch.randint(2 * self._padding + 1, (2, len(images)), generator=source)
        mirrored = torch.randint(2, (1, len(images)), generator=source) * self._flip
        rows, columns, sides = torch.cat([corners, mirrored]).to(images.device, non_blocking=True)
        return crop_and_flip(
            images, rows, columns, sides.bool(), padding=self._padding, black=self._black
        )
