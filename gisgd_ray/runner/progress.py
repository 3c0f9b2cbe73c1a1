"""The sweep's live display: one table while it runs, plain lines where there is no terminal."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import error_line
from gisgd_ray.numbers import field_name
from gisgd_ray.results.journal import Status

MAX_RUNNING_SHOWN = 12

STATUS_COLOURS = {Status.FINISHED: "green", Status.DIVERGED: "yellow", Status.FAILED: "red"}


class Progress:
    """Trials done, running and failed, current loss and gap, time left.

    On a terminal the display is redrawn in place; elsewhere (a log file, CI, a notebook) every
    trial that ends is one line.
    """

    def __init__(
        self,
        *,
        total: int,
        done: int,
        title: str,
        labels: Mapping[str, str],
        console: Console | None = None,
    ):
        self.total = total
        self.reused = done
        self.title = title
        self.labels = labels
        self.console = console or _console()
        self.counts = dict.fromkeys(Status, 0)
        self.running: dict[str, dict[str, Any]] = {}
        self.begun = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self.render, console=self.console, refresh_per_second=4
            )
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, traceback)

    def started(self, trial_id: str) -> None:
        self.running[trial_id] = {"since": time.monotonic()}

    def report(self, trial_id: str, points: Sequence[dict[str, Any]]) -> None:
        if points and trial_id in self.running:
            self.running[trial_id]["point"] = points[-1]

    def stopped(self, trial_id: str) -> None:
        """The trial runs no more for now, and has not ended."""
        self.running.pop(trial_id, None)

    def note(self, sentence: str) -> None:
        """Something about the sweep as a whole."""
        self.console.print(sentence, style="yellow", soft_wrap=True, highlight=False)

    def finished(self, trial_id: str, row: dict[str, Any]) -> None:
        now = time.monotonic()
        seconds = now - self.running.pop(trial_id, {"since": now})["since"]
        status = Status(row["status"])
        self.counts[status] += 1
        count = f"{self._done():>{len(str(self.total))}}/{self.total} "
        head = Text.assemble((count, "dim"), (f"{status:<8} ", STATUS_COLOURS[status]))
        if status is Status.FINISHED:
            said = [
                f"gap {row['gap/loss']:.3g}",
                f"bound {row['bound/theorem2_closed_form']:.3g}",
                f"loss {row['train/loss']:.3g}",
                f"{row['steps']:,} steps",
                f"{seconds:.0f} s",
            ]
        elif status is Status.DIVERGED:
            said = [row["stop_reason"], f"{seconds:.0f} s"]
        else:
            said = [error_line(row["error"])]
        label = self._label(trial_id)
        if not self.console.is_terminal:
            line = Text("  ").join([head + label, *map(Text, said)])
            self.console.print(line, soft_wrap=True, highlight=False)
            return
        # One line on the terminal: the label keeps half of it at least; numbers are left out whole,
        # the last ones first, and only a sentence is cut.
        width = self.console.width
        whole = len("  ".join(["", *said]))
        label.truncate(max(width - head.cell_len - whole, width // 2), overflow="ellipsis")
        room = width - head.cell_len - label.cell_len
        while len(said) > 1 and len("  ".join(["", *said])) > room:
            said.pop()
        line = Text("  ").join([head + label, *map(Text, said)])
        self.console.print(line, no_wrap=True, overflow="ellipsis", highlight=False)

    def render(self) -> RenderableType:
        """The display as it stands."""
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(self.title, style="bold", no_wrap=True, overflow="ellipsis"),
            ProgressBar(total=self.total, completed=self._done(), width=24),
            Text(self._summary(), no_wrap=True, overflow="ellipsis"),
        )
        details = Text(self._details(), style="dim", no_wrap=True, overflow="ellipsis")
        return Group(bar, details, self._table()) if self.running else Group(bar, details)

    def _table(self) -> Table:
        """The running trials; a long label is cut so that the numbers always show."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=False)
        table.add_column("running")
        for name in ("step", "train loss", "gap"):
            table.add_column(name, justify="right", no_wrap=True)
        for trial_id, trial in list(self.running.items())[:MAX_RUNNING_SHOWN]:
            point = trial.get("point")
            numbers: tuple[str, ...] = ("starting", "", "")
            if point is not None:
                losses = (f"{point[name]:.3g}" for name in ("train/loss", "gap/loss"))
                numbers = (f"{point['step']:,}", *losses)
            table.add_row(self._label(trial_id), *numbers)
        if len(self.running) > MAX_RUNNING_SHOWN:
            more = len(self.running) - MAX_RUNNING_SHOWN
            table.add_row(Text(f"and {more} more", no_wrap=True, overflow="ellipsis"))
        return table

    def _label(self, trial_id: str) -> Text:
        return Text(self.labels.get(trial_id, trial_id), no_wrap=True, overflow="ellipsis")

    def _summary(self) -> str:
        """How much is done, and how long the rest will take."""
        summary = f"{self._done()}/{self.total} done"
        ended = sum(self.counts.values())
        if 0 < ended < self.total - self.reused:
            # Trials running are counted as half done: without it the estimate is always late.
            worth = ended + len(self.running) / 2
            elapsed = time.monotonic() - self.begun
            left = elapsed / worth * (self.total - self.reused - worth)
            summary += f", about {timedelta(seconds=int(left))} left"
        return summary

    def _details(self) -> str:
        ended = ((n, status) for status, n in self.counts.items() if status is not Status.FINISHED)
        parts = [f"{n} {status}" for n, status in ended if n]
        if self.reused:
            parts.append(f"{self.reused} from before")
        if not self.running and not any(self.counts.values()):
            parts.append("waiting for the first trial to start")
        elapsed = time.monotonic() - self.begun
        return ", ".join([*parts, f"{timedelta(seconds=int(elapsed))} so far"])

    def _done(self) -> int:
        return self.reused + sum(self.counts.values())


def _console() -> Console:
    """Stderr; in a notebook, where that is shown as an alarm, plain text among the other output."""
    console = Console(stderr=True)
    if not console.is_jupyter:
        return console
    # A kernel sets FORCE_COLOR, by which its output would pass for a terminal.
    return Console(force_jupyter=False, force_terminal=False, color_system=None)


def setting_label(config: TrialConfig, swept: Sequence[str]) -> str:
    """A trial by the fields in which it differs: ``learning_rate=0.1 batch_size=60 seed=0``."""
    flat = config.flat()
    parts = []
    for path in dict.fromkeys([*swept, "seed"]):
        # An optional section (a schedule) is null or the fields inside it.
        for name in (n for n in flat if n == path or n.startswith(f"{path}.")):
            value = flat[name]
            text = f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(f"{field_name(name)}={text}")
    return " ".join(parts)
