"""A sweep's tables on the page, in its file and in the terminal; trials of several schemes told
apart."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from gisgd_ray.figures.tables import Row, Table, for_terminal
from gisgd_ray.runner import cli
from gisgd_ray.runner.plan import make_plan
from sweeps import clipping, double_descent, lr_batch, regularizers
from tests.support import pages

TABLE = Table(
    title="MLP on mnist5k",
    headings=["test accuracy (%)", "paper: VGG16 on cifar10"],
    rows=[Row("ERM", ["70.10 ± 1.27", "93.68 ± 0.19"], frozenset({0})), Row("A<B", ["1", "–"])],
    caption="Mean over 2 seeds.",
)


def test_the_page_shows_it_as_a_table_with_its_caption(tmp_path: Path) -> None:
    text = pages.write(tmp_path, [pages.finished("a")], tables=[TABLE])
    document = pages.Document(text)
    expected = [
        ["", "test accuracy (%)", "paper: VGG16 on cifar10"],
        ["ERM", "70.10 ± 1.27", "93.68 ± 0.19"],
        ["A<B", "1", "–"],
    ]
    assert expected in document.tables
    assert "<b>70.10 ± 1.27</b>" in text
    assert any("Mean over 2 seeds." in words for words in document.texts)


def test_without_tables_the_page_has_no_such_section(tmp_path: Path) -> None:
    assert "The table" not in pages.write(tmp_path, [pages.finished("a")]).partition("<body>")[2]


def test_without_dispersion_the_page_says_why_there_are_no_bounds(tmp_path: Path) -> None:
    row: dict[str, Any] = pages.finished("a", measurement__dispersion=False)
    row = {k: v for k, v in row.items() if not k.startswith(("bound/", "term/", "measure/"))}
    text = pages.write(tmp_path, [row])
    assert "This run measured no gradient dispersion, and so has no bounds." in text


def test_the_terminal_shows_every_cell() -> None:
    console = Console(width=100, file=io.StringIO())
    console.print(for_terminal(TABLE))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(word in text for word in ("MLP on mnist5k", "ERM", "70.10 ± 1.27", "93.68 ± 0.19"))


def test_every_trial_of_a_sweep_has_a_label_of_its_own() -> None:
    for sweep in (regularizers.SWEEP, clipping.SWEEP, double_descent.SWEEP, lr_batch.SWEEP):
        options = cli.parse([], prog=sweep.name, description=sweep.description)
        plan = make_plan(sweep.spaces("laptop"), options, "laptop")
        labels = [plan.labels[config.trial_id] for config in plan.trials]
        assert len(set(labels)) == len(labels)
