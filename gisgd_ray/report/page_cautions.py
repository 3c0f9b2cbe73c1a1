"""What a reader must know before using the numbers of a sweep."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from gisgd_ray.errors import error_line
from gisgd_ray.numbers import format_number, known
from gisgd_ray.report.bounds_table import trial_label
from gisgd_ray.results.tables import records
from gisgd_ray.training.terms import REMARK

MEASURED = ("bound/", "term/", "gap/", "measure/", "sum/", "train/", "test/")


@dataclass(frozen=True)
class Failure:
    """A trial that failed, told without this machine's paths."""

    label: str
    trial_id: str
    error: str
    """One line: what went wrong."""
    traceback: str
    """All of it; empty where there is no more than that line."""


@dataclass(frozen=True)
class Cautions:
    """What a reader must know before using the numbers."""

    diverged: list[tuple[str, str]]
    """Label and reason."""
    failed: list[Failure]
    outside: dict[str, list[str]]
    """What is outside the theorem -> labels of the trials."""
    ill_conditioned: list[tuple[str, str]]
    """Label and "3 of 1,200" steps."""
    remarks: dict[str, list[str]]
    """What is to be known of a bound -> labels of the trials."""
    infinite: list[tuple[str, list[str]]]
    """Label of a finished trial, and what it has measured infinite."""

    def __bool__(self) -> bool:
        return any(vars(self).values())


def find_cautions(trials: pd.DataFrame, paths: Sequence[str]) -> Cautions:
    """Diverged and failed trials, those outside a theorem, ill-conditioned steps, infinities."""
    found = Cautions([], [], {}, [], {}, [])
    measured = [
        str(name)
        for name in trials.columns
        if str(name).startswith(MEASURED) and pd.api.types.is_float_dtype(trials[name])
    ]
    for row in records(trials):
        label = trial_label(row, paths)
        if row["status"] == "failed":
            text = without_machine(str(known(row, "error") or "")).strip()
            line = error_line(text) if text else "no error was recorded"
            traceback = text if text != line else ""
            found.failed.append(Failure(label, str(row["trial_id"]), line, traceback))
        if row["status"] == "diverged":
            found.diverged.append((label, str(known(row, "stop_reason") or "no reason recorded")))
        if outside := known(row, "outside_theorem"):
            found.outside.setdefault(str(outside), []).append(label)
        if steps := known(row, "measure/ill_conditioned_steps"):
            of = known(row, "steps")
            some = format_number(int(steps))
            found.ill_conditioned.append(
                (label, some if of is None else f"{some} of {format_number(int(of))}")
            )
        if said := known(row, REMARK):
            found.remarks.setdefault(str(said), []).append(label)
        if row["status"] == "finished":
            names = [name for name in measured if math.isinf(row[name])]
            if names:
                found.infinite.append((label, names))
    return found


def without_machine(text: str) -> str:
    """A traceback fit to be passed on: no folders of this machine, addresses or colour codes.

    >>> without_machine('File "/home/ada/venv/site-packages/ray/x.py", line 3 (pid=7, ip=::1)')
    'File "…/ray/x.py", line 3 (pid=7)'
    >>> without_machine("node 10.0.0.5:6379, ip: 10.1.2.3, file:///home/a/y.pt, /usr/bin:/home/a/b")
    'node …, ip: …, file://…/y.pt, …/bin:…/b'
    >>> without_machine("https://docs.ray.io/en/latest '/home/ada lovelace/x.py'")
    "https://docs.ray.io/en/latest '…/x.py'"
    """
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", text)
    text = re.sub(r",? ?\bip=[^\s,)]+", "", text)
    text = re.sub(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?(?![\w.])", "…", text)
    text = re.sub(r"(?<=[\"'])/[^\"'\n<>]+(?=[\"'])", _short_path, text)  # with spaces in it
    return re.sub(r"(?:(?<![\w/.<>…])|(?<=file://))/(?!/)[^\s\"'<>(),;:]+", _short_path, text)


def _short_path(match: re.Match[str]) -> str:
    path = match.group()
    for anchor, keep in (("/site-packages/", ""), ("/gisgd_ray/", "gisgd_ray/")):
        _, found, inner = path.partition(anchor)
        if found:
            return f"…/{keep}{inner}"
    parts = path.strip("/").split("/")
    return path if len(parts) == 1 else f"…/{parts[-1]}"
