"""Crops and mirroring against a loop over pixels, and what a run makes of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from gisgd_ray.config.data import DataConfig
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.augmentation import Augmentation, crop_and_flip, pixel_range
from gisgd_ray.data.dataset import Dataset, epoch_batches, normalized
from gisgd_ray.data.stored import RawDataset
from gisgd_ray.training import loop as training
from gisgd_ray.training.stepping import SingleRun
from tests.support import reference, reference_networks
from tests.support.runs import config, finish, run, weight_bits

SHAPE = (3, 6, 7)


def images(n: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))


def colours(seed: int = 0) -> Dataset:
    """Random bytes, every channel with a brightness of its own, 0 and 255 among them."""
    source = np.random.RandomState(seed)
    top = np.array([256, 200, 90])[:, None, None]
    pixels = (source.rand(40, 3, 8, 8) * top).astype(np.uint8)
    pixels[0, :, 0, 0], pixels[0, :, 0, 1] = 0, 255
    labels = source.randint(0, 10, 40)
    return normalized(
        RawDataset(
            train_images=pixels[:30],
            train_labels=labels[:30],
            test_images=pixels[30:],
            test_labels=labels[30:],
            num_classes=10,
        )
    )


def augmentation(*, padding: int, flip: bool, seed: int = 0, **changes: Any) -> Augmentation:
    black = changes.get("black", torch.tensor([-1.0, -2.0, -3.0]))
    return Augmentation(padding=padding, flip=flip, black=black, seed=seed)


class TestCropAndFlip:
    @pytest.mark.parametrize("padding", [0, 1, 3, 6])
    def test_pixel_by_pixel(self, padding):
        x, black = images(30), torch.tensor([5.0, 6.0, 7.0])
        source = torch.Generator().manual_seed(1)
        rows, columns = torch.randint(2 * padding + 1, (2, 30), generator=source)
        mirrored = torch.randint(2, (30,), generator=source).bool()
        rows[0], columns[0], rows[1], columns[1] = 0, 2 * padding, 2 * padding, 0
        found = crop_and_flip(x, rows, columns, mirrored, padding=padding, black=black)
        for i in range(30):
            expected = reference_networks.crop(
                x[i],
                row=int(rows[i]),
                column=int(columns[i]),
                mirrored=bool(mirrored[i]),
                padding=padding,
                black=black.tolist(),
            )
            assert torch.equal(found[i], expected)

    @pytest.mark.parametrize("mirrored", [False, True])
    def test_as_torchvision_does_it(self, mirrored):
        x = images(1)
        padded = transforms.pad(x[0], [2, 2, 2, 2], fill=[5.0, 6.0, 7.0])
        expected = transforms.crop(padded, 4, 1, 6, 7)
        expected = transforms.horizontal_flip(expected) if mirrored else expected
        found = crop_and_flip(
            x,
            *(torch.tensor([4]), torch.tensor([1]), torch.tensor([mirrored])),
            padding=2,
            black=torch.tensor([5.0, 6.0, 7.0]),
        )
        assert torch.equal(found[0], expected)

    @pytest.mark.parametrize("padding", [0, 2])
    def test_the_middle_crop_is_the_image(self, padding):
        x, middle = images(4), torch.full((4,), padding)
        none = torch.zeros(4, dtype=torch.bool)
        black = torch.tensor([5.0, 6.0, 7.0])
        found = crop_and_flip(x, middle, middle, none, padding=padding, black=black)
        assert torch.equal(found, x)
        assert found.data_ptr() != x.data_ptr()

    def test_leaves_the_images_as_they_are(self):
        x = images(9)
        kept = x.clone()
        augmentation(padding=2, flip=True)(x, 0).zero_()
        assert torch.equal(x, kept)


class TestBlack:
    def test_edges_of_the_pixels_range_by_channel(self):
        data = colours()
        black, white = pixel_range(data)
        for c, (mean, std) in enumerate(
            zip(data.normalization_mean, data.normalization_std, strict=True)
        ):
            assert float(black[c]) == pytest.approx((0 / 255 - mean) / std, rel=1e-6)
            assert float(white[c]) == pytest.approx((255 / 255 - mean) / std, rel=1e-6)
        assert len(set(black.tolist())) == 3

    def test_are_to_the_bit_what_such_pixels_have_become(self):
        data = colours()
        black, white = pixel_range(data)
        assert torch.equal(data.train_x[0, :, 0, 0], black)
        assert torch.equal(data.train_x[0, :, 0, 1], white)
        assert (black.dtype, white.dtype) == (torch.float32, torch.float32)

    def test_frames_the_crops(self):
        """A crop of the corner: what lies outside the image is a raw 0 in every channel."""
        data = colours()
        augment = Augmentation.of(DataConfig(crop_padding=8), data, seed=0)
        assert augment is not None
        found = augment(data.train_x.clone(), 0)
        black, _ = pixel_range(data)
        framed = (found == black[:, None, None]).all(dim=1).float().mean()
        # Offsets are uniform in -8 .. 8: a pixel is inside with (1 - mean |offset| / 8)^2.
        inside = (1 - np.abs(np.arange(-8, 9)).mean() / 8) ** 2
        assert float(framed) == pytest.approx(1 - inside, abs=0.1)


class TestDraws:
    def test_every_crop_is_as_likely_and_half_are_mirrored(self):
        """From a picture whose pixels are numbered the middle pixel of a crop tells the rest."""
        padding, n = 2, 5000
        numbered = torch.arange(64.0).view(1, 1, 8, 8).expand(n, 1, 8, 8)
        black = torch.tensor([-1.0])
        crops = augmentation(padding=padding, flip=True, seed=3, black=black)(numbered, 17)
        here, right = crops[:, 0, 4, 3].long(), crops[:, 0, 4, 4].long()
        mirrored = right < here
        rows = here // 8 - 4 + padding
        columns = here % 8 - torch.where(mirrored, 4, 3) + padding
        cells = (rows * 5 + columns) * 2 + mirrored
        counts = torch.bincount(cells, minlength=50)
        assert len(counts) == 50
        assert stats.chisquare(counts.numpy()).pvalue > 0.01
        assert float(mirrored.float().mean()) == pytest.approx(0.5, abs=0.02)

    def test_a_function_of_seed_and_step_alone(self):
        x = images(20)
        augment = augmentation(padding=2, flip=True)
        first = [augment(x, step) for step in (0, 1)]
        torch.manual_seed(9)
        before = torch.get_rng_state()
        again = augmentation(padding=2, flip=True)
        for step in (1, 0):  # in another order, by another object
            assert torch.equal(again(x, step), first[step])
        assert torch.equal(torch.get_rng_state(), before)
        assert not torch.equal(*first)
        assert not torch.equal(augmentation(padding=2, flip=True, seed=1)(x, 0), first[0])

    def test_mirroring_is_drawn_apart_from_the_crops(self):
        """Switched on or off it changes no offset."""
        x = images(20)
        crops, both = (augmentation(padding=2, flip=flip)(x, 0) for flip in (False, True))
        same = (crops == both).flatten(1).all(dim=1)
        turned = (crops.flip(-1) == both).flatten(1).all(dim=1)
        assert (same | turned).all()
        assert 0 < int(same.sum()) < 20

    def test_flips_without_crops(self):
        x = images(50)
        found = augmentation(padding=0, flip=True)(x, 0)
        same = (found == x).flatten(1).all(dim=1)
        assert torch.equal(found[~same], x[~same].flip(-1))
        assert 10 < int(same.sum()) < 40

    def test_nothing_asked_for_nothing_done(self):
        assert Augmentation.of(DataConfig(), colours(), seed=0) is None
        x = images(5)
        assert torch.equal(augmentation(padding=0, flip=False)(x, 0), x)


AUGMENTED = {"data.crop_padding": 3, "data.flip": True}


def batches_of(trial: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The indices of every batch of a run."""
    seen: list[list[int]] = []
    train_on = SingleRun.train_on

    def note(self: SingleRun, indices: Tensor, **kwargs: Any) -> None:
        seen.append(indices.tolist())
        train_on(self, indices, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(SingleRun, "train_on", note)
        finish(training.start(trial))
    return seen


class TestRuns:
    def test_change_the_weights_and_not_the_batches(self, monkeypatch):
        plain, augmented = (batches_of(config(c), monkeypatch) for c in ({}, AUGMENTED))
        assert plain == augmented
        expected = [
            indices.tolist()
            for epoch in range(3)
            for indices in epoch_batches(200, 60, seed=0, epoch=epoch, last_batch="keep")
        ]
        assert augmented == expected
        assert weight_bits(run().state) != weight_bits(run(AUGMENTED).state)
        assert run(AUGMENTED).points[0] == run().points[0]  # what is evaluated is never augmented
        assert "augmented data" in run(AUGMENTED).row["outside_theorem"]

    def test_measure_the_augmented_batches(self):
        """Step by step, the frame of the digits' own black, another draw in every epoch."""
        state = training.start(config(AUGMENTED))
        data, expected = state.dataset, []
        augment = Augmentation.of(state.config.data, data, seed=0)
        assert augment is not None
        for step in range(6):
            epoch, position = divmod(step, 4)
            batches = epoch_batches(200, 60, seed=0, epoch=epoch, last_batch="keep")
            x, y = data.train_x[batches[position]], data.train_y[batches[position]]
            moments = reference.batch_moments(state.model, augment(x, step), y, "cross_entropy")
            expected.append(moments.per_sample_dispersion)
            state.stepper.step(step, learning_rate=0.1)
        found = state.stepper.drain().per_sample_dispersion
        assert found.tolist() == pytest.approx(expected, rel=1e-4)

    def test_leave_the_data_set_as_it_is(self):
        state = training.start(config(AUGMENTED))
        own = {name: getattr(state.dataset, name).clone() for name in ("train_x", "train_y")}
        copied = replace(state.dataset, **own)
        finish(state)
        assert torch.equal(copied.train_x, state.dataset.train_x)
        assert torch.equal(copied.train_y, state.dataset.train_y)
