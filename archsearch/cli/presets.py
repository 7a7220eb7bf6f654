"""`archsearch presets`: published architectures by name."""

from __future__ import annotations

from typing import Annotated
from typing import Any

import typer

from archsearch.cli import terminal
from archsearch.space import count
from archsearch.space import presets as table


def presets(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the published architectures."""
    rows = [_row(name) for name in table.names()]
    if as_json:
        terminal.print_json(rows)
        return
    shown = terminal.plain_table("name", "parameters", "pattern")
    terminal.let_wrap(shown.columns[-1])
    for row in rows:
        shown.add_row(row["name"], f"{row['parameters']:,}", row["notation"])
    terminal.console().print(shown)


def _row(name: str) -> dict[str, Any]:
    preset, spec = table.describe(name), table.get(name)
    return {
        "name": name,
        "description": preset.description,
        "source": preset.source,
        "id": spec.id,
        "notation": spec.notation,
        "hidden_size": spec.hidden_size,
        "num_layers": len(spec.layers),
        "parameters": count.parameters(spec),
    }
