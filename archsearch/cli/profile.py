"""`archsearch profile`: measure a latency table of this machine."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Annotated

import typer

from archsearch.cli import terminal
from archsearch.cli.planning import CONTEXTS
from archsearch.cli.planning import PHASES
from archsearch.cli.planning import VOCABULARY
from archsearch.cli.planning import WIDTHS
from archsearch.cli.planning import Asked
from archsearch.cli.planning import by_device

if TYPE_CHECKING:
    from rich.console import Console
    from rich.console import RenderableType

    from archsearch.latency import Case
    from archsearch.profiles import Table

# a table that is larger is not printed
SHOWN_CASES = 300
SHOWN_ERRORS = 20
MAX_JOBS = 16
DIED = "a process that compiles kernels died: those that are left are compiled as they are met"


def profile(
    specs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Presets, patterns or JSON files (default: the whole zoo); with --merge, tables."
        ),
    ] = None,
    grid: Annotated[
        str | None, typer.Option(help="A named plan: shipped (what ships for a GPU) or quick.")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Everything that candidates of this search space ask for.")
    ] = None,
    operators: Annotated[
        str | None, typer.Option(help="Only these operators: a,m2,d,… (none of the others).")
    ] = None,
    widths: Annotated[
        str | None, typer.Option(help=f"Hidden sizes ({by_device(WIDTHS)}).")
    ] = None,
    phase: Annotated[
        str | None, typer.Option(help=f"decode, prefill and train (default: {PHASES}).")
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Rows at once (default: 1).")] = None,
    context: Annotated[
        str | None,
        typer.Option(
            help=f"Tokens behind the decoded one, or in the prompt ({by_device(CONTEXTS)})."
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Default: bfloat16 on a GPU, float32 on a CPU.")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help=f"Of embedding and head ({by_device(VOCABULARY)}).")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda (default: the GPU, if there is one).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the table (default: this machine's own).")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be measured.")] = False,
    shard: Annotated[
        str | None, typer.Option(help="1/4: the first part of four, for several machines.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Join tables that such machines measured.")
    ] = False,
    limit_minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop in good order after so long.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=0, help="Processes that compile kernels first; 0: none.")
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try again what the process died on twice.")
    ] = False,
) -> None:
    """Measure how long each operator takes here, into a table that searches use.

    Rows that the table has are kept: interrupt it as you like and call it again.
    """
    console = terminal.console()
    if merge:
        _merge([Path(spec) for spec in specs or []], out, console)
        return
    asked = Asked(
        specs=tuple(specs or ()),
        grid=grid,
        space=space,
        operators=operators,
        widths=widths,
        phase=phase,
        batch=batch,
        context=context,
        dtype=dtype,
        vocab_size=vocab_size,
    )
    from archsearch.cli.device import chosen
    from archsearch.latency import default_folder
    from archsearch.latency.plan import shard as part_of

    device = chosen(device)
    cases = asked.cases(device)
    cases = cases if shard is None else part_of(cases, shard)
    folder = out or default_folder(device)
    if plan:
        _show_plan(cases, folder, console)
        return
    limit_s = None if limit_minutes is None else 60 * limit_minutes
    _sweep(cases, folder, device, console=console, jobs=jobs, limit_s=limit_s, retry=retry)


def _sweep(
    cases: list[Case],
    folder: Path,
    device: str,
    *,
    console: Console,
    jobs: int | None,
    limit_s: float | None,
    retry: bool,
) -> None:
    from archsearch.cli.progress import profiling
    from archsearch.latency import profile as sweep

    begin = time.monotonic()
    _warm(cases, folder, device, console=console, jobs=jobs, limit_s=limit_s)
    if limit_s is not None:
        limit_s -= time.monotonic() - begin
    with profiling(console) as on_progress:
        table = sweep(
            cases,
            folder=folder,
            device=device,
            limit_s=limit_s,
            retry=retry,
            on_progress=on_progress,
        )
    if len(cases) <= SHOWN_CASES:
        console.print(_medians(table, cases))
    _show_outcome(table, cases, console)
    console.print(f"{len(table.rows)} rows in {folder}", markup=False, soft_wrap=True)


def _warm(
    cases: list[Case],
    folder: Path,
    device: str,
    *,
    console: Console,
    jobs: int | None,
    limit_s: float | None,
) -> None:
    """Compile the kernels of what is left to measure."""
    if jobs == 0 or not device.startswith("cuda"):
        return
    from concurrent.futures.process import BrokenProcessPool

    from archsearch.cli.progress import profiling
    from archsearch.hardware import available_cores
    from archsearch.latency.warm import warm

    jobs = min(MAX_JOBS, available_cores()) if jobs is None else jobs
    try:
        with profiling(console, "compiled", "groups of kernels") as on_progress:
            warm(_left(cases, folder), device, jobs=jobs, limit_s=limit_s, on_progress=on_progress)
    except BrokenProcessPool:
        console.print(DIED, soft_wrap=True)


def _merge(folders: list[Path], out: Path | None, console: Console) -> None:
    from archsearch.latency.journal import recover
    from archsearch.latency.provenance import differences
    from archsearch.profiles import cache_root
    from archsearch.profiles import join
    from archsearch.profiles import save_table
    from archsearch.profiles.store import find
    from archsearch.profiles.store import read_table

    found = [find(folder) for folder in folders]
    for folder in found:
        recover(folder)
    table = join([read_table(folder)[0] for folder in found], differences)
    folder = out or cache_root() / str(table.meta["hardware"]["slug"])
    saved = save_table(table, folder)
    console.print(f"{len(saved.rows)} rows in {folder}", markup=False, soft_wrap=True)


def _show_plan(cases: list[Case], folder: Path, console: Console) -> None:
    from archsearch.cli.progress import duration
    from archsearch.latency.plan import in_groups
    from archsearch.latency.plan import total_s

    left = _left(cases, folder)
    planned, todo = (Counter(case.phase for case in some) for some in (cases, left))
    shown = terminal.plain_table("phase", "cases", "measured", "left")
    for name, count in planned.items():
        shown.add_row(name, str(count), str(count - todo[name]), str(todo[name]))
    shown.add_row("all", str(len(cases)), str(len(cases) - len(left)), str(len(left)))
    console.print(shown)
    console.print(
        f"about {duration(total_s(left))} on a GPU whose kernels are compiled;"
        f" {len(in_groups(left))} groups of layers",
        soft_wrap=True,
    )


def _left(cases: list[Case], folder: Path) -> list[Case]:
    """What the table in `folder` does not have yet, or not any more."""
    from archsearch.latency.sweep import missing
    from archsearch.profiles.store import META_FILE
    from archsearch.profiles.store import is_current
    from archsearch.profiles.store import read_table

    if not (folder / META_FILE).exists() or not is_current(folder):
        return cases
    table, is_stale = read_table(folder)
    return missing(table.rows[~is_stale], cases)


def _show_outcome(table: Table, cases: list[Case], console: Console) -> None:
    """What failed, and what is left."""
    from archsearch.latency.sweep import untried

    counts = table.rows.loc[table.rows["error"] != "", "error"].value_counts()
    for error, count in counts.head(SHOWN_ERRORS).items():
        times = f" ({count} times)" if count > 1 else ""
        console.print(f"failed: {error}{times}", markup=False, soft_wrap=True)
    if len(counts) > SHOWN_ERRORS:
        console.print(f"and {len(counts) - SHOWN_ERRORS} other failures, in the rows")
    left = Counter(case.phase for case in untried(table.rows, cases))
    if left:
        kinds = ", ".join(f"{count} {name}" for name, count in left.items())
        console.print(f"left to measure: {kinds}; run the same command again", soft_wrap=True)


def _medians(table: Table, cases: list[Case]) -> RenderableType:
    """Medians of the operators that were asked for, a column per width."""
    asked = {case.operator for case in cases}
    widths = sorted({case.hidden_size for case in cases})
    rows = table.rows[(table.rows["error"] == "") & table.rows["operator"].isin(asked)]
    medians = rows.pivot_table(
        index=["operator", "phase", "batch", "context"],
        columns="hidden_size",
        values="latency_us_p50",
        aggfunc="median",
        sort=False,
    )
    shown = terminal.plain_table(
        "operator", "phase", "batch", "context", *[f"µs @{width}" for width in widths], left=2
    )
    for row in medians.reset_index().to_dict("records"):
        cells = [f"{row.get(width, float('nan')):.0f}" for width in widths]
        at = str(row["context"]) if row["context"] else "any"
        shown.add_row(str(row["operator"]), str(row["phase"]), str(row["batch"]), at, *cells)
    return shown
