"""The tables of a sweep, made from its journals (:mod:`gisgd_ray.results.journal`) at any time.

``trials.parquet``, ``history.parquet`` and ``steps/<trial_id>.parquet`` are replaced as a whole, so
that a crash never leaves half a table. :mod:`gisgd_ray.results.columns` says what is in them.
"""

import errno
import io
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
from pyarrow import parquet

from gisgd_ray.config.space import field_paths
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.results.columns import Columns, trial_columns
from gisgd_ray.results.journal import COMPLETE, Journal, Row
from gisgd_ray.results.row_check import (
    config_of,
    is_of_old_schema,
    is_of_this_version,
    require_number_columns,
    require_numbers,
    require_own,
)
from gisgd_ray.results.whole_files import replace_by, require_no_links

MADE_FROM = b"gisgd_ray.journal_bytes"
SEAL = b"gisgd_ray.columns_crc32"
"""Parquet has checksums of a table's values, and none of what its columns are called."""
TRIALS, HISTORY = "trials.parquet", "history.parquet"
NOISE_STDS = "measurement.noise_stds"


def require_writable(path: Path) -> None:
    """See that a folder could be made, without making it.

    Raises:
        UserError: what there is above it may not be written, or it is no folder of results.
    """
    there = path
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir() or not os.access(there, os.W_OK):
            code = errno.EACCES if there.is_dir() else errno.ENOTDIR
            raise OSError(code, os.strerror(code))
    except OSError as error:  # a name that is too long, say
        raise _not_written(path, error) from error
    require_no_links(path)


def results_folder(path: Path) -> Path:
    """``path`` made and found writable.

    Raises:
        UserError: it cannot be written, or what is in it would lead writing elsewhere.
    """
    path = path.expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise _not_written(path, error) from error
    require_no_links(path)
    return path


def _not_written(path: Path, error: OSError) -> UserError:
    return UserError(
        f"output folder {path} cannot be written ({error.strerror or error}); "
        "choose another with --out"
    )


class ResultTables:
    """The tables of a finished or running sweep, read from its folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def trials(self) -> pd.DataFrame:
        """One row per finished, diverged or failed trial."""
        return self._read(TRIALS)

    @property
    def history(self) -> pd.DataFrame:
        """One row per trial and measuring point."""
        return self._read(HISTORY)

    def steps(self, trial_id: str) -> pd.DataFrame:
        """One row per training step of a trial: the columns of :class:`StepSeries`, and V_t."""
        if "/" in trial_id:
            raise UserError(f"{trial_id!r} in {self.folder} is no trial's id")
        return self._read(str(steps_path(Path(), trial_id)))

    def _read(self, name: str) -> pd.DataFrame:
        path = self.folder / name
        if not path.exists():
            raise UserError(f"{path} does not exist; run the sweep first")
        try:
            whole = parquet.read_table(path, page_checksum_verification=True)
            seal = (whole.schema.metadata or {}).get(SEAL)
            # Earlier versions wrote none, but beside a journal, from which a table is made again.
            unsealed = seal is None and (self.folder / "journal").is_dir()
            if unsealed or seal not in (None, _seal_of(whole)):
                raise ValueError("its columns are not those that were written")
            table: pd.DataFrame = whole.to_pandas(ignore_metadata=True)
        except (OSError, ValueError, pyarrow.ArrowException) as fault:
            if getattr(fault, "errno", None) is not None:  # the disk's fault, not the file's
                raise
            table = self._rebuilt(path)
        if "trial_id" in table.columns:
            require_number_columns(table, path)
        return table

    def _rebuilt(self, damaged: Path) -> pd.DataFrame:
        """What a damaged table held: all are made from the journal. Nothing is written, since who
        reads a folder need not be allowed to."""
        journal = Journal(self.folder)
        if not journal.trial_ids():
            raise UserError(f"{damaged} is cut off or damaged, and there is no journal beside it")
        if damaged.name in (TRIALS, HISTORY):
            table = _tables(journal, [])[damaged.name == HISTORY]
        else:
            table = _steps_table(journal.read(damaged.stem).steps.table())
        whole: pd.DataFrame = table.to_pandas()
        return whole


def varying_fields(trials: pd.DataFrame, *, besides: Sequence[str]) -> list[str]:
    """The settings, other than ``besides``, that are not the same in all rows.

    A figure or a claim that does not hold them fixed would mix them with what it shows.
    """
    settings = [path for path in field_paths() if path in trials.columns and path not in besides]
    # Of a field that is null in some rows alone, null is a value like any other.
    return [path for path in settings if trials[path].astype(str).nunique(dropna=False) > 1]


def row_of(config: TrialConfig, metrics: Mapping[str, Any]) -> Row:
    """``trial_id``, ``status``, every config field under its dotted path, then the metrics."""
    head = {"trial_id": config.trial_id, "status": metrics["status"], "settings": config.settings}
    return {**head, **config.flat(), **metrics}


def write_tables(folder: Path, trials: Iterable[TrialConfig]) -> ResultTables:
    """Rebuild ``trials.parquet`` and ``history.parquet`` from the journals.

    These trials come first, in their order; then whatever else earlier launches have ended here.
    """
    journal = Journal(folder)
    rows, history = _tables(journal, list(trials))
    for trial_id in rows["trial_id"].to_pylist():
        if journal_bytes(steps_path(folder, trial_id)) != journal.size(trial_id):
            write_steps(folder, journal, trial_id)
    _write_parquet(rows, folder / TRIALS)
    _write_parquet(history, folder / HISTORY)
    # What the tables took is given back, instead of being kept for the next time.
    pyarrow.default_memory_pool().release_unused()
    return ResultTables(folder)


def _tables(journal: Journal, asked: Sequence[TrialConfig]) -> tuple[pyarrow.Table, pyarrow.Table]:
    """The rows of the trials that have ended, and the points of those and of the ones asked for.

    The rows have every column that a trial may have; the points, of which there may be millions,
    those that one of them has.

    Raises:
        UserError: a journal is damaged, or holds what is not its trial's.
    """
    rows, history = Columns(), Columns()
    known = dict.fromkeys(config.trial_id for config in asked)
    for trial_id in [*known, *(t for t in journal.trial_ids() if t not in known)]:
        record = journal.read(trial_id, with_steps=False)
        if record.row is not None:
            require_own(record.row, trial_id, journal.path(trial_id))
            # A field that is newer than the row had its default then.
            config = config_of(record.row)
            rows.add({**(config.flat() if config else {}), **record.row})
        elif trial_id not in known:
            continue  # broken off, and not asked for any more
        for point in record.points:
            history.add({"trial_id": trial_id, **point})
    stds = {std for config in asked for std in config.measurement.noise_stds}
    stds |= {std for given in rows.values(NOISE_STDS) for std in _numbers(given)}
    return (
        rows.table(journal.folder, least=trial_columns(stds)),
        history.table(journal.folder, least=["trial_id", "step"]),
    )


def _numbers(given: Any) -> list[float]:
    """Those in a list, where it is one: a setting of another version may be anything."""
    return [std for std in given if isinstance(std, float)] if isinstance(given, list) else []


def require_results(folders: Iterable[Path]) -> None:
    """See that each of these is a sweep's folder.

    Raises:
        UserError: one is not.
    """
    for folder in folders:
        if not os.path.isdir(folder / "journal"):  # pathlib's raises where a name is too long
            raise UserError(
                f"--reuse {folder} holds no results (there is no {folder / 'journal'}); name the "
                "folder of a sweep on this machine, as in results/lr_batch"
            )
        require_no_links(folder)


def finished_ids(folder: Path, trials: Iterable[TrialConfig]) -> set[str]:
    """Those of the trials that an earlier launch into this folder has completed.

    Raises:
        UserError: a journal of theirs is damaged, or its row is another trial's.
    """
    if not (folder / "journal").exists():
        return set()
    journal = Journal(folder)
    found = set()
    for trial_id in {t.trial_id for t in trials}:
        row = journal.read_row(trial_id)
        if row is not None:
            require_own(row, trial_id, journal.path(trial_id))
            if row["status"] in COMPLETE:
                found.add(trial_id)
    return found


def require_own_rows(folder: Path, trials: Iterable[TrialConfig]) -> list[str]:
    """See that every row in a folder is its trial's, before a launch adds to them.

    Returns:
        Those, beside these trials, whose settings are another version's: they are results all the
        same, and none of these trials.

    Raises:
        UserError: one is not, or its journal is damaged. Or it has its name from a version that
            named trials otherwise: beside it the same trial would run again, and count twice.
    """
    journal, foreign = Journal(folder), []
    asked = {trial.trial_id for trial in trials}
    for trial_id in journal.trial_ids():
        row = journal.read_row(trial_id)
        if row is not None:
            require_own(row, trial_id, journal.path(trial_id))
            require_numbers(row, trial_id, journal.path(trial_id))
            if is_of_old_schema(row):
                raise UserError(
                    f"{folder} holds trials named by an earlier version of gisgd-ray; choose "
                    f"another folder with --out, and add --reuse {folder} to take its finished "
                    "trials from there, under the names that they have now"
                )
            if trial_id not in asked and not is_of_this_version(row):
                foreign.append(trial_id)
    return foreign


def reusable(other: Path, trials: Iterable[TrialConfig]) -> dict[str, str]:
    """The trials that another sweep's folder has completed: their ids, and what they are there.

    Raises:
        UserError: as :func:`reuse`.
    """
    trials = list(trials)
    found = {trial_id: trial_id for trial_id in finished_ids(other, trials)}
    journal, asked = Journal(other), {trial.trial_id for trial in trials}
    for old_id in journal.trial_ids():
        row = None if old_id in asked else journal.read_row(old_id)
        if row is None or row["status"] not in COMPLETE or not is_of_old_schema(row):
            continue
        require_own(row, old_id, journal.path(old_id))
        config = config_of(row)
        if config is not None and config.trial_id in asked:
            found.setdefault(config.trial_id, old_id)
    return found


def reuse(folder: Path, trials: Sequence[TrialConfig], others: Sequence[Path]) -> int:
    """Take the trials that other sweeps' folders have completed from there; how many.

    Those that an earlier version named get the names they have now.

    Raises:
        UserError: one of the folders holds no sweep, a damaged journal, or one with a row that is
            another trial's.
    """
    require_results(others)
    taken = 0
    mine, asked = Journal(folder), {trial.trial_id: trial for trial in trials}
    for other in others:
        theirs = Journal(other)
        done = finished_ids(folder, trials)
        for trial_id, their_id in reusable(other, trials).items():
            if trial_id in done:
                continue
            record = theirs.read(their_id)  # whole, or it is not taken
            row = record.row or {}
            for each in (row, *record.points):
                require_numbers(each, their_id, theirs.path(their_id))
            if trial_id == their_id:
                mine.adopt(trial_id, theirs)
            else:
                renamed = row_of(asked[trial_id], {"status": row["status"]})
                mine.adopt_as(trial_id, theirs, their_id, row={**row, **renamed})
            taken += 1
    return taken


def steps_path(folder: Path, trial_id: str) -> Path:
    """Where a trial's per-step table lies."""
    return folder / "steps" / f"{trial_id}.parquet"


def write_steps(folder: Path, journal: Journal, trial_id: str) -> None:
    """``steps/<trial_id>.parquet``: every training step of one trial."""
    path, size = steps_path(folder, trial_id), journal.size(trial_id)
    table = _steps_table(journal.read(trial_id).steps.table())
    path.parent.mkdir(exist_ok=True)
    _write_parquet(table, path, made_from=size)


def steps_parquet(columns: Mapping[str, Any]) -> bytes:
    """The columns of a trial's steps as the bytes of such a file, for who has them elsewhere."""
    file = io.BytesIO()
    parquet.write_table(_sealed(_steps_table(columns)), file, write_page_checksum=True)
    return file.getvalue()


def _steps_table(columns: Mapping[str, Any]) -> pyarrow.Table:
    return pyarrow.table({k: pyarrow.array(v, from_pandas=True) for k, v in columns.items()})


def journal_bytes(path: Path) -> int | None:
    """Size of the journal that a table was made from; None if there is no whole table.

    Which of two files is newer is not asked: clocks of machines that share a folder are apart.
    """
    try:
        notes = parquet.read_metadata(path).metadata or {}
    except (OSError, ValueError):  # pyarrow's own errors are of these
        return None
    return int(notes.get(MADE_FROM, -1))


def _write_parquet(table: pyarrow.Table, path: Path, made_from: int | None = None) -> None:
    """Replace ``path`` as a whole: readers see the old table or the new one."""
    sealed = _sealed(table, made_from)
    replace_by(path, lambda file: parquet.write_table(sealed, file, write_page_checksum=True))


def _sealed(table: pyarrow.Table, made_from: int | None = None) -> pyarrow.Table:
    notes = {SEAL: _seal_of(table)}
    if made_from is not None:
        notes[MADE_FROM] = str(made_from).encode()
    return table.replace_schema_metadata(notes)


def _seal_of(table: pyarrow.Table) -> bytes:
    # What a list holds is called otherwise once it has been in a file.
    types = [str(field.type).replace("<item: ", "<element: ") for field in table.schema]
    columns = list(zip(table.schema.names, types, strict=True))
    return b"%08x" % zlib.crc32(repr((table.num_rows, columns)).encode())


def records(trials: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows, one dict each."""
    for record in trials.to_dict("records"):
        yield {str(key): value for key, value in record.items()}
