"""`archsearch chat` answers line by line, survives Ctrl-C, and words mistakes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest

from archsearch.cli.main import call
from archsearch.serve import Chat
from archsearch.space import parse

Typed = Callable[..., None]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Make `input` give these lines, or raise them, then the end of the input."""

    def lines(*given: str | BaseException) -> None:
        rest = iter(given)

        def answer(prompt: str = "") -> str:
            line = next(rest, None)
            if line is None:
                raise EOFError
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", answer)

    return lines


@pytest.fixture
def model(tmp_path: Path) -> str:
    file = tmp_path / "tiny.json"
    file.write_text(parse("d f a f @64", vocab_size=256, num_meta_tokens=2).resolved_json())
    return str(file)


def test_a_conversation(
    typed: Typed, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    typed("hello", "", "/what", "again", "/reset", "hello", "/exit", "never")
    words = ["--max-len", "150", "--max-new-tokens", "20", "--device", "cpu"]
    assert call(["chat", "--model", model, *words]) == 0
    text = capsys.readouterr().out
    assert "weights are random" in text
    assert "in float32 on cpu" in text
    assert text.count("20 tokens, ") == 3
    assert "42 of 150 tokens used" in text
    assert "85 of 150 tokens used" in text
    assert text.count("/reset forgets") == 2
    first, second = (part.split("\n20 tokens")[0] for part in (text, text.split("forgotten")[1]))
    assert first.splitlines()[-1] == second.splitlines()[-1], "equal seeds, equal answers"


def test_a_message_that_is_too_long(
    typed: Typed, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    typed("x" * 100, "hello")
    assert call(["chat", "--model", model, "--max-len", "50", "--device", "cpu"]) == 0
    text = capsys.readouterr().out.replace("\n", " ")
    assert "holds 50 tokens per row" in text
    assert "28 tokens, " in text


def test_ctrl_c_stops_an_answer_and_not_the_chat(
    typed: Typed, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Chat.say

    def interrupted(self: Chat, text: str, count: int) -> Iterator[str]:
        for piece in plain(self, text, count):
            os.kill(os.getpid(), signal.SIGINT)
            yield piece

    monkeypatch.setattr(Chat, "say", interrupted)
    typed(KeyboardInterrupt(), "hello", "again")
    handler = signal.getsignal(signal.SIGINT)
    words = ["--max-len", "150", "--device", "cpu", "--temperature", "0"]
    assert call(["chat", "--model", model, *words]) == 0
    assert capsys.readouterr().out.count("8 tokens, ") == 2
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model", "nemotron-flash-2b"], "nemotron-flash-1b"),
        (["--model", "a f @64", "--dtype", "int8"], "float32"),
        (["--model", "a f @64", "--top-p", "2"], "top_p must lie in"),
        (["--model", "a f @64", "--device", "warp"], "warp"),
        ([], "--model"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["chat", *words]) == 2
    assert expected in capsys.readouterr().err
