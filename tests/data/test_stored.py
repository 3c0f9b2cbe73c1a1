"""Reading the true on-disk formats, and every way in which a file can be damaged."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from gisgd_ray.config.catalogue import DATASETS
from gisgd_ray.config.data import DataConfig
from gisgd_ray.data.dataset import load_dataset
from gisgd_ray.data.downloads import files_of, torchvision_splits
from gisgd_ray.data.stored import RawDataset, load_raw
from gisgd_ray.errors import DataError
from tests.support import ondisk

IDX_NAMES = ("mnist", "fashion_mnist")
UNREADABLE = Path("/proc/self/mem")
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Writes a small dataset into tmp_path and has it taken for the real one."""

    def write(name: str, *, gz: bool = False) -> tuple[ondisk.Written, dict[str, bytes]]:
        written = ondisk.make(name)
        files = ondisk.contents(name, written)
        ondisk.put(tmp_path, files, gz=gz)
        ondisk.trust(monkeypatch, name, written, files)
        return written, files

    return write


def assert_holds(raw: RawDataset, written: ondisk.Written) -> None:
    for field in written._fields:
        found = getattr(raw, field)
        assert found.dtype == (np.uint8 if field.endswith("images") else np.int64)
        np.testing.assert_array_equal(found, getattr(written, field), err_msg=field)


def sentence(name: str, folder: Path) -> str:
    """The message of the DataError that loading raises: one line, with the remedy."""
    with pytest.raises(DataError) as caught:
        load_raw(name, folder)
    message = str(caught.value)
    assert "\n" not in message
    assert f"to supply {name} without a network, put " in message
    assert "GISGD_DATA" in message
    assert all(file in message for file in files_of(name).paths)
    assert f"into {folder}" in message
    return message


class TestFormats:
    @pytest.mark.parametrize("name", ondisk.REAL_NAMES)
    def test_arrays_are_those_written(self, name, put, tmp_path):
        written, _ = put(name)
        raw = load_raw(name, tmp_path)
        assert_holds(raw, written)
        assert raw.num_classes == (100 if name == "cifar100" else 10)

    @pytest.mark.parametrize("name", IDX_NAMES)
    def test_gzipped_idx(self, name, put, tmp_path):
        written, _ = put(name, gz=True)
        before = sorted(tmp_path.rglob("*"))
        assert_holds(load_raw(name, tmp_path), written)
        assert sorted(tmp_path.rglob("*")) == before  # nothing unpacked beside them

    def test_unpacked_and_gzipped_may_be_mixed(self, put, tmp_path):
        written, _ = put("mnist")
        path = tmp_path / files_of("mnist").paths[0]
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        assert_holds(load_raw("mnist", tmp_path), written)

    @pytest.mark.parametrize("name", IDX_NAMES)
    def test_torchvision_reads_the_same(self, name, put, tmp_path):
        """The IDX files, which are read here; the others torchvision reads."""
        put(name)
        raw = load_raw(name, tmp_path)
        ours = [(raw.train_images, raw.train_labels), (raw.test_images, raw.test_labels)]
        for (images, labels), theirs in zip(ours, torchvision_splits(name, tmp_path), strict=True):
            np.testing.assert_array_equal(images, theirs.data[:, None])
            np.testing.assert_array_equal(labels, theirs.targets)

    @pytest.mark.parametrize("name", ondisk.REAL_NAMES)
    def test_through_to_the_tensors(self, name, put, tmp_path, monkeypatch):
        """Un-normalised, every tensor holds the written pixels over 255, channel by channel."""
        written, _ = put(name)
        monkeypatch.setenv("GISGD_DATA", str(tmp_path))
        loaded = load_dataset(DataConfig(dataset=name), seed=0)
        mean = torch.tensor(loaded.normalization_mean, dtype=torch.float64).view(-1, 1, 1)
        std = torch.tensor(loaded.normalization_std, dtype=torch.float64).view(-1, 1, 1)
        for x, images in (
            (loaded.train_x, written.train_images),
            (loaded.test_x, written.test_images),
        ):
            assert x.is_contiguous()
            unit = x.double() * std + mean
            expected = torch.from_numpy(images).double() / 255
            torch.testing.assert_close(unit, expected, rtol=0, atol=1e-6)
        assert loaded.train_y.tolist() == written.train_labels.tolist()
        assert loaded.num_samples == len(written.train_labels)

    @pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="needs Debian's dataset-fashion-mnist")
    def test_the_real_fashion_mnist(self, tmp_path, monkeypatch):
        (tmp_path / "FashionMNIST").mkdir()
        (tmp_path / "FashionMNIST" / "raw").symlink_to(DEBIAN_FOLDER)
        monkeypatch.setenv("GISGD_DATA", str(tmp_path))
        loaded = load_dataset(DataConfig(dataset="fashion_mnist"), seed=0)
        assert loaded.train_y.bincount().tolist() == [6000] * 10
        assert loaded.test_y.bincount().tolist() == [1000] * 10
        # as commonly quoted for this set
        assert loaded.normalization_mean == pytest.approx((0.2860,), abs=5e-5)
        assert loaded.normalization_std == pytest.approx((0.3530,), abs=5e-5)

    def test_sizes_of_the_real_sets(self):
        sizes = {name: (known.train, known.test) for name, known in DATASETS.items()}
        assert (
            sizes.items()
            >= {
                "mnist5k": (4_000, 1_000),
                "mnist": (60_000, 10_000),
                "fashion_mnist": (60_000, 10_000),
                "cifar10": (50_000, 10_000),
                "cifar100": (50_000, 10_000),
                "svhn": (73_257, 26_032),
                "teacher": (20_000, 20_000),
            }.items()
        )


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


class TestDamagedIdx:
    IMAGES, LABELS = files_of("mnist").paths[:2]

    @pytest.mark.parametrize(
        ("file", "damage", "expected", "found"),
        [
            (
                IMAGES,
                truncated,
                f"expected {50 * 784} bytes after",
                f"found {(16 + 50 * 784) // 2 - 16};",
            ),
            (IMAGES, lambda c: c + b"\0", f"expected {50 * 784} bytes after", "found more;"),
            (
                IMAGES,
                lambda c: c[:7],
                "00000803 00000032 0000001c 0000001c",
                "found 00000803 000000;",
            ),
            (IMAGES, lambda _: b"", "expected the IDX header", "found an empty file;"),
            (IMAGES, lambda c: b"<html>" + c, "expected the IDX header 00000803", "found 3c68746d"),
            (
                IMAGES,
                lambda c: c[:16] + bytes(len(c) - 16),
                "expected data",
                f"{50 * 784} zero bytes;",
            ),
            (LABELS, truncated, "expected 50 bytes after", "found 21;"),
            (
                LABELS,
                lambda c: c[:-1] + b"\x0a",
                "expected labels from 0 to 9",
                "found the label 10;",
            ),
            (LABELS, lambda _: ondisk.idx(np.ones(49)), "00000801 00000032", "00000801 00000031;"),
        ],
        ids=lambda v: None if callable(v) else str(v)[:30],
    )
    @pytest.mark.parametrize("gz", [False, True], ids=["unpacked", "gzipped"])
    def test_content(self, put, tmp_path, file, damage, expected, found, gz):
        _, files = put("mnist", gz=gz)
        content = damage(files[file])
        path = tmp_path / (f"{file}.gz" if gz else file)
        path.write_bytes(gzip.compress(content) if gz else content)
        message = sentence("mnist", tmp_path)
        assert message.startswith(f"{path} is damaged: expected ")
        assert expected in message
        assert found in message
        assert "delete it to have it downloaded again" in message

    @pytest.mark.parametrize(
        ("damage", "found"),
        [
            (truncated, "Compressed file ended"),
            (lambda c: c[:5], "Compressed file ended"),
            (lambda _: b"<html>", "Not a gzipped file"),
            (lambda c: c[:-8] + bytes(4) + c[-4:], "CRC check failed"),
            (lambda c: c[:30] + b"\xff" * 40 + c[70:], "Error -3"),
        ],
        ids=["half", "header", "html", "checksum", "bytes"],
    )
    def test_gzip(self, put, tmp_path, damage, found):
        put("mnist", gz=True)
        path = tmp_path / f"{self.IMAGES}.gz"
        path.write_bytes(damage(path.read_bytes()))
        message = sentence("mnist", tmp_path)
        assert message.startswith(
            f"{path} is damaged: expected an IDX file of 50 x 28 x 28 bytes, found "
        )
        assert found in message

    def test_an_unpacked_file_named_as_a_gzipped_one(self, put, tmp_path):
        """As some browsers leave it."""
        _, files = put("mnist", gz=True)
        path = tmp_path / f"{self.IMAGES}.gz"
        path.write_bytes(files[self.IMAGES])
        assert sentence("mnist", tmp_path).startswith(
            f"{path} is damaged: expected a gzipped file, found an unpacked one (rename it to "
            "train-images-idx3-ubyte); "
        )

    def test_a_gzipped_file_named_as_an_unpacked_one(self, put, tmp_path):
        """As some browsers leave it."""
        put("mnist", gz=True)
        path = tmp_path / self.IMAGES
        path.with_name(path.name + ".gz").rename(path)
        assert sentence("mnist", tmp_path).startswith(
            f"{path} is damaged: expected an unpacked file, found a gzipped one (rename it to "
            "train-images-idx3-ubyte.gz); "
        )

    def test_another_dataset_of_the_format(self, put, tmp_path, monkeypatch):
        """Sound files with another number of samples, as a cut-down MNIST would have."""
        put("mnist")
        ondisk.resize(monkeypatch, "mnist", train=60_000)
        message = sentence("mnist", tmp_path)
        assert "expected the IDX header 00000803 0000ea60 0000001c 0000001c" in message
        assert "60000 x 28 x 28" in message


class TestDamagedBinary:
    """CIFAR and SVHN, whose files torchvision knows the MD5 sums of."""

    @pytest.mark.parametrize("damage", [truncated, lambda c: c[:-1] + b"?", lambda _: b""])
    @pytest.mark.parametrize(
        ("name", "index"),
        [("cifar10", 2), ("cifar10", 5), ("cifar100", 0), ("svhn", 0), ("svhn", 1)],
    )
    def test_content(self, put, tmp_path, name, index, damage):
        _, files = put(name)
        file = files_of(name).paths[index]
        content = damage(files[file])
        (tmp_path / file).write_bytes(content)
        message = sentence(name, tmp_path)
        assert message.startswith(f"{tmp_path / file} is damaged: ")
        assert f"expected MD5 {ondisk.md5(files[file])}" in message
        assert f"found {ondisk.md5(content)} ({len(content)} bytes)" in message

    def test_no_pickle_is_opened_before_its_sum_is_right(self, put, tmp_path):
        """A pickle can run code."""
        put("cifar10")
        path = tmp_path / files_of("cifar10").paths[0]
        evidence = tmp_path / "evidence"
        path.write_bytes(b"cbuiltins\nopen\n(S'" + str(evidence).encode() + b"'\nS'w'\ntR.")
        sentence("cifar10", tmp_path)
        assert not evidence.exists()

    @pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
    @pytest.mark.parametrize(("size", "split"), [("train", "training"), ("test", "test")])
    def test_number_of_samples(self, put, tmp_path, monkeypatch, name, size, split):
        put(name)
        true = getattr(DATASETS[name], size)
        ondisk.resize(monkeypatch, name, **{size: 12_345})
        assert f"expected 12345 {split} samples, found {true};" in sentence(name, tmp_path)


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs a file that not even root may read")
@pytest.mark.parametrize("name", ["mnist", "svhn"])
def test_unreadable_file(put, tmp_path, name):
    put(name)
    path = tmp_path / files_of(name).paths[0]
    path.unlink()
    path.symlink_to(UNREADABLE)
    message = sentence(name, tmp_path)
    assert re.search(
        rf"{path.name} is damaged: expected .* found \[Errno 5\] Input/output", message
    )
