"""`archsearch report`: figures and a page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's folder, or its name under runs/.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write only the page, here, and leave the run alone.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Optuna storage URL that the run was made with.")
    ] = None,
) -> None:
    """Draw a run: writes front.png and report.html into its folder."""
    from archsearch.report.write import write
    from archsearch.report.write import write_page
    from archsearch.search import load_run

    loaded = load_run(run, storage=storage)
    for path in write(loaded) if out is None else [write_page(loaded, out)]:
        typer.echo(path)
