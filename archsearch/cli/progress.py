"""What is shown while a latency table is measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn

from archsearch.latency.sweep import OnProgress

BAR_WIDTH = 30
LINE_EVERY_S = 10.0


@contextmanager
def profiling(
    console: Console, doing: str = "measured", things: str = "latencies"
) -> Iterator[OnProgress]:
    """A progress callback for measuring a table: a bar on a terminal, few lines elsewhere."""
    if not console.is_terminal:
        yield _profiling_lines(console, doing, things)
        return
    with Progress(
        TextColumn(f"{doing} {things}"),
        BarColumn(BAR_WIDTH),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
        auto_refresh=False,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=None, left="")

        def show(done: int, total: int, seconds: float) -> None:
            left = f"about {duration(seconds)} left" if seconds else ""
            bar.update(task, completed=done, total=total, left=left, refresh=True)

        yield show


def duration(seconds: float) -> str:
    """Seconds for people: "50 s", "12 min", "1 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def _profiling_lines(console: Console, doing: str, things: str) -> OnProgress:
    said = time.monotonic()

    def show(done: int, total: int, seconds: float) -> None:
        nonlocal said
        if done < total and time.monotonic() - said >= LINE_EVERY_S:
            said = time.monotonic()
            left = duration(seconds)
            console.print(f"{doing} {done} of {total} {things}, about {left} left")

    return show
