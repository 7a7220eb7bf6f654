"""`archsearch space`: what a search may choose from."""

from __future__ import annotations

from typing import Annotated
from typing import Any

import typer
from rich.text import Text

from archsearch.cli import terminal
from archsearch.space import get_space
from archsearch.space import space_names

app = typer.Typer(help="Show search spaces.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_spaces(as_json: AsJson = False) -> None:
    """List the search spaces with their default settings."""
    rows = [get_space(name).describe() for name in space_names()]
    if as_json:
        terminal.print_json(rows)
        return
    table = terminal.plain_table("name", "candidates", "what it is")
    terminal.let_wrap(table.columns[-1])
    for row in rows:
        table.add_row(row["name"], f"{row['size']:.3g}", row["summary"])
    terminal.console().print(table)


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of a space, see `archsearch space list`.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show what a candidate of a space is made of, with the space's default settings."""
    described = get_space(name).describe()
    if as_json:
        terminal.print_json(described)
    else:
        _print(described)


def _print(space: dict[str, Any]) -> None:
    console = terminal.console()
    console.print(f"[bold]{space['name']}[/] version {space['version']}")
    console.print(space["summary"])
    facts = terminal.facts()
    facts.add_row("operators", terminal.strip([*space["codes"], "f"]))
    facts.add_row("layers", f"at most {space['max_layers']}")
    facts.add_row("widths", f"{_listed(space['widths'])} ({space['width']})")
    facts.add_row("candidates", f"{space['size']:,}")
    facts.add_row("mutations", ", ".join(space["mutations"]))
    console.print(facts)
    console.print()
    table = terminal.plain_table("parameter", "values")
    terminal.let_wrap(table.columns[-1])
    for keys, values in _alike(space["parameters"]).items():
        table.add_row(keys, Text(values))
    console.print(table)


def _alike(parameters: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Neighbours with the same values in one line: a space by layer has one per layer."""
    groups: list[tuple[list[str], str]] = []
    for key, choice in parameters.items():
        values = _values(choice)
        if groups and groups[-1][1] == values:
            groups[-1][0].append(key)
        else:
            groups.append(([key], values))
    return {keys[0] if len(keys) == 1 else f"{keys[0]} … {keys[-1]}": v for keys, v in groups}


def _values(choice: dict[str, Any]) -> str:
    return (
        _listed(choice["values"]) if "values" in choice else f"{choice['low']}..{choice['high']}"
    )


def _listed(values: list[Any]) -> str:
    return ", ".join(map(str, values))
