"""`archsearch calibrate`: a table's predictions against whole models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING
from typing import Annotated
from typing import Any

import typer

from archsearch.cli import terminal
from archsearch.cli import values

if TYPE_CHECKING:
    from archsearch.latency.calibrate import Agreement
    from archsearch.latency.calibrate import Plan
    from archsearch.latency.measured import Row
    from archsearch.latency.repeat import Repeat
    from archsearch.operators import Shape
    from archsearch.profiles import Table
    from archsearch.space import ArchSpec

FOLDER = Path("experiments/calibration")
FIGURE_FILE = "calibration.png"
SHOWN_MISSING = 8
WHAT, HOW, REPEAT = "What is measured", "How and where", "Repeating rows of the table instead"


def calibrate(
    profile: Annotated[str, typer.Option(help="Table to hold against models: name or folder.")],
    architectures: Annotated[
        Path,
        typer.Option("--set", help="TOML file of architectures.", rich_help_panel=WHAT),
    ] = FOLDER / "architectures.toml",
    only: Annotated[
        str | None, typer.Option(help="Only these of them, by name.", rich_help_panel=WHAT)
    ] = None,
    phase: Annotated[
        str, typer.Option(help="decode, prefill and train.", rich_help_panel=WHAT)
    ] = "decode,prefill",
    batch: Annotated[
        str | None,
        typer.Option(
            help="Rows at once in decode (default: those of the table).", rich_help_panel=WHAT
        ),
    ] = None,
    context: Annotated[
        str, typer.Option(help="Tokens behind the decoded one.", rich_help_panel=WHAT)
    ] = "1024,8192",
    prompts: Annotated[
        str, typer.Option(help="Rows x tokens in prefill and training.", rich_help_panel=WHAT)
    ] = "1x2048,1x8192,8x2048",
    dtype: Annotated[
        str | None,
        typer.Option(help="Default: bfloat16 on a GPU, float32 on a CPU.", rich_help_panel=WHAT),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu or cuda (default: the table's kind).", rich_help_panel=HOW),
    ] = None,
    limit_minutes: Annotated[
        float | None,
        typer.Option(help="Stop then; the next call goes on.", rich_help_panel=HOW),
    ] = None,
    allow_stale: Annotated[
        bool, typer.Option(help="Use rows of earlier sources too.", rich_help_panel=HOW)
    ] = False,
    summarize: Annotated[
        bool,
        typer.Option("--summarize", help="Measure nothing: compare anew.", rich_help_panel=HOW),
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Results go to OUT/<table's name>.", rich_help_panel=HOW)
    ] = FOLDER,
    repeat: Annotated[
        int | None,
        typer.Option(help="Measure so many rows of the table again.", rich_help_panel=REPEAT),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Which rows: the same on any day.", rich_help_panel=REPEAT)
    ] = 0,
) -> None:
    """Measure whole models that the table was not made from, and say how far it was off.

    What is measured is kept row by row: stop it as you like and call it again. The errors go
    beside the table as well, where predictions find them.
    """
    from archsearch.latency.calibrate import Plan
    from archsearch.profiles import load_table

    table = load_table(profile, allow_stale=allow_stale)
    on_gpu = table.meta.get("hardware", {}).get("kind") == "gpu"
    device = device or ("cuda" if on_gpu else "cpu")
    folder = out / table.name
    if repeat is not None:
        _repeat(table, repeat, seed, device, folder)
        return
    dtype = dtype or ("bfloat16" if on_gpu else "float32")
    batch = _batches(table) if batch is None else batch
    shapes = _shapes(phase, batch, context, prompts, dtype)
    plan = Plan(_architectures(architectures, only), shapes, table)
    if not summarize:
        _measure(plan, folder, device, limit_minutes)
    _summarize(plan, folder)


def _batches(table: Table) -> str:
    """The batches that the table's decode steps were measured at, as on the command line."""
    decode = table.rows[table.rows["phase"] == "decode"]
    # one without any is asked for one row, and the summary tells what it lacks
    return ",".join(map(str, sorted(decode["batch"].unique()) or [1]))


def _shapes(phases: str, batch: str, context: str, prompts: str, dtype: str) -> list[Shape]:
    from archsearch.operators import Shape

    shapes = []
    for phase in values.words(phases):
        if phase == "decode":
            rows = values.integers(batch, "--batch")
            sizes = [(b, t) for b in rows for t in values.integers(context, "--context")]
        else:
            sizes = [_prompt(word) for word in values.words(prompts)]
        shapes += [Shape(phase, b, t, dtype) for b, t in sizes]  # type: ignore[arg-type]
    if not shapes:
        raise ValueError("nothing to measure: give --phase decode, prefill or train")
    return shapes


def _prompt(word: str) -> tuple[int, int]:
    rows, _, tokens = word.partition("x")
    if not (rows.isdigit() and tokens.isdigit()):
        raise ValueError(f"--prompts must be rows x tokens such as 1x2048,8x512; got {word!r}")
    return int(rows), int(tokens)


def _architectures(path: Path, only: str | None) -> list[ArchSpec]:
    from archsearch.latency.calibrate import read_architectures
    from archsearch.names import suggestion

    if not path.is_file():
        raise ValueError(f"there is no set of architectures {path}; give one by --set FILE")
    specs = {spec.name: spec for spec in read_architectures(path)}
    for name in values.words(only or ""):
        if name not in specs:
            raise ValueError(
                f"{path} has no architecture {name!r}; {suggestion(name, specs)}it has"
                f" {', '.join(specs)}"
            )
    return [specs[name] for name in values.words(only or "") or specs]


def _measure(plan: Plan, folder: Path, device: str, limit_minutes: float | None) -> None:
    from archsearch.latency.calibrate import measure_all

    console = terminal.console()
    finished = measure_all(
        plan,
        folder,
        device=device,
        limit_s=None if limit_minutes is None else 60 * limit_minutes,
        on_spec=lambda spec, rows: console.print(
            _line(plan, spec, rows), markup=False, soft_wrap=True
        ),
    )
    if not finished:
        console.print("the time is up: the same command goes on\n")


def _line(plan: Plan, spec: ArchSpec, rows: Sequence[Row]) -> str:
    """One model in one line: its shapes, and how far the predictions were off."""
    from archsearch.latency import predict
    from archsearch.latency.measured import shape_of
    from archsearch.space import count

    good = [row for row in rows if not row["error"]]
    text = f"{spec.name:<20} {terminal.count(count.parameters(spec)):>8}  {len(good):>2} shapes"
    if good:
        ratios = [
            predict(spec, shape_of(row), plan.table).latency_us / row["latency_us_p50"] - 1
            for row in good
        ]
        text += f", off by {min(ratios):+.1%} to {max(ratios):+.1%}"
    failed = [row["error"] for row in rows if row["error"]]
    return f"{text}; {len(failed)} failed: {failed[0]}" if failed else text


def _summarize(plan: Plan, folder: Path) -> None:
    from archsearch.latency.calibrate import SUMMARY_FILE
    from archsearch.latency.calibrate import compare
    from archsearch.latency.calibrate import write_agreement

    agreement = compare(plan, folder)
    if not agreement.comparisons:
        why = f": {agreement.failed[0]}" if agreement.failed else ""
        raise ValueError(f"there is nothing to compare with {plan.table.label!r} yet{why}")
    write_agreement(agreement, plan, folder)
    console = terminal.console()
    console.print(_errors(agreement))
    console.print()
    console.print(_orders(agreement))
    if len(agreement.left_out):
        console.print()
        console.print(_interpolation(agreement))
    for sentence in agreement.failed[:SHOWN_MISSING]:
        console.print(f"missing: {sentence}", markup=False, soft_wrap=True)
    more = len(agreement.failed) - SHOWN_MISSING
    if more > 0:
        console.print(f"and {more} other reasons, in {SUMMARY_FILE}")
    console.print(_draw(agreement, plan.table, folder), markup=False, soft_wrap=True)


def _errors(agreement: Agreement) -> Any:
    from archsearch.latency.agreement import target_of

    table = terminal.plain_table("error of", "n", "median", "target", "p90", "target")
    told = [(group.label, group.error, target_of(group)) for group in agreement.groups]
    for what, groups in agreement.others.items():
        told += [(f"{what}, {group.label}", group.error, None) for group in groups]
    for label, error, target in told:
        table.add_row(
            label,
            str(error.count),
            f"{error.median:.1%}",
            "–" if target is None else f"{target.median:.0%}",
            f"{error.p90:.1%}",
            "–" if target is None else f"{target.p90:.0%}",
        )
    return table


def _orders(agreement: Agreement) -> Any:
    from archsearch.latency.agreement import BAND_TAU_TARGET
    from archsearch.latency.agreement import TAU_TARGET

    table = terminal.plain_table("rank order of batch-1 decode", "models", "Kendall τ", "target")
    for order in agreement.orders:
        at = f"context {order.context}"
        table.add_row(f"all, {at}", str(order.count), _tau(order.tau), f"{TAU_TARGET}")
        near = f"within ±10 % of {order.band_us / 1e3:.2f} ms, {at}"
        target = f"{BAND_TAU_TARGET}"
        table.add_row(near, str(len(order.band)), _tau(order.band_tau), target)
    return table


def _interpolation(agreement: Agreement) -> Any:
    """Over all operators: the table of each stands in the folder."""
    from archsearch.latency.holdout import summarise

    table = terminal.plain_table("rows told by their neighbours", "n", "median", "p90")
    summary = summarise(agreement.left_out, ("phase", "axis")).sort_values(["phase", "axis"])
    for one in summary.itertuples():
        cells = (str(one.count), f"{one.median:.1%}", f"{one.p90:.1%}")
        table.add_row(f"{one.phase}, along the {one.axis}", *cells)
    return table


def _tau(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _draw(agreement: Agreement, table: Table, folder: Path) -> str:
    """Draw the figure; without matplotlib the results stand alone."""
    try:
        from archsearch.report.figures.base import png
        from archsearch.report.figures.calibration import plot_calibration
    except ImportError as error:
        return f"results in {folder}; no figure, since {error}: draw it later by --summarize"
    title = table.meta.get("hardware", {}).get("name", table.name)
    (folder / FIGURE_FILE).write_bytes(png(plot_calibration(agreement.comparisons, title)))
    return f"results and figure in {folder}"


def _repeat(table: Table, count: int, seed: int, device: str, folder: Path) -> None:
    from archsearch.latency.repeat import repeat_rows
    from archsearch.latency.repeat import write_repeat

    found = repeat_rows(table, count=count, seed=seed, device=device)
    write_repeat(found, folder)
    console = terminal.console()
    console.print(_repeated(found))
    for sentence in found.failed:
        console.print(f"failed: {sentence}", markup=False, soft_wrap=True)
    console.print(
        f"{len(found.rows)} rows of {found.table_measured[:10]} again: median difference"
        f" {found.median:+.2%}, in size {found.median_size:.2%}; {found.within} of them within"
        f" {found.tolerance:.0%}; kept in {folder}",
        soft_wrap=True,
    )


def _repeated(found: Repeat) -> Any:
    table = terminal.plain_table("phase", "rows", "median difference", "largest", "within 3 %")
    for phase, rows in found.by_phase().items():
        sizes = [abs(row.difference) for row in rows]
        table.add_row(
            phase,
            str(len(rows)),
            f"{median(sizes):.2%}",
            f"{max(sizes):.2%}",
            str(sum(size <= found.tolerance for size in sizes)),
        )
    return table
