"""`archsearch arch show`: one architecture explained."""

from __future__ import annotations

from typing import Annotated
from typing import Any

import typer

from archsearch import operators
from archsearch.cli import terminal
from archsearch.operators import Shape
from archsearch.space import ArchSpec
from archsearch.space import count
from archsearch.space import load

app = typer.Typer(help="Explain architectures.", no_args_is_help=True)


@app.callback()
def arch() -> None:
    """Explain architectures."""


@app.command()
def show(
    spec: Annotated[
        str,
        typer.Argument(metavar="SPEC", help="Preset, pattern such as '(a f)x4 @256', or file."),
    ],
    context: Annotated[int, typer.Option(help="Tokens behind the one that is decoded.")] = 1024,
    batch: Annotated[int, typer.Option(help="Rows that state is kept for.")] = 1,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show pattern, parameters, FLOPs per token and decode state of SPEC."""
    explained = explain(load(spec), Shape("decode", batch, context, dtype))
    if as_json:
        terminal.print_json(explained)
    else:
        _print(explained)


def explain(spec: ArchSpec, shape: Shape) -> dict[str, Any]:
    """Everything that `arch show` says, as plain values."""
    costs = count.layers(spec, shape)
    layers = [
        {
            "operator": layer.operator,
            "code": operators.get(layer.operator).code,
            "parameters": cost.parameters,
            "flops_per_token": cost.flops // shape.batch,
            "state_bytes": cost.state_bytes,
            "config": config.model_dump(mode="json"),
        }
        for layer, config, cost in zip(spec.layers, spec.configs, costs, strict=True)
    ]
    return {
        "id": spec.id,
        "name": spec.name,
        "notation": spec.notation,
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "tie_embeddings": spec.tie_embeddings,
        "num_meta_tokens": spec.num_meta_tokens,
        "context": shape.context,
        "batch": shape.batch,
        "dtype": shape.dtype,
        "parameters": count.parameters(spec),
        "flops_per_token": count.flops_per_token(spec, shape.context),
        "state_bytes": count.state_bytes(spec, shape.context, shape.batch, shape.dtype),
        "layers": layers,
    }


def _print(spec: dict[str, Any]) -> None:
    console, layers = terminal.console(), spec["layers"]
    console.print(f"[bold]{spec['name'] or spec['id']}[/]  {spec['notation']}", soft_wrap=True)
    console.print(terminal.strip((layer["code"] for layer in layers), console.width))
    facts = terminal.facts()
    embeddings = "tied" if spec["tie_embeddings"] else "untied"
    rows = f"{spec['batch']} × {spec['context']} tokens, {spec['dtype']}"
    for name, value in (
        ("parameters", f"{spec['parameters']:,}"),
        ("FLOPs per token", f"{spec['flops_per_token']:,} at {spec['context']} tokens"),
        ("decode state", f"{terminal.size(spec['state_bytes'])} for {rows}"),
        ("layers", f"{len(layers)} of width {spec['hidden_size']}"),
        ("vocabulary", f"{spec['vocab_size']:,}, {embeddings} embeddings"),
        ("meta tokens", str(spec["num_meta_tokens"])),
        ("id", spec["id"]),
    ):
        facts.add_row(name, value)
    console.print(facts)
    console.print()
    console.print(_by_operator(spec))


def _by_operator(spec: dict[str, Any]) -> Any:
    table = terminal.plain_table(
        "", "operator", "layers", "parameters", "share", "FLOPs/token", "state", left=2
    )
    totals = {key: spec[key] for key in ("parameters", "flops_per_token", "state_bytes")}
    rest = dict(totals)
    for operator in operators.OPERATORS:
        own = [layer for layer in spec["layers"] if layer["operator"] == operator.name]
        if own:
            sums = {key: sum(layer[key] for layer in own) for key in totals}
            rest = {key: rest[key] - sums[key] for key in totals}
            table.add_row(
                terminal.strip([operator.code]),
                operator.title,
                str(len(own)),
                *_cells(sums, totals["parameters"]),
            )
    table.add_row("", "embedding, norms, head", "", *_cells(rest, totals["parameters"]))
    return table


def _cells(sums: dict[str, int], parameters: int) -> tuple[str, ...]:
    return (
        terminal.count(sums["parameters"]),
        f"{sums['parameters'] / parameters:.1%}",
        terminal.count(sums["flops_per_token"]),
        terminal.size(sums["state_bytes"]),
    )
