"""The sweep's HTML page: one self-contained file, to be put in front of a co-author.

What the page says of this sweep is decided here and by the two tables of bounds, as plain strings;
``page.html`` places, styles and escapes them. Figures go in as ``<img>`` data URIs: each SVG keeps
its own ids, which would clash if several were inlined, and nothing inside one can run.
"""

import base64
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from gisgd_ray.claims import LEVEL, Claim
from gisgd_ray.config import TrialConfig
from gisgd_ray.reporting.bounds_table import (
    column_groups,
    coverage,
    key_columns,
    known,
    records,
    seed_rows,
    table_columns,
    trial_label,
    trial_rows,
)
from gisgd_ray.reporting.comparison import compare
from gisgd_ray.reporting.numbers import format_number, format_setting, is_missing
from gisgd_ray.reporting.tables import Table
from gisgd_ray.results import ResultTables
from gisgd_ray.whole_files import replace_file

PACKAGES = ("torch", "ray", "numpy", "backpack-for-pytorch", "pyhessian")
MAX_LISTED = 8


def write_page(
    tables: ResultTables,
    *,
    item: str,
    name: str,
    description: str,
    facts: Mapping[str, str],
    figures: Mapping[str, Path],
    claims: Sequence[Claim],
    swept: Sequence[str],
    planned: int,
    captions: Mapping[str, str] | None = None,
    paper_tables: Sequence[Table] = (),
) -> Path:
    """Write ``report.html`` beside the tables, replacing it as a whole; returns its path.

    Args:
        tables: the sweep's results, trials that failed or diverged included.
        item: what of the paper it is, e.g. "Figure 6".
        name: the sweep's name.
        description: one sentence; a leading "Figure 6: " is taken off.
        facts: anything else about the launch, by name; ``scale`` and ``command`` are known.
        figures: SVG files by name.
        claims: the paper's claims with this run's verdicts.
        swept: dotted fields in which the trials differ, ``seed`` aside.
        planned: how many trials the sweep has.
        captions: what a figure shows, by its name.
        paper_tables: tables as the paper prints them, shown before the figures.
    """
    trials = tables.trials
    lead = description.removeprefix(f"{item}:").strip()
    lead = lead[:1].upper() + lead[1:]
    points = [path for path in swept if path in trials.columns and path != "seed"]
    seeds = trials["seed"].nunique() if "seed" in trials.columns else 0
    paths = [*points, "seed"] if seeds > 1 else points
    columns = table_columns(trials)
    finished = int((trials["status"] == "finished").sum())
    caption = f"{item} as measured by this run, from {finished} finished trials."
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tight"] = tight
    text = environment.get_template("page.html").render(
        item=item,
        name=name,
        lead=lead,
        status=status_line(trials, planned),
        scale=facts.get("scale", ""),
        command=facts.get("command", ""),
        facts={key: text for key, text in facts.items() if key != "command"},
        figures=[
            {"name": key, "uri": _data_uri(path), "caption": (captions or {}).get(key, caption)}
            for key, path in figures.items()
        ],
        paper_tables=paper_tables,
        dispersion_off=_nowhere(trials, "measurement.dispersion"),
        claims=claims,
        level=f"{LEVEL * 100:g} %",
        columns=columns,
        groups=column_groups(columns),
        present=_present(trials),
        comparison=compare(trials, points if seeds > 1 else paths, over_seeds=seeds > 1),
        interpolations=_first(_distinct(trials, "measure/sensitivity_interpolation"), 3),
        replicas=_distinct(trials, "replicas"),
        keys=key_columns(trials, paths),
        rows=trial_rows(trials, columns, paths),
        point_keys=key_columns(trials, points),
        seed_rows=seed_rows(trials, columns, points) if seeds > 1 else [],
        coverage=coverage(trials),
        estimators=_distinct(trials, "measure/hessian_trace_estimator"),
        cautions=find_cautions(trials, paths),
        configuration=configuration(trials, swept),
        data=_data_facts(trials),
        versions=_versions(),
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    page = tables.folder / "report.html"
    # A surrogate in an error message must not cost the page.
    replace_file(page, text.encode(errors="backslashreplace"))
    return page


def tight(text: str) -> str:
    """A sentence with numbers in it, so spaced that no line ends inside ``n = 12`` or ``1e−05``."""
    text = re.sub(r" = | %", lambda match: match.group().replace(" ", "\N{NO-BREAK SPACE}"), text)
    return re.sub(r"(?<=[ e(=\N{NO-BREAK SPACE}])-(?=\d)", "−", text)


def status_line(trials: pd.DataFrame, planned: int) -> str:
    """How the trials ended, in one line: "11 of 12 trials finished, 1 diverged"."""
    counts = trials["status"].value_counts()
    parts = [f"{counts.get('finished', 0)} of {planned} trials finished"]
    parts += [f"{counts[s]} {s}" for s in ("diverged", "failed") if s in counts]
    if len(trials) < planned:
        parts.append(f"stopped early: {planned - len(trials)} have not run to their end")
    return ", ".join(parts)


@dataclass(frozen=True)
class Failure:
    """A trial that failed, told without this machine's paths."""

    label: str
    trial_id: str
    error: str
    """The last line: what went wrong."""
    traceback: str
    """All of it; empty where there is no more than the last line."""


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

    def __bool__(self) -> bool:
        return any((self.diverged, self.failed, self.outside, self.ill_conditioned))


def find_cautions(trials: pd.DataFrame, paths: Sequence[str]) -> Cautions:
    """Diverged and failed trials, those outside the theorem, and ill-conditioned steps."""
    found = Cautions([], [], {}, [])
    for row in records(trials):
        label = trial_label(row, paths)
        if row["status"] == "failed":
            text = without_machine(str(known(row, "error") or "")).strip()
            lines = text.splitlines() or ["no error was recorded"]
            traceback = text if len(lines) > 1 else ""
            found.failed.append(Failure(label, str(row["trial_id"]), lines[-1], traceback))
        if row["status"] == "diverged":
            found.diverged.append((label, str(known(row, "stop_reason") or "no reason recorded")))
        if outside := known(row, "outside_theorem"):
            found.outside.setdefault(str(outside), []).append(label)
        if steps := known(row, "measure/ill_conditioned_steps"):
            some, of = (format_number(int(count)) for count in (steps, row["steps"]))
            found.ill_conditioned.append((label, f"{some} of {of}"))
    return found


def without_machine(text: str) -> str:
    """A traceback fit to be passed on: no folders of this machine, addresses or colour codes.

    >>> without_machine('File "/home/ada/venv/site-packages/ray/x.py", line 3 (pid=7, ip=::1)')
    'File "…/ray/x.py", line 3 (pid=7)'
    """
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", text)
    text = re.sub(r",? ?\bip=[^\s,)]+", "", text)
    return re.sub(r"(?<![\w/:.<>…])/[^\s\"'<>(),;:]+", _short_path, text)


def _short_path(match: re.Match[str]) -> str:
    path = match.group()
    for anchor, keep in (("/site-packages/", ""), ("/gisgd_ray/", "gisgd_ray/")):
        _, found, inner = path.partition(anchor)
        if found:
            return f"…/{keep}{inner}"
    parts = path.strip("/").split("/")
    return path if len(parts) == 1 else f"…/{parts[-1]}"


@dataclass(frozen=True)
class Configuration:
    """The trials' configuration by dotted field, as text."""

    swept: dict[str, str]
    differing: dict[str, str]
    """Fields that differ but are not swept: constants of a panel, or of a model family."""
    shared: dict[str, str]


def configuration(trials: pd.DataFrame, swept: Sequence[str]) -> Configuration:
    """Every configuration field of the table, sorted by whether and why it varies."""
    found = Configuration({}, {}, {})
    for path in map(str, trials.columns):
        if path.partition(".")[0] not in TrialConfig.model_fields:
            continue
        values = list(trials[path])
        if path.startswith(("model.", "scheme.")):
            # Only some families have the field: nothing there is not a value of its own.
            values = [value for value in values if not is_missing(value)] or values
        texts = list(dict.fromkeys(map(format_setting, values)))
        if path in swept or (path == "seed" and len(texts) > 1):
            found.swept[path] = _listed(values)
        elif len(texts) > 1:
            found.differing[path] = _listed(values)
        else:
            found.shared[path] = texts[0] if texts else ""
    return found


def _listed(values: Iterable[Any]) -> str:
    """Distinct values; many numbers as a range."""
    distinct = {format_setting(value): value for value in values}
    if len(distinct) <= MAX_LISTED:
        return ", ".join(distinct)
    try:
        low, high = min(distinct.values()), max(distinct.values())
        return f"{len(distinct)} values, {low:.6g} to {high:.6g}"
    except (TypeError, ValueError):
        return ", ".join([*list(distinct)[:MAX_LISTED], f"… ({len(distinct)} values)"])


def _present(trials: pd.DataFrame) -> set[str]:
    """Names of the columns that have a value in some trial, without their noise stds."""
    filled = trials.columns[trials.notna().any()]
    return {str(name).partition("@")[0] for name in filled}


def _nowhere(trials: pd.DataFrame, switch: str) -> bool:
    """Whether a switch is off in every trial, and there is one."""
    if switch not in trials.columns or trials.empty:
        return False
    return not trials[switch].fillna(True).astype(bool).any()


def _data_facts(trials: pd.DataFrame) -> dict[str, str]:
    """n, d, normalisation and devices; per model and dataset where there are several."""
    facts: dict[str, list[str]] = {}
    names = {
        "num_samples": "training samples n",
        "num_parameters": "parameters d",
        "data/normalization_mean": "input mean (subtracted)",
        "data/normalization_std": "input std (divided by)",
        "device": "device",
    }
    by = ["model.name", "data.dataset"]
    if not set(by) <= set(trials.columns):
        return {}
    groups = list(trials.groupby(by, sort=False))
    for (model, dataset), group in groups:
        where = f" ({model} on {dataset})" if len(groups) > 1 else ""
        for column, name in names.items():
            texts = _distinct(group, column)
            if texts:
                facts.setdefault(name, []).append(", ".join(_first(texts, MAX_LISTED)) + where)
    return {name: "; ".join(texts) for name, texts in facts.items()}


def _distinct(trials: pd.DataFrame, column: str) -> list[str]:
    """The distinct values of a column as text, in order; [] without the column."""
    if column not in trials.columns:
        return []
    return list(dict.fromkeys(_text(value) for value in trials[column] if not is_missing(value)))


def _first(texts: list[str], most: int) -> list[str]:
    """The first so many, and how many there are."""
    return texts if len(texts) <= most else [*texts[:most], f"… ({len(texts)} values)"]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if hasattr(value, "__len__"):
        return ", ".join(format_number(float(v)) for v in value)
    # Counts are floats where a failed trial has none.
    return format_number(int(value)) if float(value).is_integer() else format_number(value)


def _data_uri(svg: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode()


def _versions() -> dict[str, str]:
    """Python, the packages that made the numbers, and this one with its commit."""
    versions = {"Python": platform.python_version()}
    versions |= {package: _version(package) for package in PACKAGES}
    commit = _commit()
    versions["gisgd-ray"] = _version("gisgd-ray") + (f", commit {commit}" if commit else "")
    return versions


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
