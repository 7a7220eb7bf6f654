"""`archsearch profile`: what it plans, measures, merges and refuses."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch

from archsearch.cli.main import call
from archsearch.cli.planning import Asked
from archsearch.cli.progress import duration
from archsearch.latency import sweep
from archsearch.profiles import load_table


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The smallest table; measuring it takes no time."""
    monkeypatch.setitem(sweep.BUDGET_S, "cpu", 0.0)
    return ["--operators", "f", "--widths", "64", "--context", "16", "--device", "cpu"]


def test_plan_measure_plan(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    command = ["profile", *tiny, "--out", str(out)]
    assert call([*command, "--plan"]) == 0
    shown = lines(capsys)
    assert [line.split() for line in shown[:4]] == [
        ["phase", "cases", "measured", "left"],
        ["decode", "1", "0", "1"],
        ["prefill", "1", "0", "1"],
        ["all", "2", "0", "2"],
    ]
    assert not out.exists(), "a plan measures nothing"
    assert call(command) == 0
    assert lines(capsys)[-1] == f"2 rows in {out}"
    assert call([*command, "--plan"]) == 0
    assert lines(capsys)[3].split() == ["all", "2", "2", "0"]
    assert call([*command, "--limit-minutes", "0", "--batch", "2"]) == 0
    assert "left to measure: 1 decode, 1 prefill; run the same command again" in lines(capsys)


def test_processes_that_die_while_they_compile_keep_nothing_from_being_measured(
    tiny: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dies(*_: Any, **__: Any) -> int:
        raise BrokenProcessPool

    def measures(_cases: Any, *, folder: Path, **_: Any) -> Any:
        return sweep.profile(_cases, folder=folder)

    monkeypatch.setattr("archsearch.latency.warm.warm", dies)
    monkeypatch.setattr("archsearch.cli.device.chosen", lambda _: "cuda")
    monkeypatch.setattr("archsearch.latency.profile", measures)
    out = tmp_path / "mine"
    assert call(["profile", *tiny, "--out", str(out)]) == 0
    shown = lines(capsys)
    assert "a process that compiles kernels died" in shown[0]
    assert shown[-1].endswith(f"rows in {out}")


def test_merge(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("1", "2"):
        shape = ["--batch", part, "--phase", "decode", "--out", str(tmp_path / part)]
        assert call(["profile", *tiny, *shape]) == 0
    folders = [str(tmp_path / "1"), str(tmp_path / "2")]
    assert call(["profile", "--merge", *folders, "--out", str(tmp_path / "all")]) == 0
    assert sorted(load_table(tmp_path / "all").rows["batch"]) == [1, 2]
    capsys.readouterr()
    assert call(["profile", "--merge", str(tmp_path / "none")]) == 2
    assert "no latency table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--grid", "shiped"], "unknown grid 'shiped'; did you mean 'shipped'?"),
        (["--grid", "shipped", "--batch", "2"], "the grid 'shipped' has its own --batch"),
        (["--grid", "shipped", "--space", "free"], "give one of"),
        (["--shard", "5/4"], "a shard is given as '1/4'"),
        (["--phase", "dream"], "--phase must be among decode, prefill, train; got 'dream'"),
        (["--space", "fre"], "unknown space 'fre'"),
        (["--device", "cuda"], "needs a CUDA GPU"),
        (["--merge"], "merging needs at least one table"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if "--device" not in words:
        words = [*words, "--device", "cpu"]
    elif torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert call(["profile", *words, "--plan", "--out", str(tmp_path / "t")]) == 2
    found = capsys.readouterr().err
    assert sentence in found
    assert found.count("\n") == 1


def test_options_narrow_a_grid() -> None:
    every = Asked(grid="quick").cases("cpu")
    some = Asked(grid="quick", widths="2048", phase="decode", operators="m2,d").cases("cpu")
    assert set(some) < set(every)
    assert {case.operator for case in some} == {"mamba2", "deltanet"}
    assert {(case.hidden_size, case.phase) for case in some} == {(2048, "decode")}


def test_defaults_are_those_of_the_device() -> None:
    here, there = Asked().cases("cpu"), Asked().cases("cuda")
    assert {case.dtype for case in here} == {"float32"}
    assert {case.dtype for case in there} == {"bfloat16"}
    assert {case.hidden_size for case in there} == {1024, 1536, 2048}
    heads = {case.config for case in there if case.operator == "head"}
    assert heads == {'{"head_norm":false,"vocab_size":131072}'}


def test_a_space_asks_for_its_operators() -> None:
    cases = Asked(space="nemotron-flash", widths="128", context="64").cases("cpu")
    found = {case.operator for case in cases}
    assert found == {"attention", "mamba2", "deltanet", "ffn", "embedding", "head"}


@pytest.mark.parametrize(
    ("seconds", "text"), [(50, "50 s"), (600, "10 min"), (5000, "83 min"), (8000, "2 h 13 min")]
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
