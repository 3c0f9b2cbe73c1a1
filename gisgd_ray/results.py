"""What a sweep leaves behind: one journal per trial, and the tables rebuilt from the journals.

``journal/<trial_id>.jsonl`` is the truth: a line per measuring point, per stretch of steps and,
last, the trial's row, each written and flushed as it arrives. ``trials.parquet``,
``history.parquet`` and ``steps/<trial_id>.parquet`` are made from it and replaced as a whole, so
that a crash never leaves half a table and loses at most the line in flight.
"""

import base64
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
from pyarrow import parquet

from gisgd_ray.config import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.measures.dispersion import StepSeries
from gisgd_ray.search_space import field_paths

Row = dict[str, Any]

COMPLETE = ("finished", "diverged")
"""Statuses that a resumed sweep takes as they are; ``failed`` trials are tried again."""


MADE_FROM = b"gisgd_ray.journal_bytes"


def results_folder(path: Path) -> Path:
    """``path`` made and found writable.

    Raises:
        UserError: it cannot be written.
    """
    path = path.expanduser().absolute()
    probe = path / ".writable"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"output folder {path} cannot be written ({error.strerror or error}); "
            "choose another with --out"
        ) from error
    return path


@dataclass
class TrialRecord:
    """One trial as its journal tells it."""

    trial_id: str
    points: list[Row]
    row: Row | None
    steps: StepSeries

    @property
    def is_complete(self) -> bool:
        return self.row is not None and self.row["status"] in COMPLETE


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
    ) -> None:
        """Steps ``first_step + 1 ..`` of the trial, every column, and the points among them."""
        lines: list[Row] = []
        if len(steps):
            columns = {name: _encode(values) for name, values in steps.columns().items()}
            lines.append({"kind": "steps", "after": first_step, "columns": columns})
        lines += [{"kind": "point", **point} for point in points]
        self._append(trial_id, *lines)

    def add_row(self, trial_id: str, row: Mapping[str, Any]) -> None:
        """The trial's final row."""
        self._append(trial_id, {"kind": "row", **row})

    def trial_ids(self) -> list[str]:
        """Trials with any line."""
        return sorted(path.stem for path in self.folder.glob("*.jsonl"))

    def read(self, trial_id: str, *, with_steps: bool = True) -> TrialRecord:
        """What the journal holds of one trial; a point or step told twice counts once, the later.

        A trial continued from a checkpoint tells again all that came before and after it. Without
        ``with_steps`` its steps are left out: they are by far the most of it.
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
                    columns = {name: _decode(text) for name, text in line["columns"].items()}
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
        path = self._path(trial_id)
        partial = path.with_name(path.name + ".partial")
        shutil.copyfile(other._path(trial_id), partial)
        partial.replace(path)

    def size(self, trial_id: str) -> int:
        """Bytes of the trial's journal."""
        return self._path(trial_id).stat().st_size

    def _path(self, trial_id: str) -> Path:
        return self.folder / f"{trial_id}.jsonl"

    def _append(self, trial_id: str, *lines: Mapping[str, Any]) -> None:
        text = b"".join(json.dumps(_plain(line)).encode() + b"\n" for line in lines)
        with open(self._path(trial_id), "a+b") as file:
            _drop_torn_line(file)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _lines(self, trial_id: str, containing: bytes = b"") -> Iterable[Row]:
        path = self._path(trial_id)
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
                    raise UserError(
                        f"line {number} of {path} is damaged; delete that file to have trial "
                        f"{trial_id} run again, or restore it"
                    ) from None


class ResultTables:
    """The tables of a finished or running sweep, read from its folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def trials(self) -> pd.DataFrame:
        """One row per finished, diverged or failed trial."""
        return self._read("trials.parquet")

    @property
    def history(self) -> pd.DataFrame:
        """One row per trial and measuring point."""
        return self._read("history.parquet")

    def steps(self, trial_id: str) -> pd.DataFrame:
        """One row per training step of a trial: the columns of :class:`StepSeries`, and V_t."""
        return self._read(str(steps_path(Path(), trial_id)))

    def _read(self, name: str) -> pd.DataFrame:
        path = self.folder / name
        if not path.exists():
            raise UserError(f"{path} does not exist; run the sweep first")
        if journal_bytes(path) is None:
            self._rebuild(path)
        return pd.read_parquet(path)

    def _rebuild(self, damaged: Path) -> None:
        """Every table is made from the journal, and can be made again."""
        journal = Journal(self.folder)
        if not journal.trial_ids():
            raise UserError(f"{damaged} is cut off or damaged, and there is no journal beside it")
        if damaged.parent.name == steps_path(Path(), "").parent.name:
            write_steps(self.folder, journal, damaged.stem)
        else:
            write_tables(self.folder, [])


def varying_fields(trials: pd.DataFrame, *, besides: Sequence[str]) -> list[str]:
    """The settings, other than ``besides``, that are not the same in all rows.

    A figure or a claim that does not hold them fixed would mix them with what it shows.
    """
    settings = [path for path in field_paths() if path in trials.columns and path not in besides]
    # Of a field that is null in some rows alone, null is a value like any other.
    return [path for path in settings if trials[path].astype(str).nunique(dropna=False) > 1]


def row_of(config: TrialConfig, metrics: Mapping[str, Any]) -> Row:
    """``trial_id``, ``status``, every config field under its dotted path, then the metrics."""
    head = {"trial_id": config.trial_id, "status": metrics["status"]}
    return {**head, **config.flat(), **metrics}


def write_tables(folder: Path, trials: Iterable[TrialConfig]) -> ResultTables:
    """Rebuild ``trials.parquet`` and ``history.parquet`` from the journals.

    These trials come first, in their order; then whatever else earlier launches have ended here.
    """
    journal = Journal(folder)
    rows, history = _Columns("trial_id", "status"), _Columns("trial_id", "step")
    asked = [config.trial_id for config in trials]
    for trial_id in [*asked, *(t for t in journal.trial_ids() if t not in set(asked))]:
        record = journal.read(trial_id, with_steps=False)
        if record.row is not None:
            rows.add(record.row)
            if journal_bytes(steps_path(folder, trial_id)) != journal.size(trial_id):
                write_steps(folder, journal, trial_id)
        elif trial_id not in asked:
            continue  # broken off, and not asked for any more
        for point in record.points:
            history.add({"trial_id": trial_id, **point})
    _write_parquet(rows.frame(), folder / "trials.parquet")
    _write_parquet(history.frame(), folder / "history.parquet")
    # What the tables took is given back, instead of being kept for the next time.
    pyarrow.default_memory_pool().release_unused()
    return ResultTables(folder)


def reuse(folder: Path, trials: Iterable[TrialConfig], others: Iterable[Path]) -> int:
    """Take the trials that other sweeps' folders have completed from there; how many.

    Raises:
        UserError: one of the folders holds no sweep.
    """
    taken = 0
    mine = Journal(folder)
    for other in others:
        if not (other / "journal").is_dir():
            raise UserError(
                f"--reuse {other} holds no results (there is no {other / 'journal'}); name the "
                "folder of a sweep, as in results/lr_batch"
            )
        theirs = Journal(other)
        for trial_id in (config.trial_id for config in trials):
            row, own = theirs.read_row(trial_id), mine.read_row(trial_id)
            if row is None or row["status"] not in COMPLETE:
                continue
            if own is None or own["status"] not in COMPLETE:
                mine.adopt(trial_id, theirs)
                taken += 1
    return taken


class _Columns:
    """Records, one after the other, as a table's columns: as dicts they take ten times the memory.

    A record that lacks a column has NaN there. Without records there are the columns ``least``.
    """

    def __init__(self, *least: str):
        self._values: dict[str, list[Any]] = {name: [] for name in least}
        self._count = 0

    def add(self, record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            column = self._values.setdefault(name, [])
            column += [math.nan] * (self._count - len(column))
            column.append(value)
        self._count += 1

    def frame(self) -> pd.DataFrame:
        for column in self._values.values():
            column += [math.nan] * (self._count - len(column))
        return pd.DataFrame(self._values)


def steps_path(folder: Path, trial_id: str) -> Path:
    """Where a trial's per-step table lies."""
    return folder / "steps" / f"{trial_id}.parquet"


def write_steps(folder: Path, journal: Journal, trial_id: str) -> None:
    """``steps/<trial_id>.parquet``: every training step of one trial."""
    path, size = steps_path(folder, trial_id), journal.size(trial_id)
    record = journal.read(trial_id)
    path.parent.mkdir(exist_ok=True)
    table: dict[str, Any] = {"step": np.arange(1, len(record.steps) + 1)}
    table |= record.steps.columns()
    table["gradient_dispersion"] = record.steps.gradient_dispersion
    table["gradient_dispersion_neu"] = record.steps.gradient_dispersion_neu
    table["per_sample_dispersion"] = record.steps.per_sample_dispersion
    _write_parquet(pd.DataFrame(table), path, made_from=size)


def journal_bytes(path: Path) -> int | None:
    """Size of the journal that a table was made from; None if there is no whole table.

    Which of two files is newer is not asked: clocks of machines that share a folder are apart.
    """
    try:
        notes = parquet.read_metadata(path).metadata or {}
    except (OSError, ValueError):  # pyarrow's own errors are of these
        return None
    return int(notes.get(MADE_FROM, -1))


def _write_parquet(frame: pd.DataFrame, path: Path, made_from: int | None = None) -> None:
    """Replace ``path`` as a whole: readers see the old table or the new one."""
    partial = path.with_name(path.name + ".partial")
    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    if made_from is not None:
        notes = {**(table.schema.metadata or {}), MADE_FROM: str(made_from).encode()}
        table = table.replace_schema_metadata(notes)
    try:
        parquet.write_table(table, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
