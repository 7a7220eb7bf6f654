"""`archsearch evolve`: the search, from this machine's latencies to a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from archsearch.cli import values
from archsearch.cli.terminal import console

SEARCH, MODEL, OUTPUT = "What is searched", "How candidates are judged", "Where it goes"


def evolve(
    name: Annotated[
        str | None,
        typer.Option(
            help="Run name below the root; the same name goes on with the run.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(help="Candidates to train in all.", min=1, rich_help_panel=SEARCH)
    ] = 24,
    space: Annotated[
        str,
        typer.Option(help="Search space (see: archsearch space list).", rich_help_panel=SEARCH),
    ] = "nemotron-flash",
    sampler: Annotated[
        str, typer.Option(help="evolution, nsga2, tpe or random.", rich_help_panel=SEARCH)
    ] = "evolution",
    target_latency: Annotated[
        float | None,
        typer.Option(
            help="Bound on ms per decode step at --batch and --context"
            " (default: that of a five-block transformer).",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    operators: Annotated[
        str | None, typer.Option(help="Mixers to choose from: a,m2,d,…", rich_help_panel=SEARCH)
    ] = None,
    widths: Annotated[
        str | None, typer.Option(help="Hidden sizes: 64,128,…", rich_help_panel=SEARCH)
    ] = None,
    max_layers: Annotated[
        int | None, typer.Option(help="Most operators, FFNs included.", rich_help_panel=SEARCH)
    ] = None,
    width: Annotated[
        str,
        typer.Option(
            help="largest: the widest within the target; choice: searched too.",
            rich_help_panel=SEARCH,
        ),
    ] = "largest",
    objectives: Annotated[
        str,
        typer.Option(
            help="loss first; then latency_us, parameters, state_bytes.", rich_help_panel=SEARCH
        ),
    ] = "loss,latency_us",
    max_parameters: Annotated[
        int | None, typer.Option(help="Bound on parameters.", rich_help_panel=SEARCH)
    ] = None,
    max_state_bytes: Annotated[
        int | None, typer.Option(help="Bound on the decode state.", rich_help_panel=SEARCH)
    ] = None,
    population: Annotated[
        int, typer.Option(help="Candidates that evolution keeps.", rich_help_panel=SEARCH)
    ] = 8,
    tournament: Annotated[
        int, typer.Option(help="Candidates a parent is the best of.", rich_help_panel=SEARCH)
    ] = 4,
    seed: Annotated[
        int, typer.Option(help="Of the search and of training.", rich_help_panel=SEARCH)
    ] = 0,
    profile: Annotated[
        str | None,
        typer.Option(
            help="Latency table by name or folder (default: this machine's, measured if need be).",
            rich_help_panel=MODEL,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Rows per decode step.", rich_help_panel=MODEL)] = 1,
    context: Annotated[
        int, typer.Option(help="Tokens behind the decoded one.", rich_help_panel=MODEL)
    ] = 1024,
    data: Annotated[
        str,
        typer.Option(
            help="stdlib (Python's own sources), a file or folder, or hf:<dataset>.",
            rich_help_panel=MODEL,
        ),
    ] = "stdlib",
    tokenizer: Annotated[
        str, typer.Option(help="bytes, a tokenizer.json, or a name.", rich_help_panel=MODEL)
    ] = "bytes",
    steps: Annotated[
        int | None, typer.Option(help="Training steps per candidate.", rich_help_panel=MODEL)
    ] = None,
    root: Annotated[Path, typer.Option(help="Folder of all runs.", rich_help_panel=OUTPUT)] = Path(
        "runs"
    ),
    storage: Annotated[
        str | None,
        typer.Option(
            help="Optuna storage URL, for many machines (default: the run's own file).",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Search for the best architecture within a latency; run it again to go on.

    Measures this machine (once), evolves and trains candidates, times the
    front on built models, trains baselines of the same latency, and writes a
    report.
    """
    from archsearch.cli.live import display
    from archsearch.cli.progress import profiling
    from archsearch.report.write import write
    from archsearch.search import evolve as search
    from archsearch.search.setup import Request
    from archsearch.search.setup import prepare

    request = Request(
        name=name,
        space=space,
        sampler=sampler,
        table=profile,
        data=data,
        tokenizer=tokenizer,
        target_latency_ms=target_latency,
        seed=seed,
        batch=batch,
        context=context,
        widths=None if widths is None else values.integers(widths, "--widths"),
        codes=None if operators is None else values.words(operators),
        max_layers=max_layers,
        width=width,
        steps=steps,
        objectives=values.words(objectives),
        max_parameters=max_parameters,
        max_state_bytes=max_state_bytes,
        population=population,
        tournament=tournament,
    )
    with profiling(console()) as on_profile:
        prepared = prepare(request, root=root, on_profile=on_profile)
    with display(console()) as observer:
        run = search(
            prepared.config,
            trials=trials,
            evaluator=prepared.evaluator,
            root=root,
            storage=storage,
            observer=observer,
            attach=prepared.attach,
        )
    for path in write(run):
        console().print(str(path))
