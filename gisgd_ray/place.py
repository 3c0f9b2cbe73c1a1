"""Where the results of a sweep are kept: one option decides, ``--out``."""

from dataclasses import dataclass
from pathlib import Path

from gisgd_ray.mirror import Mirror
from gisgd_ray.results import results_folder
from gisgd_ray.storage import Storage, is_uri


@dataclass(frozen=True)
class Place:
    """A folder, or a bucket with a folder of the driver's that it is a copy of.

    Attributes:
        folder: on the driver's disk; journal, tables, figures.
        storage: the same folder, or its place in the bucket; checkpoints.
        mirror: brings the folder to the bucket, if there is one.
    """

    folder: Path
    storage: str
    mirror: Mirror | None = None

    @staticmethod
    def of(out: str, name: str, *, make: bool = True) -> "Place":
        """Of the sweep ``name`` below ``out``, a folder or a bucket's URI.

        Raises:
            UserError: it cannot be written (with ``make``).
        """
        path = Path("results", *out.split("://")) if is_uri(out) else Path(out)
        folder = path.expanduser().absolute() / name
        if make:
            folder = results_folder(folder)
        if not is_uri(out):
            return Place(folder, str(folder))
        storage = Storage(f"{out.rstrip('/')}/{name}")
        return Place(folder, storage.where, Mirror(folder, storage))

    def __str__(self) -> str:
        return f"{self.storage} (worked on in {self.folder})" if self.mirror else str(self.folder)
