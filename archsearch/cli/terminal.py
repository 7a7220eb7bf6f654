"""What all commands print with: the console, numbers for people, strips of layers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console
from rich.table import Column
from rich.table import Table
from rich.text import Text

from archsearch.report import style

BLOCK = "█"


def console() -> Console:
    """The standard output; colours only what asks for them."""
    return Console(highlight=False)


def print_json(value: Any) -> None:
    """Print JSON that other programs read: no colours, no wrapping."""
    typer.echo(json.dumps(value, indent=2))


def strip(codes: Iterable[str], width: int = 80) -> Text:
    """One coloured cell with its code per layer, on lines of whole cells of at most `width`;
    without colours, the codes."""
    text, room = Text(), width
    for code in codes:
        cell = f" {code} "
        if len(cell) > room:
            text.append("\n")
            room = width
        fill = style.colour(code)
        text.append(cell, style=f"{style.ink_on(fill)} on {fill}")
        room -= len(cell)
    return text


def blocks(codes: Iterable[str]) -> Text:
    """One coloured block per layer, for tables; codes where there is no room for colour."""
    return Text("").join(Text(BLOCK, style=style.colour(code)) for code in codes)


def plain_table(*columns: str, left: int = 1) -> Table:
    """A table without frames whose first `left` columns are text and whose others numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim", show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(
            column, justify="left" if index < left else "right", no_wrap=index >= left
        )
    return table


def let_wrap(column: Column) -> None:
    """Make a column of text take what room is left, on as many lines as it needs."""
    column.justify, column.no_wrap = "left", False


def facts() -> Table:
    """A table of names and values, without a head."""
    table = plain_table("", "", left=2)
    table.show_header = False
    return table


def count(number: float) -> str:
    """A count in thousands, millions, ...: 965.4 M."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """Bytes in binary units: 1.5 MiB."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if number >= 1024**power:
            return f"{number / 1024**power:.1f} {unit}"
    return f"{number:.0f} B"
