"""`archsearch profile`: measure a latency table of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from typing import Annotated

import typer

from archsearch.cli import terminal
from archsearch.cli import values

if TYPE_CHECKING:
    from rich.console import RenderableType

    from archsearch.latency import Case
    from archsearch.operators import Shape
    from archsearch.profiles import Table

WIDTHS = "64,128,192,256"
VOCABULARY = 256


def profile(
    specs: Annotated[
        list[str] | None,
        typer.Argument(help="Presets, patterns or JSON files (default: the whole zoo)."),
    ] = None,
    operators: Annotated[
        str | None, typer.Option(help="Only these operators: a,m2,d,… (none of the others).")
    ] = None,
    widths: Annotated[str, typer.Option(help="Hidden sizes of the zoo.")] = WIDTHS,
    phase: Annotated[str, typer.Option(help="decode, prefill and train.")] = "decode,prefill",
    batch: Annotated[str, typer.Option(help="Rows at once.")] = "1",
    context: Annotated[
        str, typer.Option(help="Tokens behind the decoded one, or in the prompt.")
    ] = "128,512,2048",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    vocab_size: Annotated[int, typer.Option(help="Of embedding and head.")] = VOCABULARY,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the table (default: this machine's own).")
    ] = None,
) -> None:
    """Measure how long each operator takes here, into a table that searches use.

    Rows that the table has are kept: interrupt it as you like and call it again.
    """
    from archsearch.cli.progress import profiling
    from archsearch.latency import default_folder
    from archsearch.latency import profile as sweep
    from archsearch.operators import Shape

    shapes = [
        Shape(one_phase, rows, length, dtype)  # type: ignore[arg-type]  # checked there
        for one_phase in values.words(phase)
        for rows in values.integers(batch, "--batch")
        for length in values.integers(context, "--context")
    ]
    cases = _cases(specs, operators, values.integers(widths, "--widths"), shapes, vocab_size)
    folder = out or default_folder(device)
    console = terminal.console()
    with profiling(console) as on_progress:
        table = sweep(cases, folder=folder, device=device, on_progress=on_progress)
    console.print(_summary(table, cases))
    failed = table.rows[table.rows["error"] != ""]
    for error in failed["error"].unique():
        console.print(f"failed: {error}", markup=False, soft_wrap=True)
    console.print(f"{len(table.rows)} rows in {folder}", markup=False, soft_wrap=True)


def _cases(
    specs: list[str] | None,
    codes: str | None,
    widths: list[int],
    shapes: list[Shape],
    vocab_size: int,
) -> list[Case]:
    from archsearch import operators
    from archsearch.latency import cases_for_space
    from archsearch.latency import cases_for_spec
    from archsearch.space import get_space
    from archsearch.space import load

    if specs:
        return list(dict.fromkeys(c for s in specs for c in cases_for_spec(load(s), shapes)))
    mixers = [operator.code for operator in operators.OPERATORS if operator.kind == "mixer"]
    chosen = None if codes is None else [operators.get(word).name for word in values.words(codes)]
    space = get_space("free", widths=widths, codes=mixers, fields={"vocab_size": vocab_size})
    cases = cases_for_space(space, shapes)
    return [case for case in cases if chosen is None or case.operator in chosen]


def _summary(table: Table, cases: list[Case]) -> RenderableType:
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
