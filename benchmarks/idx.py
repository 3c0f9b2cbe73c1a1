"""Random images in MNIST's files and sizes."""

from pathlib import Path

import numpy as np

from tests.support import ondisk


def write_mnist(folder: Path) -> None:
    """The four IDX files of MNIST under ``folder``: 60,000 and 10,000 random digits."""
    rng = np.random.default_rng(0)
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, samples in (("train", 60_000), ("t10k", 10_000)):
        images = rng.integers(0, 256, (samples, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, samples, dtype=np.uint8)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(ondisk.idx(images))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(ondisk.idx(labels))
