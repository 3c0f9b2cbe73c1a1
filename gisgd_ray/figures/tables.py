"""A table of the paper as measured: the same object for the terminal, a file and the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table as RichTable

from gisgd_ray.results.whole_files import replace_file


@dataclass(frozen=True)
class Row:
    """One line: its name, its cells as text, which of them stand out; a :class:`Cell`
    (:mod:`gisgd_ray.numbers`) is sorted by its number."""

    label: str
    cells: Sequence[str]
    bold: frozenset[int] = frozenset()
    """Indices of the cells shown in bold."""


@dataclass(frozen=True)
class Table:
    """Text only: whoever builds it has formatted the numbers."""

    title: str
    headings: Sequence[str]
    """Of the cells; the labels have none."""
    rows: Sequence[Row]
    caption: str = ""


def for_terminal(table: Table) -> RichTable:
    """The table for ``rich``; long headings wrap."""
    shown = RichTable(title=table.title, title_justify="left", caption=None)
    shown.add_column("")
    for heading in table.headings:
        shown.add_column(heading, justify="right")
    for row in table.rows:
        cells = [f"[bold]{c}[/]" if i in row.bold else c for i, c in enumerate(row.cells)]
        shown.add_row(row.label, *cells)
    return shown


def as_markdown(table: Table) -> str:
    """The table in Markdown, columns padded so that it also reads as it is."""
    lines = [["", *table.headings]]
    for row in table.rows:
        cells = [f"**{c}**" if i in row.bold else c for i, c in enumerate(row.cells)]
        lines.append([row.label, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [" | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    rule = " | ".join("-" * (w - 1) + ":" if i else "-" * w for i, w in enumerate(widths))
    body = "\n".join(f"| {line} |" for line in [padded[0], rule, *padded[1:]])
    return f"### {table.title}\n\n{body}\n" + (f"\n{table.caption}\n" if table.caption else "")


def save_tables(tables: Sequence[Table], path: Path) -> None:
    """All tables in one Markdown file, replaced as a whole; no file without tables."""
    if not tables:
        return
    replace_file(path, "\n".join(as_markdown(table) for table in tables).encode())
