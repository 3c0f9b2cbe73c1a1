"""A folder that every machine of a sweep can reach: a local or shared disk, or a bucket.

One string names it: an absolute path, or a URI that pyarrow knows (``s3://bucket/prefix``,
``gs://...``). Files are written whole: a reader sees the old content, the new or none.
"""

import re
from pathlib import Path, PurePosixPath

from gisgd_ray.errors import UserError
from gisgd_ray.results.whole_files import replace_file

CHECKPOINTS = "checkpoints"
"""The folder of them below a sweep's."""
_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
"""Of the URIs that pyarrow knows."""


def is_uri(where: str) -> bool:
    """Whether a place is a bucket's URI and not a path.

    >>> is_uri("s3://bucket/prefix"), is_uri("/home/me/results")
    (True, False)
    """
    return "://" in where


def joined(where: str, name: str) -> str:
    """The place ``name`` below another; the options of a URI stay at its end.

    >>> joined("s3://bucket/prefix?region=eu-west-1", "lr_batch")
    's3://bucket/prefix/lr_batch?region=eu-west-1'
    """
    if not is_uri(where):
        return f"{where.rstrip('/')}/{name}"
    scheme, _, rest = where.partition("://")
    path, mark, options = rest.partition("?")
    return f"{scheme}://{path.rstrip('/')}/{name}{mark}{options}"


def without_keys(where: str) -> str:
    """A place as it may be shown: of a URI neither the access keys nor the options.

    >>> without_keys("s3://KEY:SECRET@bucket/prefix?region=eu-west-1")
    's3://bucket/prefix'
    """
    if not is_uri(where):
        return where
    return re.sub("://[^/@]*:.*?@", "://", where).partition("?")[0]


def require_address(where: str) -> None:
    """See that a URI could be that of a place, as far as it shows before anybody is asked.

    Raises:
        UserError: nothing of this kind can be used, or it names no bucket.
    """
    scheme, _, below = without_keys(where).partition("://")
    if scheme not in _SCHEMES:
        raise _unusable(where, f"it begins with {scheme}://")
    if scheme in ("s3", "gs", "gcs") and not below.partition("/")[0]:
        raise _unusable(where, "it names no bucket")


def _unusable(where: str, reason: str) -> UserError:
    return UserError(
        f"{without_keys(where)} cannot be used for results ({reason}); give a folder, or a bucket "
        "as s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
    )


class Storage:
    """Small files by name below one place; names are relative, with slashes."""

    def __init__(self, where: str):
        """Raises UserError on a URI that cannot be used."""
        from pyarrow import fs  # takes a tenth of a second

        self.where = where
        try:
            if is_uri(where):
                self._fs, root = fs.FileSystem.from_uri(where)
            else:
                self._fs, root = fs.LocalFileSystem(), str(Path(where).absolute())
        except (OSError, ValueError, NotImplementedError) as fault:
            reason = str(fault).splitlines()[0].replace(where, without_keys(where))
            raise _unusable(where, reason) from None
        self._root = PurePosixPath(root)
        self._local = isinstance(self._fs, fs.LocalFileSystem)

    def __str__(self) -> str:
        return without_keys(self.where)

    def write(self, name: str, content: bytes) -> None:
        """Put a file into its place as a whole.

        Raises:
            OSError: there is no room, or no way to the place.
        """
        path = self._path(name)
        if not self._local:  # an object appears when all of it has arrived
            with self._fs.open_output_stream(path) as file:
                file.write(content)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_file(Path(path), content)

    def read(self, name: str) -> bytes:
        """The whole file.

        Raises:
            OSError: there is none, or it cannot be read.
        """
        with self._fs.open_input_stream(self._path(name)) as file:
            content: bytes = file.read()
        return content

    def names(self, folder: str = "", *, recursive: bool = False) -> list[str]:
        """The files in a folder, sorted, by their names below the root; none if it is missing."""
        return sorted(self.sizes(folder, recursive=recursive))

    def sizes(self, folder: str = "", *, recursive: bool = False) -> dict[str, int]:
        """The files in a folder with their sizes in bytes."""
        from pyarrow import fs

        selector = fs.FileSelector(self._path(folder), allow_not_found=True, recursive=recursive)
        return {
            str(PurePosixPath(info.path).relative_to(self._root)): int(info.size)
            for info in self._fs.get_file_info(selector)
            if info.type == fs.FileType.File and not info.path.endswith(".partial")
        }

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens if it is gone already."""
        try:
            self._fs.delete_file(self._path(name))
        except FileNotFoundError:
            return

    def delete_folder(self, folder: str) -> None:
        """Remove a folder with all in it, if it is there."""
        from pyarrow import fs

        if self._fs.get_file_info(self._path(folder)).type == fs.FileType.Directory:
            self._fs.delete_dir(self._path(folder))

    def _path(self, name: str) -> str:
        return str(self._root / name)
