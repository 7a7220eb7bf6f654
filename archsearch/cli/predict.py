"""`archsearch predict`: how fast an architecture is, from measured layers."""

from __future__ import annotations

from dataclasses import asdict
from itertools import compress
from itertools import product
from typing import TYPE_CHECKING
from typing import Annotated
from typing import Any

import typer

from archsearch import operators
from archsearch.cli import terminal
from archsearch.cli import values

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from archsearch.latency.calibration import CalibrationError
    from archsearch.operators import Shape
    from archsearch.profiles import Table
    from archsearch.space import ArchSpec

PROFILE = "nvidia-h200"
# the table's decode rows, where it has none of the fused step
PLAIN_STEPS = "plain ones; the fused, which a GPU runs today, are faster"
BETWEEN = "between measured batches"
RANGE_COLUMN = 3
# steady work that takes so many times the latency is told apart
CAPPED = 1.01
NONE = "–"
WHAT = {"decode": "decode step", "prefill": "prefill", "train": "training step"}


def predict(
    spec: Annotated[
        str,
        typer.Argument(metavar="SPEC", help="Preset, pattern such as '(a f)x4 @256', or file."),
    ],
    profile: Annotated[str, typer.Option(help="Latency table by name or folder.")] = PROFILE,
    hardware: Annotated[
        str | None,
        typer.Option(help="Estimate for a GPU without a table: A100, L40S, B200, …"),
    ] = None,
    phase: Annotated[str, typer.Option(help="decode, prefill or train.")] = "decode",
    batch: Annotated[str, typer.Option(help="Rows at once; several: 1,8,32.")] = "1",
    context: Annotated[
        str,
        typer.Option(help="Tokens behind the decoded one, or in each row; several: 1024,8192."),
    ] = "1024",
    dtype: Annotated[
        str | None,
        typer.Option(help="bfloat16, float16 or float32 (default: the table's only one)."),
    ] = None,
    allow_stale: Annotated[
        bool, typer.Option("--allow-stale", help="Use rows measured with other operator sources.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict latency, throughput, memory and energy of SPEC from a latency table.

    The sum of measured layers, interpolated inside the measured range and never beyond it.
    """
    from archsearch.latency import scaled
    from archsearch.operators import Shape
    from archsearch.profiles import load_table
    from archsearch.space import load

    model = load(spec)
    rows = values.integers(batch, "--batch")
    lengths = values.integers(context, "--context")
    table = load_table(profile, allow_stale=allow_stale)
    kind = dtype or _only_dtype(table)
    shapes = [
        Shape(phase, one, length, kind)  # type: ignore[arg-type]  # checked there
        for one, length in product(rows, lengths)
    ]
    explained = explain(model, shapes, scaled(table, hardware) if hardware else table)
    if as_json:
        terminal.print_json(explained)
    elif len(shapes) == 1:
        _print_one(explained)
    else:
        _print_many(explained)


def explain(spec: ArchSpec, shapes: list[Shape], table: Table) -> dict[str, Any]:
    """Everything that `predict` says, as plain values. A shape that the table does not reach
    has an `error` among others; raises ValueError where it reaches none."""
    found = []
    between = _between(shapes, table)
    for shape in shapes:
        at = {"batch": shape.batch, "context": shape.context}
        try:
            answer = _answer(spec, shape, table)
        except ValueError as error:
            found.append({**at, "error": str(error)})
        else:
            found.append({**at, "error": "", **answer, **_known_error(shape, table, between)})
    if all(answer["error"] for answer in found):
        raise ValueError(found[0]["error"])
    return {
        "id": spec.id,
        "name": spec.name,
        "notation": spec.notation,
        "num_meta_tokens": spec.num_meta_tokens,
        "codes": [operators.get(layer.operator).code for layer in spec.layers],
        "table": table.label,
        "estimate": table.meta.get("estimate"),
        "phase": shapes[0].phase,
        "dtype": shapes[0].dtype,
        "without_fused": _without_fused(spec, shapes[0], table),
        "predictions": found,
    }


def _without_fused(spec: ArchSpec, shape: Shape, table: Table) -> list[str]:
    from archsearch.latency.lookup import without_fused

    names = [*(layer.operator for layer in spec.layers), "head"]
    return list(without_fused(table, names)) if shape.phase == "decode" else []


def _answer(spec: ArchSpec, shape: Shape, table: Table) -> dict[str, Any]:
    from archsearch.latency import predict as predict_one
    from archsearch.space import count

    found = predict_one(spec, shape, table)
    memory = count.memory(spec, shape)
    available = _memory_of(table)
    energy = found.energy_j
    return {
        "latency_us": found.latency_us,
        "low_us": found.low_us,
        "high_us": found.high_us,
        "floor_us": found.floor_us,
        "steady_us": found.steady_us,
        "tokens_per_s": 1e6 * shape.tokens / (found.steady_us or found.latency_us),
        "energy_per_token_j": None if energy is None else energy / shape.tokens,
        "memory_bytes": {**asdict(memory), "total": memory.total},
        "device_memory_bytes": available,
        "fits": available is None or memory.total <= available,
        "by_operator": [
            {**asdict(part), "share": part.latency_us / found.latency_us}
            for part in found.by_operator
        ],
    }


def _between(shapes: list[Shape], table: Table) -> CalibrationError | None:
    """What is known of predictions between measured batches, where one of these lies there."""
    from archsearch.latency.holdout import between_batches

    if table.meta.get("estimate") or all(_is_measured(shape, table) for shape in shapes):
        return None
    return between_batches(table, shapes[0].phase)


def _known_error(shape: Shape, table: Table, between: CalibrationError | None) -> dict[str, Any]:
    """The error of whole models at such shapes, or `between` where the batch was not measured."""
    from archsearch.latency.calibration import calibration_error

    measured = _is_measured(shape, table)
    error = calibration_error(table, shape) if measured else None
    if measured:
        between = None
    return {
        "calibration": None if error is None else asdict(error),
        "interpolated": not measured,
        "interpolation": None if between is None else asdict(between),
    }


def _is_measured(shape: Shape, table: Table) -> bool:
    same = (table.rows["phase"] == shape.phase) & (table.rows["batch"] == shape.batch)
    return bool(same.any())


def _only_dtype(table: Table) -> str:
    found = sorted(table.rows["dtype"].unique())
    if len(found) != 1:
        raise ValueError(f"the table {table.name!r} has {', '.join(found)}: say which by --dtype")
    return str(found[0])


def _memory_of(table: Table) -> int | None:
    from archsearch.hardware import PEAKS

    if estimate := table.meta.get("estimate"):
        return PEAKS[estimate["target"]].memory_bytes
    return table.meta.get("hardware", {}).get("memory_bytes") or None


def _print_one(explained: dict[str, Any]) -> None:
    console, (answer,) = terminal.console(), explained["predictions"]
    _print_head(explained)
    facts = terminal.facts()
    for name, value in _facts(explained, answer):
        facts.add_row(name, value)
    console.print(facts)
    console.print()
    console.print(_by_operator(answer))
    _print_warnings(explained)


def _print_many(explained: dict[str, Any]) -> None:
    console, answers = terminal.console(), explained["predictions"]
    _print_head(explained)
    names = ["batch", "context", explained["phase"], _range_name(explained)]
    names += ["tokens/s", "memory", "J/token", "error"]
    cells = [_cells(answer) for answer in answers]
    # a column that says nothing anywhere is left out
    told = [any(row[place] != NONE for row in cells) for place in range(len(names))]
    # the spread of measured rows is small: one shape asked alone tells it
    told[RANGE_COLUMN] &= bool(explained["estimate"])
    table = terminal.plain_table(*compress(names, told), left=0)
    for row in cells:
        table.add_row(*compress(row, told))
    console.print(table)
    _print_warnings(explained)


def _print_head(explained: dict[str, Any]) -> None:
    console = terminal.console()
    title = explained["name"] or explained["id"]
    console.print(f"[bold]{title}[/]  {explained['notation']}", soft_wrap=True)
    console.print(terminal.strip(explained["codes"], console.width))
    what = f"{WHAT[explained['phase']]} in {explained['dtype']}, {explained['table']}"
    console.print(what, style="dim", markup=False, soft_wrap=True)


def _facts(explained: dict[str, Any], answer: dict[str, Any]) -> list[tuple[str, str]]:
    low, high = time(answer["low_us"]), time(answer["high_us"])
    about = "about " if explained["estimate"] else ""
    meta = explained["num_meta_tokens"]
    led = f", behind {meta} meta tokens" if meta else ""
    rows = [
        ("rows", f"{answer['batch']} × {answer['context']} tokens{led}"),
        ("latency", f"{about}{time(answer['latency_us'])}"),
        (_range_name(explained), f"{low} – {high}"),
        ("error", _uncertainty(explained, answer)),
        *([("steps", PLAIN_STEPS)] if explained["without_fused"] else []),
        ("throughput", _throughput(answer)),
    ]
    if (energy := answer["energy_per_token_j"]) is not None:
        rows.append(("energy", f"{energy:.3g} J per token"))
    if (floor := answer["floor_us"]) is not None:
        share = floor / answer["latency_us"]
        rows.append(("datasheet floor", f"{time(floor)}, {share:.0%} of the latency"))
    memory = answer["memory_bytes"]
    kept = [f"{name} {terminal.size(part)}" for name, part in memory.items() if part]
    return [*rows, ("memory", ", ".join([*kept[-1:], *kept[:-1]]))]


def _throughput(answer: dict[str, Any]) -> str:
    text, steady = f"{answer['tokens_per_s']:,.0f} tokens/s", answer["steady_us"]
    if steady is None or steady < CAPPED * answer["latency_us"]:
        return text
    return f"{text}, one each {time(steady)}: the power cap holds"


def _uncertainty(explained: dict[str, Any], answer: dict[str, Any]) -> str:
    if explained["estimate"]:
        return "not known: an estimate for hardware that was not measured"
    error, between = answer["calibration"], answer["interpolation"]
    if between is not None:
        left_out = f"median {between['median']:.1%}, p90 {between['p90']:.1%}"
        return f"not calibrated {BETWEEN}; rows that are left out: {left_out}"
    if error is None:
        return f"not calibrated {BETWEEN}" if answer["interpolated"] else "not calibrated"
    return (
        f"median {error['median']:.1%}, p90 {error['p90']:.1%}"
        f" on {error['count']} measurements of whole models"
    )


def _cells(answer: dict[str, Any]) -> list[str]:
    at = [str(answer["batch"]), str(answer["context"])]
    if answer["error"]:
        return [*at, *[NONE] * 6]
    error, joules = answer["calibration"], answer["energy_per_token_j"]
    between = answer["interpolation"]
    return [
        *at,
        time(answer["latency_us"]),
        f"{time(answer['low_us'])} – {time(answer['high_us'])}",
        f"{answer['tokens_per_s']:,.0f}",
        terminal.size(answer["memory_bytes"]["total"]) + ("" if answer["fits"] else " !"),
        NONE if joules is None else f"{joules:.3g}",
        _error_cell(error, between),
    ]


def _error_cell(error: dict[str, Any] | None, between: dict[str, Any] | None) -> str:
    if between is not None:
        return f"(± {between['median']:.1%})"
    return NONE if error is None else f"± {error['median']:.1%}"


def _by_operator(answer: dict[str, Any]) -> RichTable:
    table = terminal.plain_table(
        "", "operator", "calls", "µs", "share", "floor µs", "of floor", left=2
    )
    codes = {operator.name: operator for operator in operators.OPERATORS}
    for part in answer["by_operator"]:
        operator = codes.get(part["operator"])
        floor = part["floor_us"]
        table.add_row(
            terminal.strip([operator.code]) if operator else "",
            operator.title if operator else part["operator"],
            str(part["calls"]),
            f"{part['latency_us']:.1f}",
            f"{part['share']:.1%}",
            NONE if floor is None else f"{floor:.1f}",
            NONE if floor is None else f"{floor / part['latency_us']:.0%}",
        )
    return table


def _print_warnings(explained: dict[str, Any]) -> None:
    answers = explained["predictions"]
    lines = [answer["error"] for answer in answers if answer["error"]]
    lost = [answer for answer in answers if not answer["error"] and not answer["fits"]]
    if lost:
        need = min(answer["memory_bytes"]["total"] for answer in lost)
        have = terminal.size(lost[0]["device_memory_bytes"])
        at = "" if len(answers) == 1 else " where marked"
        lines.append(
            f"does not fit{at}: it takes {terminal.size(need)} or more, and the memory is {have}"
        )
    if len(answers) > 1 and explained["without_fused"]:
        lines.append(f"steps: {PLAIN_STEPS}")
    if len(answers) > 1 and any(answer.get("interpolation") for answer in answers):
        lines.append(f"(±) {BETWEEN}: the median error of rows that are left out")
    elif len(answers) > 1 and not any(answer.get("calibration") for answer in answers):
        lines.append("estimates, not measured" if explained["estimate"] else "not calibrated")
    if explained["phase"] == "train":
        lines.append(
            "a training step is forward and backward without the optimiser's update; its memory"
            " is weights, gradients and AdamW's moments in one dtype, without activations"
        )
    console = terminal.console()
    for line in dict.fromkeys(lines):
        console.print(line, markup=False, soft_wrap=True)


def _range_name(explained: dict[str, Any]) -> str:
    return "bounds" if explained["estimate"] else "p10 – p90"


def time(us: float) -> str:
    """Microseconds for people: 890.1 µs, 1.235 ms, 2.5 s."""
    for size, unit in ((1e6, "s"), (1e3, "ms")):
        if us >= size:
            return f"{us / size:.4g} {unit}"
    return f"{us:.4g} µs"
