"""Small datasets in the true on-disk formats, written from the formats' descriptions.

``make`` draws images and labels, ``contents`` gives the files' bytes by path below the data folder,
``trust`` has gisgd_ray and torchvision take the small files for the real ones.
"""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import threading
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.io
import torchvision

from gisgd_ray.config.catalogue import DATASETS
from gisgd_ray.data.downloads import files_of

REAL_NAMES = ("mnist", "fashion_mnist", "cifar10", "cifar100", "svhn")


class Written(NamedTuple):
    """What the files hold: images ``(n, C, H, W)`` uint8, labels ``(n,)`` from 0."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def make(name: str, *, num_train: int = 50, num_test: int = 20, seed: int = 0) -> Written:
    """Random pixels, brighter in later channels, and all classes that fit."""
    rng = np.random.default_rng(seed)
    shape = (1, 28, 28) if "mnist" in name else (3, 32, 32)
    classes = 100 if name == "cifar100" else 10

    def split(n: int) -> tuple[np.ndarray, np.ndarray]:
        channels = [rng.integers(0, 120 + 60 * c, (n, *shape[1:])) for c in range(shape[0])]
        images = np.stack(channels, axis=1).astype(np.uint8)
        return images, rng.permutation(np.arange(n) % classes)

    return Written(*split(num_train), *split(num_test))


def contents(name: str, data: Written) -> dict[str, bytes]:
    """Bytes of every file, unpacked, by its path below the data folder."""
    files = files_of(name).paths
    if files_of(name).gzipped:
        arrays = (
            data.train_images[:, 0],
            data.train_labels,
            data.test_images[:, 0],
            data.test_labels,
        )
        return dict(zip(files, map(idx, arrays), strict=True))
    if name == "svhn":
        return {
            files[0]: mat(data.train_images, data.train_labels),
            files[1]: mat(data.test_images, data.test_labels),
        }
    key = "labels" if name == "cifar10" else "fine_labels"
    *train, test = files
    images, labels = (np.array_split(a, len(train)) for a in (data.train_images, data.train_labels))
    result = {
        file: cifar_batch(i, y, key) for file, i, y in zip(train, images, labels, strict=True)
    }
    result[test] = cifar_batch(data.test_images, data.test_labels, key)
    return result


def idx(values: np.ndarray) -> bytes:
    """IDX: two zero bytes, type 8 (unsigned byte), dimensions, big-endian sizes, values."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def cifar_batch(images: np.ndarray, labels: np.ndarray, key: str) -> bytes:
    """A pickle as Python 2 wrote it: rows of 1024 red, 1024 green, 1024 blue bytes."""

    class Python2Pickler(pickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, np.dtype):
                return np.dtype, ("u1", 0, 1), (3, "|", None, None, None, -1, -1, 0)
            return NotImplemented

    rows = np.stack([np.concatenate([plane.ravel() for plane in image]) for image in images])
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump({"data": rows, key: labels.tolist()})
    return file.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


def mat(images: np.ndarray, labels: np.ndarray) -> bytes:
    """MATLAB: X[row, column, channel, sample], y[sample, 0], the digit 0 labelled 10."""
    x = np.empty((32, 32, 3, len(images)), np.uint8)
    for i, image in enumerate(images):
        for channel in range(3):
            x[:, :, channel, i] = image[channel]
    y = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
    file = io.BytesIO()
    scipy.io.savemat(file, {"X": x, "y": y}, do_compression=True)
    return file.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    """The tar.gz that CIFAR comes in."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def downloadable(name: str, files: dict[str, bytes]) -> dict[str, bytes]:
    """What the servers of the dataset hold, by file name."""
    layout = files_of(name)
    if layout.archive:
        return {layout.archive: archive(files)}
    if layout.gzipped:
        return {f"{Path(p).name}.gz": gzip.compress(c, mtime=0) for p, c in files.items()}
    return files


def put(folder: Path, files: dict[str, bytes], *, gz: bool = False) -> None:
    """Write files by relative path, gzipped if asked."""
    for path, content in files.items():
        target = folder / (f"{path}.gz" if gz else path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.compress(content) if gz else content)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def resize(monkeypatch: pytest.MonkeyPatch, name: str, **sizes: int) -> None:
    """Other numbers of ``train`` or ``test`` samples for a dataset."""
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], **sizes))


def trust(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    data: Written,
    files: dict[str, bytes],
    *,
    address: str = "http://127.0.0.1:9/",
) -> dict[str, bytes]:
    """Set the sizes, MD5 sums and addresses of a dataset to those of these files.

    Returns:
        What a server at ``address`` would have to hold, by file name.
    """
    resize(monkeypatch, name, train=len(data.train_labels), test=len(data.test_labels))
    source = getattr(torchvision.datasets, files_of(name).torchvision_class)
    served = downloadable(name, files)
    if files_of(name).gzipped:
        monkeypatch.setattr(source, "mirrors", [address])
        monkeypatch.setattr(source, "resources", [(f, md5(c)) for f, c in served.items()])
    elif name == "svhn":
        split_list = {
            split: [address + file, file, md5(files[file])]
            for split, file in zip(("train", "test"), files, strict=True)
        }
        monkeypatch.setattr(source, "split_list", split_list)
    else:
        sums = [[Path(path).name, md5(content)] for path, content in files.items()]
        monkeypatch.setattr(source, "train_list", sums[:-1])
        monkeypatch.setattr(source, "test_list", sums[-1:])
        monkeypatch.setattr(source, "url", address + source.filename)
        monkeypatch.setattr(source, "tgz_md5", md5(served[source.filename]))
    return served


class Server:
    """HTTP on 127.0.0.1 with given files; counts requests; may send some of them by half."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.cut_short: set[str] = set()
        self.stalled: set[str] = set()
        self.release = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                owner.requests[name] += 1
                if name not in owner.files:
                    self.send_error(404)
                    return
                content = owner.files[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if name in owner.cut_short | owner.stalled:
                    content = content[: len(content) // 2]
                self.wfile.write(content)
                self.wfile.flush()
                if name in owner.stalled:
                    owner.release.wait(60)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}/"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self._http.shutdown()
        self._http.server_close()
