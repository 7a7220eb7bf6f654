"""`archsearch measure`: build an architecture and time it here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Annotated
from typing import Any

import typer

from archsearch.cli import compare as comparison
from archsearch.cli import terminal
from archsearch.cli import values

if TYPE_CHECKING:
    from archsearch.latency.whole import Measurement
    from archsearch.operators import Shape
    from archsearch.profiles import Table
    from archsearch.space import ArchSpec

PAPER = "The Nemotron-Flash paper's table on this machine"
# options that mean something with SPEC alone, and with --compare alone
OF_SPEC = ("phase", "batch", "context", "compare_to_table")
OF_COMPARE = ("models", "tokens", "input_tokens", "output_tokens", "max_batch", "out")


def measure(
    asked: typer.Context,
    spec: Annotated[
        str | None,
        typer.Argument(metavar="SPEC", help="Preset, pattern such as '(a f)x4 @256', or file."),
    ] = None,
    phase: Annotated[str, typer.Option(help="decode, prefill and train.")] = "decode",
    batch: Annotated[str, typer.Option(help="Rows at once: 1 or 1,8,32.")] = "1",
    context: Annotated[
        str, typer.Option(help="Tokens behind the decoded one, or in the prompt.")
    ] = "1024",
    dtype: Annotated[
        str | None, typer.Option(help="Default: bfloat16 on a GPU, float32 on a CPU.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda (default: the GPU, if there is one).")
    ] = None,
    compare_to_table: Annotated[
        str | None,
        typer.Option(metavar="TABLE", help="Show its predictions, and how far they are off."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Instead of SPEC: Nemotron-Flash and dense models, beside the paper's figures.",
            rich_help_panel=PAPER,
        ),
    ] = False,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC,SPEC,…", help="These alone, yours as well.", rich_help_panel=PAPER
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(help="Decoded at batch 1, for the latency.", rich_help_panel=PAPER)
    ] = 8192,
    input_tokens: Annotated[
        int, typer.Option("--input", help="Prompt, for the throughput.", rich_help_panel=PAPER)
    ] = 32768,
    output_tokens: Annotated[
        int, typer.Option("--output", help="Decoded behind the prompt.", rich_help_panel=PAPER)
    ] = 1024,
    max_batch: Annotated[
        int | None,
        typer.Option(
            help="No more rows than that (default: what fits; 8 on a CPU).",
            rich_help_panel=PAPER,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="Results go to OUT/<hardware>.", rich_help_panel=PAPER),
    ] = comparison.FOLDER,
) -> None:
    """Build SPEC with random weights and measure latency, memory and energy per token.

    On a GPU every time is that of one CUDA graph. Several batches and contexts share the model.

    With --compare: the models of the Nemotron-Flash paper's Table 6, beside its figures. What was
    measured is kept: stop it as you like and call it again.
    """
    _check_kind(asked, spec, compare)
    if spec is None:
        request = comparison.Request(
            models=models,
            tokens=tokens,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            max_batch=max_batch,
            dtype=dtype,
            device=device,
        )
        comparison.run(request, out, as_json=as_json)
    else:
        shapes = (phase, batch, context)
        _measure_one(spec, shapes, dtype, device, compare_to_table, as_json)


def _check_kind(asked: typer.Context, spec: str | None, compare: bool) -> None:
    """Raise ValueError unless there is one of SPEC and --compare, with options of its own."""
    if compare and spec is not None:
        raise ValueError(
            f"--compare measures the paper's models instead of a SPEC; got {spec!r}: choose"
            " models by --models"
        )
    if not compare and spec is None:
        raise ValueError(
            "give the SPEC to measure, such as nemotron-flash-1b, or --compare for the models of"
            " the Nemotron-Flash paper"
        )
    options = {option.name: option.opts[0] for option in asked.command.params}
    for name in OF_SPEC if compare else OF_COMPARE:
        source = asked.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            other = "a SPEC, not with --compare" if compare else "--compare, not with a SPEC"
            raise ValueError(f"{options[name]} goes with {other}")


def _measure_one(
    spec: str,
    words: tuple[str, str, str],
    dtype: str | None,
    device: str | None,
    compare_to_table: str | None,
    as_json: bool,
) -> None:
    from archsearch import hardware
    from archsearch.cli.device import chosen
    from archsearch.cli.device import usual_dtype
    from archsearch.operators import Shape
    from archsearch.profiles import load_table
    from archsearch.space import load

    architecture, device = load(spec), chosen(device)
    phases, batches, contexts = words
    shapes = [
        Shape(one_phase, rows, length, dtype or usual_dtype(device))  # type: ignore[arg-type]
        for one_phase in values.words(phases)
        for rows in values.integers(batches, "--batch")
        for length in values.integers(contexts, "--context")
    ]
    if not shapes:
        raise ValueError("--phase must be decode, prefill or train; got none")
    table = load_table(compare_to_table) if compare_to_table else None
    found = _measure(architecture, shapes, device, as_json)
    report = explain(architecture, hardware.describe(device).name, found, table)
    if as_json:
        terminal.print_json(report)
    else:
        _print(report)


def _measure(
    spec: ArchSpec, shapes: Sequence[Shape], device: str, quiet: bool
) -> dict[Shape, Measurement | str]:
    """A measurement per shape, or why there is none; raises ValueError where all failed."""
    from archsearch.latency.sweep import failure
    from archsearch.latency.whole import WholeModel

    console = terminal.console()
    model = WholeModel(spec, device=device, dtype=shapes[0].dtype)
    found: dict[Shape, Measurement | str] = {}
    for shape in shapes:
        if console.is_terminal and not quiet:
            console.print(f"measuring {shape.phase} {shape.batch} × {shape.context}", end="\r")
        try:
            found[shape] = model.measure(shape)
        except ValueError as error:
            found[shape] = str(error)
        except RuntimeError as error:
            found[shape] = failure(error)
    if all(isinstance(one, str) for one in found.values()):
        raise ValueError(next(iter(found.values())))
    return found


def explain(
    spec: ArchSpec,
    hardware: str,
    found: dict[Shape, Measurement | str],
    table: Table | None = None,
) -> dict[str, Any]:
    """Everything that `measure` says, as plain values."""
    from archsearch.space import count

    return {
        "id": spec.id,
        "name": spec.name,
        "notation": spec.notation,
        "parameters": count.parameters(spec),
        "hardware": hardware,
        "dtype": next(iter(found)).dtype,
        "table": None if table is None else table.label,
        "measurements": [_row(spec, shape, one, table) for shape, one in found.items()],
    }


def _row(
    spec: ArchSpec, shape: Shape, measured: Measurement | str, table: Table | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"phase": shape.phase, "batch": shape.batch, "context": shape.context}
    if isinstance(measured, str):
        return row | {"error": measured}
    row["error"] = ""
    timing = measured.timing
    row |= {
        "latency_us": {"p10": timing.p10_us, "p50": timing.p50_us, "p90": timing.p90_us},
        "repeats": timing.repeats,
        "used_cuda_graph": timing.used_cuda_graph,
        "kernels": timing.kernels,
        "tokens_per_s": measured.tokens_per_s,
        "memory_bytes": {
            "weights": measured.weight_bytes,
            "state": measured.state_bytes,
            "peak": measured.peak_bytes,
        },
        "energy_per_token_j": measured.energy_per_token_j,
        "backends": dict(measured.backends),
    }
    return row if table is None else row | _compared(spec, shape, timing.p50_us, table)


def _compared(spec: ArchSpec, shape: Shape, measured_us: float, table: Table) -> dict[str, Any]:
    from archsearch.latency import predict

    try:
        predicted = predict(spec, shape, table).latency_us
    except ValueError as error:
        return {"predicted_us": None, "not_predicted": str(error)}
    return {"predicted_us": predicted, "relative_error": predicted / measured_us - 1}


def _print(report: dict[str, Any]) -> None:
    console, facts = terminal.console(), terminal.facts()
    console.print(
        f"[bold]{report['name'] or report['id']}[/]  {report['notation']}", soft_wrap=True
    )
    rows = report["measurements"]
    done = [row for row in rows if not row["error"]]
    for name, value in (
        ("on", f"{report['hardware']}, {report['dtype']}"),
        ("parameters", f"{report['parameters']:,}"),
        ("weights", terminal.size(done[0]["memory_bytes"]["weights"])),
        *((f"{backend}", ", ".join(names)) for backend, names in _backends(done).items()),
    ):
        facts.add_row(name, value)
    console.print(facts)
    console.print()
    console.print(_latencies(done, compared=report["table"] is not None))
    for row in rows:
        if sentence := row["error"] or row.get("not_predicted"):
            console.print(sentence, markup=False, soft_wrap=True)


def _latencies(rows: Sequence[dict[str, Any]], *, compared: bool) -> Any:
    """One line per shape; only columns that this machine fills."""
    columns = ["phase", "batch", "context", "ms", "predicted ms", "off"]
    if not compared:
        columns = ["phase", "batch", "context", "ms p10", "p50", "p90"]
    columns += ["tokens/s", "memory"]
    extras = {"kernels": "kernels", "mJ/token": "energy_per_token_j"}
    shown = [name for name, key in extras.items() if any(row[key] is not None for row in rows)]
    table = terminal.plain_table(*columns, *shown)
    for row in rows:
        times = [f"{row['latency_us'][q] / 1e3:.3f}" for q in ("p10", "p50", "p90")]
        if compared:
            times = [times[1], *_off(row)]
        cells = [row["phase"], str(row["batch"]), str(row["context"]), *times]
        parts = row["memory_bytes"]
        memory = parts["peak"] or parts["weights"] + parts["state"]
        cells += [terminal.count(row["tokens_per_s"]), terminal.size(memory)]
        if "kernels" in shown:
            cells.append(f"{row['kernels'] or 0:.0f}")
        if "mJ/token" in shown:
            cells.append(f"{1e3 * (row['energy_per_token_j'] or 0):.3g}")
        table.add_row(*cells)
    return table


def _off(row: dict[str, Any]) -> tuple[str, str]:
    if row["predicted_us"] is None:
        return "–", "–"
    return f"{row['predicted_us'] / 1e3:.3f}", f"{row['relative_error']:+.1%}"


def _backends(rows: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Operators by the backend that ran them, over all shapes."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for operator, backend in row["backends"].items():
            names = found.setdefault(backend, [])
            if operator not in names:
                names.append(operator)
    return found
