"""Where the files of a dataset lie, and how missing ones are fetched.

The files lie in torchvision's layout, so that a folder filled by torchvision serves as it is.
Addresses and MD5 sums are torchvision's too, asked for only when needed: importing torchvision
costs a process about a second and 170 MB.
"""

import hashlib
import http.client
import logging
import os
import re
import shutil
import tarfile
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from gisgd_ray.config.catalogue import DATASETS, Files
from gisgd_ray.errors import DataError
from gisgd_ray.file_locks import file_lock

_log = logging.getLogger(__name__)

ANSWER_SECONDS = 15.0
"""A server that has not answered by then is out of reach (name, every address, redirects)."""

STALL_SECONDS = 30.0
"""A download that brings no byte for so long has failed."""

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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(folder / f".{name}.lock", wait=True):
            if left := _missing(name, folder):  # not fetched by another process meanwhile
                _fetch(name, folder, left)
    except OSError as fault:
        raise DataError(
            f"{missing[0]} is missing and cannot be fetched, as the folder {folder} cannot be "
            f"written ({fault}); {remedy(name, folder)}"
        ) from fault


def not_here(name: str, folder: Path) -> str:
    """What is said where files of a dataset are missing and must not be fetched; "" if none is."""
    files = DATASETS[name].files
    archive = files is not None and files.archive and os.path.isfile(folder / files.archive)
    if files is None or archive or not _missing(name, folder):
        return ""
    return (
        f"{name} is not in {folder} ({files.megabytes} MB, which the sweep itself will download)"
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
        if len(Path(above).relative_to(folder).parts) >= 3 or left <= 0:
            folders.clear()
        folders.sort()
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


def torchvision_class(name: str) -> Any:
    """The torchvision class of a dataset, for its addresses and MD5 sums."""
    from torchvision import datasets

    return getattr(datasets, files_of(name).torchvision_class)


def md5_of(path: Path) -> str:
    """Hexadecimal MD5 sum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


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


def _fetch(name: str, folder: Path, missing: Sequence[Path]) -> None:
    """Put the missing files into place; the caller holds the lock.

    Everything is downloaded and unpacked in a folder of its own and moved only when checked, so
    a file in its place is complete even if the process is killed at any moment.
    """
    partial = folder / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir()
    try:
        if files_of(name).archive:
            ready = _from_archive(name, folder, missing, partial)
        else:
            ready = _downloaded_files(name, folder, missing, partial)
        for source, target in ready:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _downloaded_files(
    name: str, folder: Path, missing: Sequence[Path], partial: Path
) -> list[tuple[Path, Path]]:
    """Download each missing file; pairs of where it is and where it belongs."""
    source = torchvision_class(name)
    if files_of(name).gzipped:
        wanted = [
            ([mirror + file for mirror in source.mirrors], file, md5)
            for file, md5 in source.resources
        ]
        targets = {gzipped(path).name: gzipped(path) for path in missing}
    else:
        wanted = [([url], file, md5) for url, file, md5 in source.split_list.values()]
        targets = {path.name: path for path in missing}
    ready = []
    for urls, file, md5 in wanted:
        if file in targets:
            _download(name, folder, urls, partial / file, md5, target=targets[file])
            ready.append((partial / file, targets[file]))
    return ready


def _from_archive(
    name: str, folder: Path, missing: Sequence[Path], partial: Path
) -> list[tuple[Path, Path]]:
    """Unpack the missing files from the archive, downloaded if it is not in the data folder."""
    source = torchvision_class(name)
    archive = folder / source.filename
    if not archive.is_file():
        archive = partial / source.filename
        _download(name, folder, [source.url], archive, source.tgz_md5, target=missing[0])
    elif (found := md5_of(archive)) != source.tgz_md5:
        raise damaged(
            name,
            folder,
            archive,
            expected=f"MD5 {source.tgz_md5}",
            found=f"{found} ({archive.stat().st_size} bytes)",
        )
    ready = []
    with tarfile.open(archive) as tar:
        for target in missing:
            member = tar.extractfile(target.relative_to(folder).as_posix())
            assert member is not None, "the MD5 sum vouches for the archive's content"
            with member, (partial / target.name).open("wb") as file:
                shutil.copyfileobj(member, file)
            ready.append((partial / target.name, target))
    return ready


def _download(
    name: str, folder: Path, urls: Sequence[str], path: Path, md5: str, *, target: Path
) -> None:
    """Download one file from the first address that gives it with the right MD5 sum."""
    faults = []
    for url in urls:
        _log.info("downloading %s", url)
        try:
            with _answer(url) as response, path.open("wb") as file:
                shutil.copyfileobj(response, file, 1 << 20)
        except (OSError, http.client.HTTPException, ValueError) as fault:
            faults.append(f"{url}: {fault}")
            continue
        if (found := md5_of(path)) == md5:
            return
        faults.append(f"{url}: expected MD5 {md5}, found {found} ({path.stat().st_size} bytes)")
    raise DataError(
        f"{target} is missing and could not be downloaded ({'; '.join(faults)}); "
        f"{remedy(name, folder)}"
    )


def _answer(url: str) -> Any:
    """The opened response, or OSError within ANSWER_SECONDS.

    The timeout of ``urlopen`` holds for each address of a host and not at all for looking up its
    name: behind a firewall that drops packets, it alone would let a trial wait for minutes.
    """
    answer: Future[Any] = Future()

    def ask() -> None:
        request = urllib.request.Request(url, headers={"User-Agent": "gisgd_ray"})
        try:
            answer.set_result(urllib.request.urlopen(request, timeout=STALL_SECONDS))
        except (OSError, http.client.HTTPException, ValueError) as fault:
            answer.set_exception(fault)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(timeout=ANSWER_SECONDS)
    except TimeoutError:
        if answer.done():
            raise
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:g} s") from None
