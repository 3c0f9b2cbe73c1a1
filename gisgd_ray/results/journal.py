"""The journal of a sweep: one file per trial, a line for everything that is reported of it.

``journal/<trial_id>.jsonl`` is the truth that all tables are made from: a line per measuring point,
per stretch of steps and, last, the trial's row, each written and flushed as it arrives, so that a
crash loses at most the line in flight. Every line begins with the CRC-32 of its other bytes::

    {"crc32": "5d2a1c7e", "kind": "point", "step": 10, ...}

Journals of earlier versions, whose lines begin with their kind, are read and gone on with; behind a
line with a checksum none may be without. No single bit that turns makes the one into the other.
"""

import base64
import binascii
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from gisgd_ray.errors import UserError
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.results.whole_files import replace_file, unlinked

Row = dict[str, Any]

HEAD, CRC_DIGITS, REST = b'{"crc32": "', 8, b'", '
"""A line's beginning: the checksum, in lower-case hex, is that of all behind ``REST``."""
OLD_HEAD = b'{"kind": "'
NEEDED: dict[str, dict[str, type]] = {
    "point": {"step": int},
    "steps": {"after": int, "columns": dict},
    "row": {"status": str},
}
"""The kinds of lines, and what each has at least."""
MOST_STEPS = 2**20
"""Steps in a line: what is compressed may be a thousand times as large as the line."""

RATE = "learning_rate"
"""The one column that the lines of every version have."""


class Status(StrEnum):
    """How a trial has ended, as its row has it."""

    FINISHED = "finished"
    DIVERGED = "diverged"
    FAILED = "failed"


COMPLETE = (Status.FINISHED, Status.DIVERGED)
"""What a resumed sweep takes as it is; failed trials are tried again."""


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

        ``whole``: the report of a trial that goes on from a checkpoint and reports all since its
        first step; it takes the place of what was reported before, so that a journal does not grow
        with the number of times its trial was lost.
        """
        lines: list[Row] = []
        again = {"whole": True} if whole else {}
        for begin in range(0, len(steps), MOST_STEPS):
            part = {k: v[begin : begin + MOST_STEPS] for k, v in steps.columns().items()}
            head = {"after": first_step + begin, "steps": len(part[RATE]), **again}
            columns = {name: _encode(values) for name, values in part.items()}
            lines.append({"kind": "steps", **head, "columns": columns})
        lines += [{"kind": "point", **point} for point in points]
        if whole:
            self.folder.mkdir(parents=True, exist_ok=True)
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
        """What the journal holds of one trial; of a point or step reported twice, the later.

        Without ``with_steps`` its steps are left out: they are by far the most of it.
        """
        points: dict[int, Row] = {}
        stretches: list[tuple[int, StepSeries]] = []
        row: Row | None = None
        end = 0
        for number, size, line in self._lines(trial_id):
            kind = line.pop("kind")
            if kind == "point":
                points[line["step"]] = line
            elif kind == "steps":
                after = line["after"]
                if with_steps:
                    try:
                        if after > end + MOST_STEPS:
                            raise ValueError("steps in between are missing")
                        steps = _decoded(line, size)
                    except (ValueError, KeyError, TypeError, zlib.error):
                        raise self._damaged(trial_id, number) from None
                    stretches.append((after, steps))
                    end = after + len(steps)
                points = {step: point for step, point in points.items() if step <= after}
            else:
                row = line
        ordered = [points[step] for step in sorted(points)]
        return TrialRecord(trial_id, ordered, row, _join(stretches))

    def read_row(self, trial_id: str) -> Row | None:
        """The trial's last row without decoding its steps, or None."""
        row = None
        for _, _, line in self._lines(trial_id, containing=b'"kind": "row"'):
            row = {k: v for k, v in line.items() if k != "kind"}
        return row

    def adopt(self, trial_id: str, other: "Journal") -> None:
        """Take all that another journal holds of a trial in the place of what is here."""
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.path(trial_id), other.path(trial_id).read_bytes())

    def adopt_as(self, trial_id: str, other: "Journal", named: str, *, row: Row) -> None:
        """The same of a trial that is ``named`` otherwise there, with another row."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [line for *_, line in other._lines(named) if line["kind"] != "row"]
        replace_file(self.path(trial_id), _encoded([*lines, {"kind": "row", **row}]))

    def size(self, trial_id: str) -> int:
        """Bytes of the trial's journal."""
        return self.path(trial_id).stat().st_size

    def path(self, trial_id: str) -> Path:
        """Where the trial's journal lies.

        Raises:
            UserError: this is no trial's id, but leads elsewhere.
        """
        if "/" in trial_id:
            raise UserError(f"{trial_id!r}, told of in {self.folder.parent}, is no trial's id")
        return self.folder / f"{trial_id}.jsonl"

    def _append(self, trial_id: str, *lines: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.path(trial_id), "a+b", opener=unlinked) as file:
            try:
                _drop_torn_line(file)
            except DamagedLineError as damage:
                raise self._damaged(trial_id, damage.number) from None
            file.write(_encoded(lines))
            file.flush()
            os.fsync(file.fileno())

    def _lines(self, trial_id: str, containing: bytes = b"") -> Iterator[tuple[int, int, Row]]:
        """Number, length and content of each line that contains this; all are checked."""
        path = self.path(trial_id)
        if not path.exists():
            return
        with open(path, "rb") as file:
            try:
                yield from _entries(file, containing)
            except DamagedLineError as damage:
                raise self._damaged(trial_id, damage.number) from None

    def _damaged(self, trial_id: str, number: int) -> UserError:
        return UserError(
            f"line {number} of {self.path(trial_id)} is damaged; delete that file to have trial "
            f"{trial_id} run again, or restore it"
        )


class DamagedLineError(Exception):
    """A journal's line is not what was written."""

    def __init__(self, number: int):
        self.number = number


def _entries(file: Iterable[bytes], containing: bytes = b"") -> Iterator[tuple[int, int, Row]]:
    """Number, length and content of the lines that contain this.

    Raises:
        DamagedLineError: one, whether it contains it or not, is not what was written.
    """
    checked = False
    for number, text in enumerate(file, start=1):
        if not text.endswith(b"\n"):
            if _is_checked(text[:-1] + b"\n"):  # whole, but for the newline that it ended with
                raise DamagedLineError(number)
            return  # cut off by a crash: the line in flight
        checked = checked or not text.startswith(OLD_HEAD)
        if checked and not _is_checked(text):
            raise DamagedLineError(number)
        if containing in text:
            yield number, len(text), _entry(text, number)


def _entry(text: bytes, number: int) -> Row:
    try:
        entry = json.loads(text)
        entry.pop("crc32", None)
        needed = NEEDED[entry["kind"]]
        sound = all(type(entry[name]) is kind for name, kind in needed.items())
        sound = sound and all(entry[name] >= 0 for name, kind in needed.items() if kind is int)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise DamagedLineError(number)
    return dict(entry)


def extent(journal: bytes) -> tuple[bool, int]:
    """How much a trial's journal tells, up to where it is damaged: whether its end, and up to
    which step."""
    ended, step = False, -1
    with suppress(DamagedLineError):
        for _, _, entry in _entries(io.BytesIO(journal)):
            if entry["kind"] == "row":
                ended = entry["status"] in COMPLETE
            elif entry["kind"] == "point":
                step = entry["step"]
    return ended, step


def _join(stretches: list[tuple[int, StepSeries]]) -> StepSeries:
    """The stretches in order, later ones over earlier ones; steps that none tells are NaN."""
    joined = StepSeries.empty()
    for after, steps in stretches:
        untold = np.full(max(0, after - len(joined)), np.nan)
        gap = StepSeries.of(dict.fromkeys(joined.columns(), untold))
        joined = StepSeries.concatenate([joined.head(after), gap, steps])
    return joined


def _encode(values: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(zlib.compress(values.astype("<f8").tobytes(), 1)).decode()


def _decoded(line: Row, size: int) -> StepSeries:
    """The steps of a line, never unpacked beyond as many as it announces.

    Earlier versions announced none. Losses do not compress to less than a byte a step, so that a
    line has no more steps than bytes, but for some runs in which nothing moves.

    Raises:
        ValueError, KeyError, TypeError, zlib.error: it is not what was written.
    """
    announced = line.get("steps")
    if announced is not None and not (type(announced) is int and 0 < announced <= MOST_STEPS):
        raise ValueError("no such number of steps is written")
    most = MOST_STEPS + size if announced is None else announced
    columns = {str(name): _decode(text, most) for name, text in line["columns"].items()}
    if len({len(column) for column in columns.values()} | {announced or len(columns[RATE])}) > 1:
        raise ValueError("the columns differ in length")
    return StepSeries.of(columns)


def _decode(text: str, most: int) -> np.ndarray[Any, Any]:
    packed = zlib.decompressobj()
    content = packed.decompress(base64.b64decode(text, validate=True), 8 * most + 1)
    if not packed.eof or len(content) > 8 * most:
        raise ValueError("longer than announced, or cut off")
    return np.frombuffer(content, dtype="<f8").copy()


def _encoded(lines: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(_with_checksum(json.dumps(_plain(line)).encode()) for line in lines)


def _with_checksum(text: bytes) -> bytes:
    rest = text[1:]  # the brace stands before the checksum
    return b"".join([HEAD, _digits(rest), REST, rest, b"\n"])


def _is_checked(text: bytes) -> bool:
    """Whether a line, with its newline, has the checksum of its bytes."""
    begin = len(HEAD) + CRC_DIGITS + len(REST)
    rest = memoryview(text)[begin:-1]
    return text[:begin] == HEAD + _digits(rest) + REST and text[-1:] == b"\n"


def _digits(rest: bytes | memoryview) -> bytes:
    return b"%08x" % binascii.crc32(rest)


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
    begin = content.rfind(b"\n") + 1
    if _is_checked(content[begin:-1] + b"\n"):  # see _entries
        raise DamagedLineError(content.count(b"\n") + 1)
    file.truncate(begin)
