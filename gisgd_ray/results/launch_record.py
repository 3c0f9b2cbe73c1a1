"""What the launches of a sweep were, kept beside its results.

With the tables this is all that figures and page are made of: they can be made again at any time,
on another machine, and still tell the code and the packages that made the numbers.

The record also holds the folder's id, by which W&B's runs and report of it are told from those of
other folders with the same trials. A copy of a folder is the same folder to them.
"""

import json
import platform
import re
import secrets
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from gisgd_ray.errors import UserError
from gisgd_ray.results.whole_files import replace_file

FILE = "launches.json"
FORMAT = 1
ID_BYTES, ID = 6, "[0-9a-f]{12}"
PACKAGES = ("torch", "ray", "numpy", "backpack-for-pytorch", "pyhessian")


@dataclass(frozen=True)
class LaunchRecord:
    """One launch of a sweep into a folder."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid")

    sweep: str
    """The sweep's name."""
    script: str
    """The script that declares it; on the machine of the launch."""
    begun: str
    """UTC, ISO 8601."""
    swept: list[str]
    """Dotted fields in which the trials differ."""
    planned: list[str]
    """Ids of the trials asked for."""
    facts: dict[str, str]
    """What the page tells of it, by name; ``scale`` and ``command`` are among them."""
    versions: dict[str, str]
    """Of Python, the packages that make the numbers, and this one with its commit; empty of a
    launch that found all its trials finished."""
    seconds: float | None = None
    """Wall time; None of a launch that was broken off."""
    earlier: dict[str, list[str]] = field(default_factory=dict)
    """Versions that earlier launches into the folder had, where they were others."""


LAUNCHES = TypeAdapter(list[LaunchRecord])


def keep(folder: Path, record: LaunchRecord) -> None:
    """Add a launch to those of the folder, or bring it up to date; the first makes the folder's id.

    Only for the one launch that may write to the folder: of two at once each could make an id.
    """
    known, launches = _read(folder)
    others = [launch for launch in launches if launch.begun != record.begun]
    if not (folder / FILE).exists() and any((folder / "journal").glob("*.jsonl")):
        # Trials of a version that kept no record, which must not pass for this one's.
        unrecorded = {"gisgd-ray": "a version that left no record"}
        others = [LaunchRecord(record.sweep, "", "", [], [], {}, versions=unrecorded)]
    content = {
        "format": FORMAT,
        "id": known or secrets.token_hex(ID_BYTES),
        "launches": [_kept(each) for each in (*others, record)],
    }
    replace_file(folder / FILE, json.dumps(content, indent=1).encode())


def folder_id(folder: Path) -> str | None:
    """The id of a results folder, of 12 hexadecimal digits; None before its first launch.

    A folder of an earlier version has none until its next launch.

    Raises:
        UserError: the record is damaged, or of a later version.
    """
    return _read(folder)[0]


def keep_versions_of(other: Path, folder: Path, *, sweep: str) -> None:
    """Of another folder, whose trials are taken: what made them, as earlier launches of this one.

    Raises:
        UserError: its record is damaged, or of a later version.
    """
    ran = {launch.begun: launch.versions for launch in _read(other)[1] if launch.versions}
    for begun, made in (ran or {"": {"gisgd-ray": "a version that left no record"}}).items():
        keep(folder, LaunchRecord(sweep, "", begun, [], [], {}, versions=made))


def _kept(record: LaunchRecord) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if name != "earlier"}


def last_record(folder: Path) -> LaunchRecord | None:
    """The last launch into the folder; None if no launch has left its record.

    Raises:
        UserError: the record is damaged, or of a later version.
    """
    _, launches = _read(folder)
    if not launches:
        return None
    *earlier, last = launches
    ran = [launch.versions for launch in (*earlier, last) if launch.versions]
    if not ran:
        return last
    return replace(last, versions=ran[-1], earlier=_others(ran[-1], ran[:-1]))


def _others(last: Mapping[str, str], earlier: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for names in earlier:
        for name, version in names.items():
            known = found.setdefault(name, [])
            if version not in (last.get(name), *known):
                known.append(version)
    return {name: others for name, others in found.items() if others}


def _read(folder: Path) -> tuple[str | None, list[LaunchRecord]]:
    """The folder's id, if it has one, and its launches."""
    try:
        content = json.loads((folder / FILE).read_bytes())
        if content["format"] > FORMAT:
            raise UserError(
                f"{folder / FILE} was written by a later version of gisgd-ray (format "
                f"{content['format']}, known here: {FORMAT}); use that version"
            )
        known = content.get("id")
        if known is not None and not re.fullmatch(ID, known):
            raise ValueError(f"id = {known[:80]!r}")
        return known, LAUNCHES.validate_json(json.dumps(content["launches"]))
    except FileNotFoundError:
        return None, []
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _damaged(folder, f"{where} = {str(first['input'])[:80]!r}: {first['msg']}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as fault:
        raise _damaged(folder, str(fault)) from None


def _damaged(folder: Path, why: str) -> UserError:
    return UserError(f"{folder / FILE} is damaged ({why}); remove it")


def versions() -> dict[str, str]:
    """Python, the packages that make the numbers, and this one with its commit."""
    found = {"Python": platform.python_version()}
    found |= {package: _version(package) for package in PACKAGES}
    commit = _commit()
    found["gisgd-ray"] = _version("gisgd-ray") + (f", commit {commit}" if commit else "")
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed as a package"


def _commit() -> str | None:
    """Commit of the checkout that this code runs from, or None where it runs from none.

    A repository that merely contains the installed package (a venv inside it) does not count.
    """
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(package), *arguments]
        done = subprocess.run(command, check=True, capture_output=True, timeout=10)
        return done.stdout.decode(errors="replace").strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--", ".", "../sweeps")
        return git("rev-parse", "HEAD")[:12] + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
