"""The live display follows a search, on a terminal and without one."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from archsearch.cli import live
from archsearch.search import Observer
from archsearch.search import Pace
from archsearch.search import RunConfig
from archsearch.space import parse

CONFIG = RunConfig(
    name="demo",
    space="free",
    space_version=1,
    widths=(64, 128),
    codes=("a", "d"),
    target_latency_ms=1.5,
    table="here",
    table_id="t",
    data="stdlib",
    data_fingerprint="d",
    recipe={"steps": 10, "warmup_steps": 1},
    baselines=("a f",),
)


def row(number: int, **fields: Any) -> dict[str, Any]:
    spec = parse("(d f)x2 a f @128", vocab_size=256)
    known = {
        "number": number,
        "notation": spec.notation,
        "spec": spec.model_dump_json(),
        "hidden_size": 128,
        "parameters": 1_500_000,
        "latency_us": 800.0,
        "loss": 2.5 - 0.1 * number,
        "bits_per_byte": 3.6 - 0.1 * number,
        "feasible": True,
        "status": "trained",
        "error": "",
    }
    return known | fields


def failed_baseline() -> dict[str, Any]:
    # what the search records for a baseline that cannot be made
    gone = dict.fromkeys(row(0)) | {"number": -1, "feasible": False, "status": "failed"}
    return gone | {"label": "Attention + FFN", "error": "no width fits", "measured_us_p50": None}


def play(observer: Observer) -> None:
    candidate: Any = SimpleNamespace(spec=parse("d f a f @128"))
    observer.start(CONFIG, trials=12, counted=0)
    for number in range(10):
        observer.candidate_started(number, candidate)
        observer.training_step(number, 5, 10, 3.21)
        observer.candidate_recorded(number, row(number), counted=number + 1)
    nothing = {"loss": None, "bits_per_byte": None, "feasible": False}
    observer.candidate_recorded(10, row(10, status="infeasible", **nothing), counted=10)
    broken = {"status": "failed", "error": "loss was not finite", "loss": 9.0}
    observer.candidate_recorded(11, row(11, **broken), counted=11)
    observer.stopped("nothing new is left")
    observer.remeasured(row(9, measured_us_p50=850.0), done=1, total=1)
    observer.baseline_started("Attention + FFN", candidate)
    observer.baseline_recorded(failed_baseline())
    observer.done(row(9, measured_us_p50=850.0))


def console(terminal: bool) -> Console:
    colours = "truecolor" if terminal else None
    return Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=colours)


def printed(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_without_a_terminal_there_is_one_plain_line_per_event() -> None:
    screen = console(terminal=False)
    with live.display(screen) as observer:
        play(observer)
    lines = printed(screen).splitlines()
    assert "\x1b" not in printed(screen)
    assert lines[0].startswith("run demo: space free, at most 1.5 ms per token")
    assert sum(line.startswith("[") for line in lines) == 12
    assert any("[10/12]" in line and "#9 " in line and "loss 1.600" in line for line in lines)
    assert any("too slow or large" in line for line in lines)
    assert any("#11 " in line and "failed: loss was not finite" in line for line in lines)
    assert "nothing new is left" in lines
    assert "0.800 ms predicted, 0.850 ms measured" in lines[-1]
    assert "baseline Attention + FFN: " in lines[-2]
    assert "no width fits" in lines[-2]


def test_on_a_terminal_the_last_screen_shows_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    screen = console(terminal=True)
    with live.display(screen) as observer:
        play(observer)
        assert isinstance(observer, live.LiveTable)
        last = console(terminal=False)
        last.print(observer._screen())
    text = printed(last)
    assert "11/12 trials" in text
    assert "best: #9" in text
    assert "0.850 ms measured" in text
    assert "Attention + FFN" in text
    assert "████" in text
    assert max(map(len, text.splitlines())) <= 80
    rows = [line for line in text.splitlines() if line.split(" ")[0].isdigit()]
    assert len(rows) == live.ROWS_SHOWN - 1  # the baseline is the eighth


def test_a_resumed_search_claims_only_what_it_saw() -> None:
    screen = console(terminal=True)
    with live.display(screen) as observer:
        observer.start(CONFIG, trials=12, counted=4)
        observer.candidate_recorded(4, row(4), counted=5)
    assert "best of this session: #4" in printed(screen)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "estimating"),
        (40.0, "about 40 s left"),
        (600.0, "about 10 min left"),
        (9000.0, "about 2.5 h left"),
    ],
)
def test_remaining_time(
    seconds: float | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "remaining_s", lambda self: seconds)
    assert live.remaining(Pace()) == words
