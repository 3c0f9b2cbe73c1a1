"""The journal of a sweep: one file per trial, a line for everything that is told of it.

``journal/<trial_id>.jsonl`` is the truth that all tables are made from: a line per measuring point,
per stretch of steps and, last, the trial's row, each written and flushed as it arrives, so that a
crash loses at most the line in flight.
"""

import base64
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gisgd_ray.errors import UserError
from gisgd_ray.measures.dispersion import StepSeries
from gisgd_ray.whole_files import replace_file

Row = dict[str, Any]

COMPLETE = ("finished", "diverged")
"""Statuses that a resumed sweep takes as they are; ``failed`` trials are tried again."""


@dataclass
class TrialRecord:
    """One trial as its journal tells it."""

    trial_id: str
    points: list[Row]
    row: Row | None
    steps: StepSeries


class Journal:
    """Append-only journal of one sweep's trials; readable at any moment."""

    def __init__(self, folder: Path):
        self.folder = folder / "journal"
        self.folder.mkdir(parents=True, exist_ok=True)

    def add_report(
        self,
        trial_id: str,
        *,
        first_step: int,
        steps: StepSeries,
        points: Sequence[Mapping[str, Any]],
        whole: bool = False,
    ) -> None:
        """Steps ``first_step + 1 ..`` of the trial, every column, and the points among them.

        ``whole``: the report of a trial that goes on from a checkpoint and tells all since its
        first step; it takes the place of what was told before, so that a journal does not grow
        with the number of times its trial was lost.
        """
        lines: list[Row] = []
        if len(steps):
            columns = {name: _encode(values) for name, values in steps.columns().items()}
            again = {"whole": True} if whole else {}
            lines.append({"kind": "steps", "after": first_step, **again, "columns": columns})
        lines += [{"kind": "point", **point} for point in points]
        if whole:
            replace_file(self.path(trial_id), _encoded(lines))
        else:
            self._append(trial_id, *lines)

    def add_row(self, trial_id: str, row: Mapping[str, Any]) -> None:
        """The trial's final row."""
        self._append(trial_id, {"kind": "row", **row})

    def trial_ids(self) -> list[str]:
        """Trials with any line."""
        return sorted(path.stem for path in self.folder.glob("*.jsonl"))

    def read(self, trial_id: str, *, with_steps: bool = True) -> TrialRecord:
        """What the journal holds of one trial; a point or step told twice counts once, the later.

        Without ``with_steps`` its steps are left out: they are by far the most of it.
        """
        points: dict[int, Row] = {}
        stretches: list[tuple[int, StepSeries]] = []
        row: Row | None = None
        for line in self._lines(trial_id):
            kind = line.pop("kind")
            if kind == "point":
                points[line["step"]] = line
            elif kind == "steps":
                if with_steps:
                    try:
                        columns = {name: _decode(text) for name, text in line["columns"].items()}
                    except (ValueError, zlib.error):
                        raise self._damaged(trial_id, f"steps after {line['after']}") from None
                    stretches.append((line["after"], StepSeries.of(columns)))
                points = {step: point for step, point in points.items() if step <= line["after"]}
            else:
                row = line
        ordered = [points[step] for step in sorted(points)]
        return TrialRecord(trial_id, ordered, row, _join(stretches))

    def read_row(self, trial_id: str) -> Row | None:
        """The trial's last row without decoding its steps, or None."""
        row = None
        for line in self._lines(trial_id, containing=b'"kind": "row"'):
            row = {k: v for k, v in line.items() if k != "kind"}
        return row

    def adopt(self, trial_id: str, other: "Journal") -> None:
        """Take all that another journal holds of a trial in the place of what is here."""
        replace_file(self.path(trial_id), other.path(trial_id).read_bytes())

    def size(self, trial_id: str) -> int:
        """Bytes of the trial's journal."""
        return self.path(trial_id).stat().st_size

    def path(self, trial_id: str) -> Path:
        """Where the trial's journal lies."""
        return self.folder / f"{trial_id}.jsonl"

    def _append(self, trial_id: str, *lines: Mapping[str, Any]) -> None:
        with open(self.path(trial_id), "a+b") as file:
            _drop_torn_line(file)
            file.write(_encoded(lines))
            file.flush()
            os.fsync(file.fileno())

    def _lines(self, trial_id: str, containing: bytes = b"") -> Iterable[Row]:
        path = self.path(trial_id)
        if not path.exists():
            return
        with open(path, "rb") as file:
            for number, text in enumerate(file, start=1):
                if not text.endswith(b"\n"):
                    return  # cut off by a crash: the line in flight
                if containing not in text:
                    continue
                try:
                    yield json.loads(text)
                except ValueError:
                    raise self._damaged(trial_id, f"line {number}") from None

    def _damaged(self, trial_id: str, what: str) -> UserError:
        return UserError(
            f"{what} of {self.path(trial_id)} is damaged; delete that file to have trial "
            f"{trial_id} run again, or restore it"
        )


def told(journal: bytes) -> tuple[bool, int]:
    """How much a trial's journal tells: whether its end, and up to which step."""
    ended, step = False, -1
    for line in journal.split(b"\n")[:-1]:
        with suppress(ValueError, TypeError, KeyError):
            entry = json.loads(line)
            if entry["kind"] == "row":
                ended = entry["status"] in COMPLETE
            elif entry["kind"] == "point":
                step = int(entry["step"])
    return ended, step


def _join(stretches: list[tuple[int, StepSeries]]) -> StepSeries:
    """The stretches in order, later ones over earlier ones; steps that none tells are NaN."""
    joined = StepSeries.empty()
    for after, steps in stretches:
        untold = np.full(max(0, after - len(joined)), np.nan)
        gap = StepSeries(**dict.fromkeys(joined.columns(), untold))
        joined = StepSeries.concatenate([joined.head(after), gap, steps])
    return joined


def _encode(values: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(zlib.compress(values.astype("<f8").tobytes(), 1)).decode()


def _decode(text: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<f8").copy()


def _encoded(lines: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(_plain(line)).encode() + b"\n" for line in lines)


def _plain(value: Any) -> Any:
    """JSON-ready copy; NumPy scalars become Python's (JSON spells NaN and infinities as Python)."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _drop_torn_line(file: Any) -> None:
    """Cut what a crash left after the last newline, so that the next line stands alone."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)
