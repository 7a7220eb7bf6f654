"""`archsearch export`: an architecture, or the winner of a run, for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    source: Annotated[
        str, typer.Argument(metavar="SPEC|RUN", help="Preset, pattern, JSON file, or a run.")
    ],
    to: Annotated[str, typer.Option(help="Format: json.")] = "json",
    out: Annotated[Path | None, typer.Option(help="File to write; without it, print.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write an architecture with every operator's complete config."""
    from archsearch.cli.runs import load_source
    from archsearch.export import export as write

    text = write(load_source(source), to)
    if out is None:
        typer.echo(text, nl=False)
        return
    if out.exists() and not force:
        raise ValueError(f"{out} exists: give --force to overwrite it, or another --out")
    from archsearch.files import write_text

    write_text(out, text)
    typer.echo(f"wrote {out}", err=True)
