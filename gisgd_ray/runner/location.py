"""Where the results of a sweep are kept: one option decides, ``--out``."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from gisgd_ray.errors import UserError
from gisgd_ray.results.storage import Storage, is_uri, joined, without_keys
from gisgd_ray.results.tables import require_writable, results_folder
from gisgd_ray.runner.mirror import Mirror


def expanded(path: Path) -> Path:
    """The path with a home in place of its ``~``.

    Raises:
        UserError: there is no such home.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(
            f"{path}: there is no such home folder; set HOME, or write the path in full"
        ) from None


@dataclass(frozen=True)
class Location:
    """A folder, or a bucket with a folder of the driver's that it is a copy of.

    Attributes:
        folder: on the driver's disk; journal, tables, figures.
        storage: the same folder, or its location in the bucket; checkpoints.
        mirror: brings the folder to the bucket, if there is one.
    """

    folder: Path
    storage: str
    mirror: Mirror | None = None

    @staticmethod
    def of(out: str, name: str, *, make: bool = True) -> "Location":
        """Of the sweep ``name`` below ``out``, a folder or a bucket's URI.

        Raises:
            UserError: it cannot be written (with ``make``).
        """
        path = Path(out)
        if is_uri(out):
            scheme, _, below = without_keys(out).partition("://")
            path = Path("results", scheme, below.lstrip("/"))
        folder = expanded(path).absolute() / name
        if make:
            folder = results_folder(folder)
        else:
            require_writable(folder)
        if not is_uri(out):
            return Location(folder, str(folder))
        storage = Storage(joined(out, name))
        return Location(folder, storage.where, Mirror(folder, storage))

    def owned(self, *, take_over: bool) -> AbstractContextManager[None]:
        """Context in which the folder is brought to the bucket, and first from there.

        Raises:
            UserError: another driver has the bucket, or it cannot be reached.
        """
        return nullcontext() if self.mirror is None else self.mirror.owned(take_over)

    def pull(self) -> None:
        """Fetch what a bucket has, to read it.

        Raises:
            UserError: it cannot be reached.
        """
        if self.mirror is not None:
            self.mirror.pull()

    def __str__(self) -> str:
        if self.mirror is None:
            return str(self.folder)
        return f"{self.mirror.storage} (worked on in {self.folder})"
