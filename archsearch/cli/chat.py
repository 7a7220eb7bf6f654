"""`archsearch chat`: talk to a model in the terminal."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING
from typing import Annotated
from typing import Any

import typer

from archsearch.cli import terminal

if TYPE_CHECKING:
    from archsearch.serve import Chat

COMMANDS = "/reset forgets, /exit leaves, Ctrl-C stops an answer"


def chat(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL|SPEC",
            help="Folder or hub name of a model, or an"
            " architecture (preset, pattern, run), whose weights are drawn at random.",
        ),
    ],
    max_len: Annotated[int, typer.Option(help="Tokens of the whole conversation.", min=1)] = 8192,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of one answer.", min=1)] = 1024,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Draw from the k likeliest; 0: from all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest that weigh p.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Equal seeds, equal answers.")] = 0,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16 (default: by device).")
    ] = None,
) -> None:
    """Talk to a model: answers stream, the conversation goes on, speed is shown."""
    from archsearch.generate import Sampling

    sampling = Sampling(temperature, top_k, top_p)
    console = terminal.console()
    with console.status("loading …"):
        made, words, note = _load(model, device, dtype)
        conversation = _open(made, words, max_len, sampling, seed, system)
    console.print(f"[bold]{model}[/] {note}", soft_wrap=True)
    console.print(f"[dim]{COMMANDS}[/]")
    for text in _lines(console):
        if text == "/reset":
            conversation.reset()
            console.print("[dim]forgotten[/]")
        elif text.startswith("/"):
            console.print(f"[dim]{COMMANDS}[/]")
        else:
            _answer(console, conversation, text, max_new_tokens)


def _load(source: str, device: str | None, dtype: str | None) -> tuple[Any, Any, str]:
    """Model, tokenizer, and what to say about them."""
    from archsearch import serve
    from archsearch.cli.device import chosen
    from archsearch.cli.device import usual_dtype
    from archsearch.cli.runs import load_source
    from archsearch.operators.base import DTYPE_BYTES

    device = chosen(device)
    dtype = dtype or usual_dtype(device)
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype must be one of {list(DTYPE_BYTES)}; got {dtype!r}")
    where = f"in {dtype} on {device}"
    if serve.is_checkpoint(source):
        return *serve.pretrained(source, device=device, dtype=dtype), where
    model, words = serve.drawn(load_source(source), device=device, dtype=dtype)
    return model, words, f"{where}; its weights are random, and so is what it says"


def _open(
    model: Any, words: Any, max_len: int, sampling: Any, seed: int, system: str | None
) -> Chat:
    from archsearch.generate import Session
    from archsearch.serve import Chat

    session = Session(model, batch_size=1, max_len=max_len)
    session.prepare(sampling)
    return Chat(session, words, sampling=sampling, seed=seed, system=system)


def _lines(console: Any) -> Iterator[str]:
    """What the user types, until /exit or the end of the input."""
    with contextlib.suppress(ImportError):
        # gives the prompt a history
        import readline  # noqa: F401
    while True:
        try:
            text = console.input("[bold]›[/] ").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            console.print(f"\n[dim]{COMMANDS}[/]")
            continue
        if text == "/exit":
            return
        if text:
            yield text


def _answer(console: Any, chat: Chat, text: str, max_new_tokens: int) -> None:
    """Print an answer as it comes, then how fast it came."""
    with _interrupts() as pressed:
        try:
            for piece in chat.say(text, max_new_tokens):
                console.out(piece, end="", highlight=False)
                if pressed():
                    break
        except ValueError as error:
            console.print(f"[dim]{error}; /reset makes room[/]")
            return
        except KeyboardInterrupt:
            pass
    pace, session = chat.pace, chat.session
    console.print(
        f"\n[dim]{pace.tokens:,} tokens, {pace.tokens_per_s:,.0f} per second; message read in"
        f" {pace.prefill_s:.2f} s; {chat.used:,} of {session.max_len:,} tokens used[/]"
    )


@contextlib.contextmanager
def _interrupts() -> Iterator[Any]:
    """Within, Ctrl-C is noted, so that an answer ends between two tokens; a second one raises
    KeyboardInterrupt."""
    pressed: list[int] = []

    def note(number: int, _: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
