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

from gisgd_ray.config import TrialConfig

MAX_RUNNING_SHOWN = 12


class Progress:
    """Trials done, running and failed, current loss and gap, time left.

    On a terminal the display is redrawn in place; elsewhere (a log file, CI) every trial that
    ends is one line.
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
        self.console = console or Console(stderr=True)
        self.counts = {"finished": 0, "diverged": 0, "failed": 0}
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
        label = self.labels.get(trial_id, trial_id)
        self.running[trial_id] = {"label": label, "since": time.monotonic()}

    def report(self, trial_id: str, points: Sequence[dict[str, Any]]) -> None:
        if points and trial_id in self.running:
            self.running[trial_id]["point"] = points[-1]

    def finished(self, trial_id: str, row: dict[str, Any]) -> None:
        trial = self.running.pop(trial_id, {"label": trial_id, "since": time.monotonic()})
        self.counts[row["status"]] += 1
        seconds = time.monotonic() - trial["since"]
        line = Text(f"{self._done()}/{self.total} ", style="dim")
        colours = {"finished": "green", "diverged": "yellow", "failed": "red"}
        line.append(f"{row['status']:<8} ", style=colours[row["status"]])
        line.append(f"{trial['label']}  ")
        if row["status"] == "finished":
            line.append(
                f"{row['steps']} steps  loss {row['train/loss']:.3g}  gap {row['gap/loss']:.3g}  "
                f"bound {row['bound/theorem2_closed_form']:.3g}  {seconds:.0f} s"
            )
        elif row["status"] == "diverged":
            line.append(f"{row['stop_reason']}  {seconds:.0f} s")
        else:
            line.append(str(row["error"]).strip().splitlines()[-1][:200])
        self.console.print(line, soft_wrap=not self.console.is_terminal, highlight=False)

    def render(self) -> RenderableType:
        """The display as it stands."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=False)
        table.add_column("running", no_wrap=True, overflow="ellipsis")
        for name in ("step", "train loss", "gap"):
            table.add_column(name, justify="right", no_wrap=True)
        for trial in list(self.running.values())[:MAX_RUNNING_SHOWN]:
            point = trial.get("point")
            if point is None:
                table.add_row(trial["label"], "starting", "", "")
            else:
                table.add_row(
                    trial["label"],
                    f"{point['step']:,}",
                    f"{point['train/loss']:.3g}",
                    f"{point['gap/loss']:.3g}",
                )
        if len(self.running) > MAX_RUNNING_SHOWN:
            table.add_row(f"and {len(self.running) - MAX_RUNNING_SHOWN} more", "", "", "")
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(self.title, style="bold"),
            ProgressBar(total=self.total, completed=self._done(), width=24),
            Text(self._summary()),
        )
        return Group(bar, table) if self.running else bar

    def _summary(self) -> str:
        parts = [f"{self._done()}/{self.total} done"]
        parts += [f"{n} {status}" for status, n in self.counts.items() if n and status != "finished"]
        if self.reused:
            parts.append(f"{self.reused} from before")
        elapsed = time.monotonic() - self.begun
        parts.append(f"{timedelta(seconds=int(elapsed))} so far")
        ended = sum(self.counts.values())
        if 0 < ended < self.total - self.reused:
            # Trials running are counted as half done: without it the estimate is always late.
            worth = ended + len(self.running) / 2
            left = elapsed / worth * (self.total - self.reused - worth)
            parts.append(f"about {timedelta(seconds=int(left))} left")
        return ", ".join(parts)

    def _done(self) -> int:
        return self.reused + sum(self.counts.values())


def trial_label(config: TrialConfig, swept: Sequence[str]) -> str:
    """A trial by the fields in which it differs: ``learning_rate=0.1 batch_size=60 seed=0``."""
    flat = config.flat()
    fields = [*swept, "seed"] if "seed" not in swept else list(swept)
    parts = []
    for path in fields:
        if path in flat:
            value = flat[path]
            text = f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(f"{path.rpartition('.')[2]}={text}")
    return " ".join(parts)
