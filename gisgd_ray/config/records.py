"""What is known of a dataset, a model or a training scheme by its name: a record each.

What reads, builds or draws one is named, as "FILE:FUNCTION" of its package, and imported when it is
asked for: its file is all that the package needs to know of it.
"""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from importlib import import_module
from typing import Any, Generic, Literal, TypeVar

from gisgd_ray.errors import UserError


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
    declared_in = ""
    """The file of its record."""

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
                f"{file}.py, which its record in gisgd_ray/config/{self.declared_in} names; add it "
                "there"
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
    declared_in = "catalogue.py"

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
    of outputs and, by keyword, the fields of its section."""

    kind = "model.name"
    package = "networks"
    declared_in = "model.py"

    smallest_image: int | None = None
    """Pixels along the shorter side that it needs; None: it takes vectors as well."""
    batchnorm: bool = False
    """In training a sample's output depends on the others of its batch."""
    theorem: Literal["theorem3", "theorem4"] | None = None
    """Its own; such a network has one trained layer and one real output."""


@dataclass(frozen=True, kw_only=True)
class SchemeRecord(Record):
    """A training scheme. ``made_by`` builds it, a :class:`gisgd_ray.schemes.base.Scheme`, from its
    section, the network and a :class:`gisgd_ray.schemes.base.Setting`."""

    kind = "scheme.name"
    package = "schemes"
    declared_in = "scheme.py"

    gradient: Literal["plain", "multiple", "another"] = "another"
    """The plain one, or a multiple of it by a factor known at every step (both made by
    ``Step.plain`` and ``Step.scale`` alone), or another."""
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
        raise UserError(f"{name!r} has no record; CONTRIBUTING.md says how to add one")

    def printed(self, name: str) -> str:
        """The name as it is printed; its own if it has no record."""
        return self[name].printed if name in self else name
