"""What a W&B report says in words: formulas in LaTeX, tables in Markdown. No W&B here."""

from collections.abc import Iterable, Mapping, Sequence

from gisgd_ray.claims.claim import HOW_JUDGED, Claim
from gisgd_ray.figures.tables import Table
from gisgd_ray.report.comparison import Comparison

MOST_ROWS = 200
"""Of a table in a report, which is a single text there."""

ALWAYS = (
    "bound/theorem2_closed_form",
    "term/optimal_noise_std",
    "term/theorem2_trajectory@",
    "term/lemma2_trajectory@",
)
"""The quantities that every report explains."""


def escaped(text: str) -> str:
    """Text for a cell of a Markdown table: nothing in it is markup, and it is one line.

    >>> escaped("a | b*\\nc_d <e>")
    'a \\\\| b\\\\* c\\\\_d \\\\<e\\\\>'
    """
    line = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\|*_`<>[]$~" else c for c in line)


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are Markdown already; rows beyond :data:`MOST_ROWS` are counted only."""
    lines = [headings, ["---"] * len(headings), *rows]
    shown = ["| " + " | ".join(line) + " |" for line in lines[: MOST_ROWS + 2]]
    left = len(lines) - len(shown)
    more = f"\n\n… and {left} more rows, in report.html and trials.parquet." if left > 0 else ""
    return "\n".join(shown) + more


def claims_markdown(claims: Sequence[Claim]) -> str:
    """The paper's claims with this run's verdicts, and how those were reached."""
    rows = [
        [escaped(claim.text), f"**{escaped(claim.verdict)}**", *map(escaped, (claim.evidence,)),
         escaped(claim.test)]
        for claim in claims
    ]  # fmt: skip
    table = markdown_table(["the paper says", "verdict", "evidence", "test"], rows)
    return f"{table}\n\n{escaped(HOW_JUDGED)}"


def comparison_markdown(comparison: Comparison) -> str:
    """Ours against Neu et al.'s, a line for every combination (or trial) and noise std."""
    headings = [
        " ".join(filter(None, (column.group, column.heading, column.detail)))
        for column in comparison.columns
    ]
    rows = []
    for block in comparison.blocks:
        named = ", ".join(f"{name} = {value}" for name, value in block.settings)
        named = ", ".join(filter(None, (named, block.status)))
        facts = ", ".join(f"{name} {value}" for name, value in block.facts)
        rows += [
            [*map(escaped, (named, line.noise_std, *line.cells, facts))] for line in block.lines
        ]
    return markdown_table(["setting", "σ", *map(escaped, headings), "without σ"], rows)


def paper_table_markdown(table: Table) -> str:
    """A table as the paper prints it, its title and caption around it."""
    rows = [
        [
            escaped(row.label),
            *(
                f"**{escaped(c)}**" if i in row.bold else escaped(c)
                for i, c in enumerate(row.cells)
            ),
        ]
        for row in table.rows
    ]
    parts = [
        f"**{escaped(table.title)}**",
        markdown_table(["", *map(escaped, table.headings)], rows),
    ]
    return "\n\n".join([*parts, escaped(table.caption)]).strip()


def facts_markdown(facts: Mapping[str, str]) -> str:
    """What was run, the command aside."""
    rows = [[escaped(name), escaped(text)] for name, text in facts.items() if name != "command"]
    return markdown_table(["", ""], rows)
