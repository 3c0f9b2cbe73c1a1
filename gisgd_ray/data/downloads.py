"""Where the files of a dataset lie, and how missing ones are fetched.

The files lie in torchvision's layout, so that a folder filled by torchvision serves as it is, and
torchvision fetches them. It is imported only when needed: that costs a process about a second and
160 MB.
"""

import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from http.client import HTTPException
from pathlib import Path
from typing import Any

from gisgd_ray.config.catalogue import DATASETS
from gisgd_ray.config.records import Files
from gisgd_ray.errors import DataError
from gisgd_ray.file_locks import file_lock

ANSWER_SECONDS = 15.0
"""A server that has sent no byte by then is out of reach (name, every address, redirects)."""

STALL_SECONDS = 30.0
"""A download that goes on for so long without a byte more has failed."""

_SPLITS = ("train", "test")

LOOKED_AT = 20_000
"""Names among which misplaced files are looked for."""


def data_folder() -> Path:
    """``$GISGD_DATA``, else ``gisgd_ray`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        DataError: it lies in a home that this user has not.
    """
    try:
        if chosen := os.environ.get("GISGD_DATA"):
            return Path(chosen).expanduser().absolute()
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        return cache.expanduser().absolute() / "gisgd_ray"
    except RuntimeError:
        raise DataError(
            "this user has no home folder to keep data sets in; set GISGD_DATA to a folder for them"
        ) from None


def ensure_files(name: str, folder: Path) -> None:
    """Fetch what is missing of a dataset: one process at a time, each file whole or not at all.

    With every file there, this takes no lock, writes nothing and needs no network. It does not
    look into the files. Loading calls it; so may a sweep, to fail before anything starts.

    Args:
        name: a ``DatasetName``.
        folder: normally :func:`data_folder`.

    Raises:
        DataError: a file is missing, and ``folder`` cannot be written or no server be reached.
    """
    if not (missing := _missing(name, folder)):
        return
    if taken := _taken(folder, missing, gz=files_of(name).gzipped):
        raise DataError(f"{taken}; {remedy(name, folder)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(folder / f".{name}.lock", wait=True):
            if left := _missing(name, folder):  # not fetched by another process meanwhile
                _fetch(name, folder, left)
    except OSError as fault:
        archive = _archive(name, folder)
        what = (
            f"{archive} cannot be unpacked"
            if archive
            else f"{missing[0]} is missing and cannot be fetched"
        )
        raise DataError(
            f"{what}, as the folder {folder} cannot be written ({fault}); {remedy(name, folder)}"
        ) from fault


def not_here(name: str, folder: Path) -> str:
    """What is said where files of a dataset are missing and must not be fetched; "" if none is."""
    if not (missing := _missing(name, folder)):
        return ""
    if taken := _taken(folder, missing, gz=files_of(name).gzipped):
        return f"{taken}{_misplaced(name, folder)}"
    if _archive(name, folder):
        return ""
    size = files_of(name).megabytes
    return (
        f"{name} is not in {folder} ({size} MB, which the sweep itself will download)"
        f"{_misplaced(name, folder)}"
    )


def remedy(name: str, folder: Path) -> str:
    """How to supply a dataset without a network: the end of an error's sentence."""
    files = files_of(name)
    either = " (each as it is or as .gz)" if files.gzipped else ""
    archive = f" or the archive {files.archive}" if files.archive else ""
    return (
        f"to supply {name} without a network, put {', '.join(files.paths)}{either}{archive} into "
        f"{folder}, or set GISGD_DATA to the folder that holds them{_misplaced(name, folder)}"
    )


def _taken(folder: Path, missing: Sequence[Path], *, gz: bool) -> str:
    """What stands where the folder or a missing file belongs and is none; "" if nothing does."""
    if found := _no_folder(folder):
        return f"{found}; the data sets need a folder there"
    for path in [*missing, *(map(gzipped, missing) if gz else ())]:
        if found := _no_folder(path.parent):
            return f"{found}; {path.name} belongs into a folder there"
        if os.path.isdir(path):
            return f"{path} is a folder, and a file of the data set belongs there; move it away"
        if os.path.islink(path):
            target = os.path.realpath(path)
            return f"{path} is a link to {target}, which is no file; mend it or delete it"
    return ""


def _no_folder(folder: Path) -> str:
    """Which part of a folder's path is there and is no folder; "" if none is."""
    for part in (folder, *folder.parents):
        if os.path.islink(part) and not os.path.exists(part):
            return f"{part} is a link to {os.path.realpath(part)}, which is not there"
        if os.path.lexists(part):
            return "" if os.path.isdir(part) else f"{part} is a file and not a folder"
    return ""


def _misplaced(name: str, folder: Path) -> str:
    """Which missing file is there under a name or in a folder that is not its own, and where it
    belongs; "" if none is.

    Kaggle has ``train-images.idx3-ubyte``, a browser ``(1)`` in the name, an archive that is
    unpacked a folder more or less.
    """
    files = files_of(name)
    wanted = {_alike(path.name): path for path in _missing(name, folder)}
    if wanted and files.archive:
        wanted[_alike(files.archive)] = folder / files.archive
    # Fashion-MNIST's files bear MNIST's names: what is in its place is not another's.
    known = [record.files for record in DATASETS.values() if record.files]
    placed = {folder / file for each in known for file in each.paths}
    others = {Path(each.paths[0]).parts[0] for each in known if each != files}
    found: dict[Path, Path] = {}
    for path in _files_below(folder) if wanted else ():
        target = wanted.get(_alike(path.name))
        if target is None or not placed.isdisjoint({path, path.with_suffix("")}):
            continue
        if files.gzipped and path.relative_to(folder).parts[0] in others:
            continue
        if path.name.lower().endswith(".gz") != target.name.endswith(".gz"):
            if not files.gzipped:
                continue
            target = gzipped(target)
        if path != target:
            found.setdefault(target, path)
    if not found:
        return ""
    target, path = next(iter(found.items()))
    more = f", and {len(found) - 1} more likewise" if len(found) > 1 else ""
    return f"; there is {path}: if that is it, move it to {target}{more}"


def _alike(name: str) -> str:
    """What file names have in common that people take for the same.

    >>> _alike("Train-Images.idx3-ubyte (1).gz") == _alike("train-images-idx3-ubyte")
    True
    """
    name = re.sub(r"\s*\(\d+\)", "", name.lower()).removesuffix(".gz")
    return re.sub(r"[\W_]+", "-", name)


def _files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and three levels of those in it, at most so many."""
    left = LOOKED_AT
    for above, folders, files in os.walk(folder):
        deep = len(Path(above).relative_to(folder).parts) >= 3 or left <= 0
        # What begins with a dot is half a download.
        folders[:] = () if deep else sorted(f for f in folders if not f.startswith("."))
        left -= len(folders) + len(files)
        yield from (Path(above, file) for file in sorted(files))


def damaged(name: str, folder: Path, path: Path, *, expected: str, found: str) -> DataError:
    """The error for a file that is there but cannot be the right one."""
    return DataError(
        f"{path} is damaged: expected {expected}, found {found}; delete it to have it downloaded "
        f"again, or {remedy(name, folder)}"
    )


def files_of(name: str) -> Files:
    """Those of a dataset that has any."""
    files = DATASETS[name].files
    assert files is not None
    return files


def require_sum(name: str, folder: Path, path: Path, md5: str) -> None:
    """Raises DataError if the MD5 sum of a file is not as it should be."""
    from torchvision.datasets.utils import calculate_md5

    try:
        found = calculate_md5(path)
    except OSError as fault:
        raise damaged(name, folder, path, expected="a readable file", found=str(fault)) from fault
    if found != md5:
        found = f"{found} ({path.stat().st_size} bytes)"
        raise damaged(name, folder, path, expected=f"MD5 {md5}", found=found)


def gzipped(path: Path) -> Path:
    """``NAME.gz`` beside ``NAME``."""
    return path.with_name(path.name + ".gz")


def _missing(name: str, folder: Path) -> list[Path]:
    if not (files := DATASETS[name].files):
        return []
    return [
        path
        for path in (folder / file for file in files.paths)
        # os.path.isfile, as Path.is_file raises where a folder above may not be searched.
        if not os.path.isfile(path) and not (files.gzipped and os.path.isfile(gzipped(path)))
    ]


def _archive(name: str, folder: Path) -> Path | None:
    """The archive, if it is there, that stands for all files of a dataset."""
    archive = files_of(name).archive
    return folder / archive if archive and os.path.isfile(folder / archive) else None


def _fetch(name: str, folder: Path, missing: Sequence[Path]) -> None:
    """Put the missing files into place; the caller holds the lock.

    Everything is downloaded and unpacked in a folder of its own and moved only when checked, so
    a file in its place is complete even if the process is killed at any moment. No other attempt
    has that folder: one that was given up may still write into its own.
    """
    for left in folder.glob(f".{name}.partial-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(dir=folder, prefix=f".{name}.partial-"))
    try:
        if archive := _archive(name, folder):
            _unpack(name, folder, archive, partial)
        else:
            _download(name, folder, missing, partial)
        for path in missing:
            path.parent.mkdir(parents=True, exist_ok=True)
            (partial / path.relative_to(folder)).replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack(name: str, folder: Path, archive: Path, partial: Path) -> None:
    from torchvision.datasets.utils import extract_archive

    require_sum(name, folder, archive, torchvision_class(name).tgz_md5)
    extract_archive(archive, partial)


def _download(name: str, folder: Path, missing: Sequence[Path], partial: Path) -> None:
    """Have torchvision fetch the dataset into an empty folder, in a thread that may be left."""
    servers = ", ".join(_addresses(name))
    done: Future[None] = Future()

    def fetch() -> None:
        try:
            for _ in torchvision_splits(name, partial, download=True):
                pass
            done.set_result(None)
        except Exception as fault:  # raised again where it is waited for
            done.set_exception(fault)

    threading.Thread(target=fetch, daemon=True).start()
    try:
        _wait_while_growing(done, partial)
    except (OSError, RuntimeError, HTTPException, ValueError) as fault:
        found = " ".join(str(fault).split())  # of several lines
        raise DataError(
            f"{missing[0]} is missing and could not be downloaded from {servers} ({found}); "
            f"{remedy(name, folder)}"
        ) from fault


def _wait_while_growing(done: Future[None], partial: Path) -> None:
    """Wait for a download as long as bytes come.

    torchvision sets no timeout. One for sockets would hold for all of the process, for each address
    of a host anew, and not for looking up its name: behind a firewall that drops packets a trial
    would still wait for minutes.

    Raises:
        TimeoutError: no more bytes came.
        Exception: what the download raised.
    """
    size, since = 0, time.monotonic()
    while not wait([done], timeout=0.1).done:
        before, size = size, sum(p.stat().st_size for p in partial.rglob("*") if p.is_file())
        limit = STALL_SECONDS if size else ANSWER_SECONDS
        if size != before:
            since = time.monotonic()
        elif time.monotonic() - since > limit:
            raise TimeoutError(f"no byte came within {limit:g} s")
    done.result()


def torchvision_splits(name: str, folder: Path, *, download: bool = False) -> Iterator[Any]:
    """torchvision's training split, then its test split."""
    source = torchvision_class(name)
    # CIFAR's names of classes are in a file more, which nothing here needs.
    source = type(source.__name__, (source,), {"_load_meta": lambda _: None})
    by_name = hasattr(source, "split_list")
    for split in _SPLITS:
        which = {"split": split} if by_name else {"train": split == "train"}
        yield source(folder, download=download, **which)


def torchvision_class(name: str) -> Any:
    """The torchvision class of a dataset, with its addresses and MD5 sums."""
    from torchvision import datasets

    return getattr(datasets, files_of(name).torchvision_class)


def _addresses(name: str) -> list[str]:
    source = torchvision_class(name)
    if hasattr(source, "split_list"):
        return [source.split_list[split][0] for split in _SPLITS]
    return list(source.mirrors) if files_of(name).gzipped else [source.url]


def md5_sums(name: str) -> list[str]:
    """Of the files of a dataset, in their order."""
    source = torchvision_class(name)
    if hasattr(source, "split_list"):
        return [source.split_list[split][2] for split in _SPLITS]
    return [md5 for _, md5 in source.train_list + source.test_list]
