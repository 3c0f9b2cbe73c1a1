"""The HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from gisgd_ray.claims import Claim
from gisgd_ray.results import ResultTables


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
) -> Path:
    path = tables.folder / "report.html"
    path.write_text("".join(f"<p>{c}</p>" for c in claims))
    return path
