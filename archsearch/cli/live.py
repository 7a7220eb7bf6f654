"""What `archsearch evolve` shows while it runs: a live table, or plain lines without a terminal.

Nothing draws in the background: the screen changes only between events of the search, so that
drawing never disturbs a latency that is being measured.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.console import Group
from rich.console import RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from archsearch import operators
from archsearch.cli import terminal
from archsearch.search import Observer
from archsearch.search import Pace
from archsearch.search import RunConfig
from archsearch.search.screen import Candidate

ROWS_SHOWN = 8
REDRAW_S = 0.25
BAR_WIDTH = 30
STATUS = {"infeasible": "too slow or large", "duplicate": "known already"}


@contextmanager
def display(console: Console) -> Iterator[Observer]:
    """An observer that draws on `console`: a live table on a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield PlainLines(console)
        return
    with Live(console=console, auto_refresh=False, transient=False) as live:
        yield LiveTable(live)


class PlainLines(Observer):
    """One line per event."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pace = Pace()
        self._trials = 0

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, config: RunConfig, *, trials: int, counted: int) -> None:
        """Say what is searched."""
        self._trials = trials
        self._pace.start(config, trials=trials, counted=counted)
        self._say(f"run {config.name}: {setting(config)}")
        self._say(f"{counted} of {trials} trials done")

    def training_step(self, k: int, step: int, steps: int, loss: float) -> None:
        """Keep the time."""
        self._pace.training_step(k, step, steps, loss)

    def candidate_recorded(self, k: int, row: Mapping[str, Any], *, counted: int) -> None:
        """One line about the candidate."""
        self._pace.candidate_recorded(k, row, counted=counted)
        left = remaining(self._pace)
        self._say(f"[{counted}/{self._trials}] {_line(row)}, {left}")

    def stopped(self, reason: str) -> None:
        """Say why it ends early."""
        self._say(reason)

    def remeasured(self, row: Mapping[str, Any], *, done: int, total: int) -> None:
        """Predicted beside measured."""
        self._say(f"front {done}/{total}: {_line(row)}")

    def baseline_recorded(self, row: Mapping[str, Any]) -> None:
        """One line about the baseline."""
        self._pace.baseline_recorded(row)
        self._say(f"baseline {row['label']}: {_line(row)}")

    def done(self, winner: Mapping[str, Any] | None) -> None:
        """Say which one won."""
        self._say("no winner" if winner is None else f"best: {_line(winner)}")


class LiveTable(Observer):
    """Header, progress, the last candidates, and the best so far."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._pace = Pace()
        self._config: RunConfig | None = None
        self._trials = 0
        self._counted = 0
        self._rows: deque[Mapping[str, Any]] = deque(maxlen=ROWS_SHOWN)
        self._best: Mapping[str, Any] | None = None
        self._whose = "best so far"
        self._doing = "starting"
        self._detail = ""
        self._drawn = float("-inf")

    def start(self, config: RunConfig, *, trials: int, counted: int) -> None:
        """Draw the header."""
        self._config, self._trials, self._counted = config, trials, counted
        self._pace.start(config, trials=trials, counted=counted)
        # candidates of an earlier session are in the study, not here
        self._whose = "best of this session" if counted else "best so far"
        self._draw()

    def candidate_started(self, k: int, candidate: Candidate) -> None:
        """Name what is being trained."""
        self._doing, self._detail = f"training #{k} {candidate.spec.notation}", ""
        self._draw()

    def training_step(self, k: int, step: int, steps: int, loss: float) -> None:
        """Show the loss, a few times a second."""
        self._pace.training_step(k, step, steps, loss)
        self._detail = f"step {step}/{steps}, loss {loss:.3f}"
        if time.monotonic() - self._drawn >= REDRAW_S:
            self._draw()

    def candidate_recorded(self, k: int, row: Mapping[str, Any], *, counted: int) -> None:
        """Add a row to the table."""
        self._pace.candidate_recorded(k, row, counted=counted)
        self._counted = counted
        self._rows.append(row)
        if row["status"] == "trained" and row["feasible"]:
            self._best = min(self._best or row, row, key=lambda known: known["loss"])
        self._draw()

    def stopped(self, reason: str) -> None:
        """Leave the reason above the table."""
        self._live.console.print(reason, markup=False)

    def remeasured(self, row: Mapping[str, Any], *, done: int, total: int) -> None:
        """Show how many models of the front were timed."""
        self._doing, self._detail = f"timing the front, {done} of {total}", ""
        self._draw()

    def baseline_started(self, label: str, candidate: Candidate) -> None:
        """Name the baseline."""
        self._doing = f"training baseline {label} {candidate.spec.notation}"
        self._detail = ""
        self._draw()

    def baseline_recorded(self, row: Mapping[str, Any]) -> None:
        """Count the baseline, and show it beside the candidates."""
        self._pace.baseline_recorded(row)
        self._rows.append(row)
        self._draw()

    def done(self, winner: Mapping[str, Any] | None) -> None:
        """Draw the last state."""
        self._best, self._whose = winner or self._best, "best"
        self._doing, self._detail = "done", ""
        self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._live.update(self._screen(), refresh=True)

    def _screen(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._config is not None:
            parts += [Text(self._config.name, style="bold"), Text(setting(self._config))]
        parts += [self._progress(), Text(self._doing, overflow="ellipsis", no_wrap=True)]
        parts += [Text(self._detail, style="dim"), Text("")]
        if self._rows:
            parts += [self._table(), Text("")]
        if self._best is not None:
            parts.append(Text(f"{self._whose}: {_line(self._best)}", style="bold"))
        return Group(*parts)

    def _progress(self) -> Table:
        line = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(1, self._trials), completed=self._counted, width=BAR_WIDTH)
        left = "" if self._doing == "done" else remaining(self._pace)
        line.add_row(bar, f"{self._counted}/{self._trials} trials", left)
        return line

    def _table(self) -> Table:
        table = terminal.plain_table(
            "#", "pattern", "width", "params", "ms", "loss", "bits/B", "", left=2
        )
        table.columns[1].no_wrap, table.columns[1].overflow = True, "ellipsis"
        table.columns[-1].justify = "left"
        for row in self._rows:
            known = row["spec"] is not None
            table.add_row(
                f"{row['number']}" if row["number"] >= 0 else "base",
                self._pattern(row) if known else Text(str(row["label"])),
                *_cells(row),
                _status(row),
                style="" if row["status"] == "trained" else "dim",
            )
        return table

    def _pattern(self, row: Mapping[str, Any]) -> Text:
        if self._live.console.no_color:
            return Text(row["notation"])
        layers = json.loads(row["spec"])["layers"]
        return terminal.blocks(operators.get(layer["operator"]).code for layer in layers)


def setting(config: RunConfig) -> str:
    """What is searched, within which limit, how, and on what data, in one line."""
    target = config.target_latency_ms
    within = f"at most {target:g} ms per token" if target else "no latency target"
    return (
        f"space {config.space}, {within} (batch {config.batch}, context {config.context}), "
        f"sampler {config.sampler}, data {config.data}, table {config.table}"
    )


def remaining(pace: Pace) -> str:
    """The time that is left, in words that promise no more than is known."""
    seconds = pace.remaining_s()
    if seconds is None:
        return "estimating"
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    return f"about {seconds / 60:.0f} min left" if seconds < 5400 else _hours(seconds)


def _hours(seconds: float) -> str:
    return f"about {seconds / 3600:.1f} h left"


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """Width, parameters, milliseconds, loss, bits per byte; a dash where there is none."""
    measured = row.get("measured_us_p50") or row["latency_us"]
    return (
        _shown(row["hidden_size"], "{:.0f}"),
        "–" if row["parameters"] is None else terminal.count(row["parameters"]),
        "–" if measured is None else f"{measured / 1e3:.3f}",
        _shown(row["loss"], "{:.3f}"),
        _shown(row["bits_per_byte"], "{:.3f}"),
    )


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _status(row: Mapping[str, Any]) -> str:
    return STATUS.get(row["status"], row["status"])


def _line(row: Mapping[str, Any]) -> str:
    """One candidate in one line."""
    number = f"#{row['number']} " if row["number"] >= 0 else ""
    if row["status"] == "failed":
        return f"{number}{row['notation'] or ''} failed: {row['error']}"
    _, parameters, _, loss, bits = _cells(row)
    line = f"{number}{row['notation']}, {parameters}, {row['latency_us'] / 1e3:.3f} ms predicted"
    if row.get("measured_us_p50") is not None:
        line += f", {row['measured_us_p50'] / 1e3:.3f} ms measured"
    if row["loss"] is not None:
        line += f", loss {loss}, {bits} bits/byte"
    return line if row["status"] == "trained" else f"{line}, {_status(row)}"
