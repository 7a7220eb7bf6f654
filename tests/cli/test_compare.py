"""`archsearch measure --compare`: what it prints and writes, and its mistakes in one sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from archsearch.cli.main import call
from archsearch.latency import compare
from archsearch.latency.provenance import measured_hardware
from archsearch.space import parse

WORDS = ["measure", "--compare", "--device", "cpu", "--tokens", "8", "--input", "12"]
WORDS += ["--output", "4", "--max-batch", "2"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archsearch.timing.CPU_PASSES", 1)
    usual = compare.measure_all.__kwdefaults__
    monkeypatch.setattr(compare.measure_all, "__kwdefaults__", {**usual, "budget_s": 0.0})
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def models(tmp_path: Path) -> str:
    """A file, and a pattern in another one."""
    paths = []
    for name, notation in (("hybrid", "(d f m2 f)x1 @64"), ("", "a f @64")):
        path = tmp_path / f"{name or 'unnamed'}.json"
        path.write_text(parse(notation, vocab_size=50, name=name).resolved_json())
        paths.append(str(path))
    return ",".join(paths)


def test_compare_measures_writes_and_prints(
    models: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "--models", models, "--out", str(tmp_path / "out")]
    assert call(words) == 0
    out = capsys.readouterr().out
    assert "hybrid   " in out
    assert "a f @64" in out
    assert "s at batch 1; prefill" in out
    assert "tokens/s at batch 2" in out
    assert "8 tokens decoded at batch 1" in out
    assert "at the largest batch that fits (at most 2) with 4" in " ".join(out.split())
    assert "Table 6" in out
    tables = out[out.index("\nlatency") : out.index("floor:")]
    assert max(map(len, tables.splitlines())) <= 80
    folder = tmp_path / "out" / measured_hardware("cpu").slug
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["comparison.png", "measured.jsonl", "results.csv", "results.json"]
    # once more: nothing is measured
    assert call([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in report["models"]] == ["hybrid", "a f @64"]
    assert report == json.loads((folder / "results.json").read_text())
    assert report["question"]["dtype"] == "float32"
    assert len((folder / "measured.jsonl").read_text().splitlines()) == 6


def test_what_fails_is_told(
    models: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the kernel hid")

    monkeypatch.setitem(compare.MEASURE, "throughput", broken)
    assert call([*WORDS, "--models", models, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "hybrid: throughput: RuntimeError: the kernel hid" in out
    assert "comparison.png" in {path.name for path in (tmp_path / "out").rglob("*")}


def test_where_the_gpu_dies_what_there_is_is_written(
    models: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dead(*_: object) -> None:
        raise RuntimeError("illegal memory access")

    def check(device: str, error: str) -> None:
        raise OSError(f"the GPU stopped working ({error})")

    monkeypatch.setitem(compare.MEASURE, "prefill", dead)
    monkeypatch.setattr(compare, "check_alive", check)
    assert call([*WORDS, "--models", models, "--out", str(tmp_path / "out")]) == 2
    assert "the GPU stopped working (RuntimeError: illegal" in capsys.readouterr().err
    (file,) = (tmp_path / "out").rglob("results.json")
    first, second = json.loads(file.read_text())["models"]
    assert first["latency_s"] > 0
    assert first["errors"][0].startswith("prefill: RuntimeError: illegal memory access")
    assert second["latency_s"] is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["measure"], "give the SPEC to measure, such as nemotron-flash-1b, or --compare"),
        (["measure", "a f @64", "--compare"], "choose models by --models"),
        (["measure", "a f @64", "--models", "x"], "--models goes with --compare, not with a SPEC"),
        (["measure", "a f @64", "--input", "9"], "--input goes with --compare, not with a SPEC"),
        ([*WORDS, "--compare-to-table", "x"], "--compare-to-table goes with a SPEC, not with"),
        ([*WORDS, "--batch", "1"], "--batch goes with a SPEC, not with --compare"),
        ([*WORDS, "--models", "qwen3-0.6"], "mean 'qwen3-0.6b'"),
        ([*WORDS, "--models", ","], "--models must be presets, patterns or files"),
        ([*WORDS, "--models", "a f @64,(a f) @64"], "--models has 'a f @64' twice"),
        ([*WORDS, "--models", "a f @64", "--tokens", "1"], "tokens must be at least 2"),
        ([*WORDS, "--models", "a f @64", "--dtype", "int8"], "dtype must be one of"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: Sequence[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(words) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1
