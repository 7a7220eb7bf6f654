"""Entry point of the `archsearch` command, and the one place where its errors are worded.

Start-up is part of the interface: command modules import torch, pandas and matplotlib inside
their functions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated
from typing import NoReturn

import typer
from typer.main import get_command

from archsearch import __version__
from archsearch.cli import arch
from archsearch.cli import calibrate
from archsearch.cli import chat
from archsearch.cli import doctor
from archsearch.cli import evolve
from archsearch.cli import export
from archsearch.cli import measure
from archsearch.cli import predict
from archsearch.cli import presets
from archsearch.cli import profile
from archsearch.cli import report
from archsearch.cli import space
from archsearch.cli import zoo

USER_ERROR, INTERRUPTED = 2, 130

app = typer.Typer(
    help="Search hybrid language-model architectures within a latency.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("evolve")(evolve.evolve)
app.command("profile")(profile.profile)
app.command("measure")(measure.measure)
app.command("calibrate")(calibrate.calibrate)
app.command("doctor")(doctor.doctor)
app.command("predict")(predict.predict)
app.command("chat")(chat.chat)
app.command("operators")(zoo.operators)
app.command("presets")(presets.presets)
app.command("report")(report.report)
app.command("export")(export.export)
app.add_typer(arch.app, name="arch")
app.add_typer(space.app, name="space")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"archsearch {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Search hybrid language-model architectures within a latency."""
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0, 2 for a user's mistake, 130 when interrupted."""
    sys.exit(call(arguments))


def call(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; mistakes become one sentence on stderr and a return value of 2."""
    try:
        code = get_command(app).main(
            args=None if arguments is None else list(arguments),
            prog_name="archsearch",
            standalone_mode=False,
        )
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("ARCHSEARCH_DEBUG") == "1":
            raise
        return _complain(_sentence(error))
    except typer.TyperException as error:
        return _complain(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        print("archsearch: interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _complain(sentence: str) -> int:
    # a group without a command has printed its help and says no more
    if sentence:
        print(f"archsearch: {sentence}", file=sys.stderr)
    return USER_ERROR


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}"
    return str(error) or type(error).__name__


if __name__ == "__main__":
    run()
