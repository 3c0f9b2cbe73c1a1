"""Configuration of the data."""

import math

from pydantic import Field, field_validator

from gisgd_ray.config.catalogue import DATASETS, DatasetName
from gisgd_ray.config.frozen import Frozen


class DataConfig(Frozen):
    """Which samples, and what is done to their labels."""

    dataset: DatasetName = Field(
        "mnist5k",
        description="mnist5k is 5,000 real MNIST digits that need no download; teacher is the "
        "regression data of Figures 7 and 8, drawn anew for every seed",
    )
    train_fraction: float = Field(
        1.0, gt=0, le=1, description="random fraction of the training split used, the same always"
    )
    label_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="fraction of train and of test labels redrawn uniformly over the K classes, "
        "once per seed and split",
    )
    normalization: str = Field(
        "auto",
        description="of inputs scaled to [0, 1]: auto, by the mean and std of each channel over "
        "the training split; authors, by the numbers in the authors' code (MNIST 0.1307/0.3081; "
        "CIFAR-10's); or by numbers, MEAN/STD as in 0.1307/0.3081, of several channels between "
        "colons, 0.49:0.48:0.45/0.25:0.24:0.26",
    )
    crop_padding: int = Field(
        0,
        ge=0,
        description="augmentation: training images are padded with black by so many pixels and "
        "cropped back at random, anew in every step (paper: 4 for CIFAR, 2 for SVHN); 0: never",
    )
    flip: bool = Field(
        False, description="augmentation: half of the training images of a batch are mirrored"
    )

    @property
    def augmented(self) -> bool:
        """Whether training images are cropped or mirrored."""
        return self.crop_padding > 0 or self.flip

    @property
    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Means and stds to normalise by, one for all channels or one each; None: the data's."""
        if self.normalization == "auto":
            return None
        if self.normalization == "authors":
            return DATASETS[self.dataset].authors
        means, stds = (tuple(map(float, part.split(":"))) for part in self.normalization.split("/"))
        return means, stds

    @field_validator("normalization")
    @classmethod
    def _is_normalization(cls, value: str) -> str:
        if value in ("auto", "authors"):
            return value
        try:
            means, stds = ([float(v) for v in part.split(":")] for part in value.split("/"))
        except ValueError:
            means, stds = [], []
        sound = means and len(means) == len(stds) and all(map(math.isfinite, means + stds))
        if not sound or min(stds) <= 0:
            raise ValueError(
                f"data.normalization = {value!r} must be auto, authors, or as many means as stds "
                "above 0, as in 0.1307/0.3081 or 0.49:0.48:0.45/0.25:0.24:0.26"
            )
        # Equal numbers are written alike: the trial's name is made of it.
        return "/".join(
            ":".join(repr(v + 0.0).removesuffix(".0") for v in part) for part in (means, stds)
        )
