"""What is printed where the terminal, or the log in its place, lacks a character."""

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from gisgd_ray import terminal
from gisgd_ray.figures.tables import Row, Table, for_terminal
from gisgd_ray.runner import report as reporting
from gisgd_ray.runner.main import main
from gisgd_ray.tracking import sync as wandb_sync
from sweeps.lr_batch import SWEEP

TABLE = Table("Σ over σ", ["γ", "±"], [Row("naïve", ["1 ± 2", "≤ 3"])])


def ascii_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """From now on as with ``PYTHONIOENCODING=ascii``; gives what was printed."""
    buffers = io.BytesIO(), io.BytesIO()
    for name, buffer in zip(("stdout", "stderr"), buffers, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, "ascii", write_through=True))
    return lambda: b"".join(buffer.getvalue() for buffer in buffers).decode()


@pytest.mark.parametrize(
    "program",
    [lambda argv: main(SWEEP, argv), reporting.main, wandb_sync.main],
    ids=["sweep", "reporting", "wandb_sync"],
)
def test_the_last_words_and_the_status_of_a_program_are_kept(
    program: Callable[[Sequence[str]], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = str(tmp_path / "größe")
    argv = [f"--panel={given}", "--scale=laptop"] if "<lambda>" in str(program) else [given]
    printed = ascii_only(monkeypatch)
    assert program(argv) == 2
    assert "gr??e" in printed()
    assert printed().startswith("error: ")


def test_tables_are_printed_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = ascii_only(monkeypatch)
    terminal.forgive()
    Console(width=60).print(for_terminal(TABLE))
    print("Tables, figures and page: \udce9")  # of a file's name that is not UTF-8
    assert "na?ve" in printed()
    assert "1 ? 2" in printed()
    assert printed().endswith("page: ?\n")


def test_a_stream_of_a_notebooks_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    terminal.forgive()
