"""`archsearch operators`: what a layer can be."""

from __future__ import annotations

from typing import Annotated
from typing import Any

import typer

from archsearch import operators as table
from archsearch.cli import terminal
from archsearch.operators import Operator
from archsearch.operators import Shape


def operators(
    width: Annotated[int, typer.Option(help="Hidden size that is counted at.")] = 1024,
    context: Annotated[int, typer.Option(help="Tokens that the state holds.")] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the operators with their size at a width."""
    rows = [_row(operator, width, context) for operator in table.OPERATORS]
    if as_json:
        terminal.print_json(rows)
        return
    shown = terminal.plain_table("", "name", "kind", "parameters", "state", "source", left=3)
    terminal.let_wrap(shown.columns[-1])
    for row in rows:
        shown.add_row(
            terminal.strip([row["code"]]),
            row["name"],
            row["kind"],
            terminal.count(row["parameters"]),
            terminal.size(row["state_bytes"]),
            row["source"],
        )
    console = terminal.console()
    console.print(shown)
    console.print(f"\nAt width {width}; state of one float32 sequence of {context} tokens.")


def _row(operator: Operator, width: int, context: int) -> dict[str, Any]:
    config = operator.configure(width)
    cost = operator.cost(config, Shape("decode", context=context))
    return {
        "code": operator.code,
        "name": operator.name,
        "title": operator.title,
        "kind": operator.kind,
        "hidden_size": width,
        "context": context,
        "parameters": cost.parameters,
        "state_bytes": cost.state_bytes,
        "choices": {key: list(values) for key, values in operator.choices(width).items()},
        "backends": list(operator.backends),
        "source": operator.source,
    }
