"""`archsearch measure`, `calibrate`: what they print, and their mistakes in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from archsearch import latency
from archsearch.cli.main import call
from archsearch.latency import whole
from archsearch.operators import Shape
from archsearch.space import parse

SPEC = parse("a f @64", vocab_size=50)


@pytest.fixture(scope="module", autouse=True)
def measured_once() -> Iterator[None]:
    """Quick instead of quiet."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("timing", "latency.sweep", "latency.repeat"):
            patch.setattr(f"archsearch.{module}.CPU_PASSES", 1)
        usual = whole.WholeModel.measure.__kwdefaults__
        patch.setattr(whole.WholeModel.measure, "__kwdefaults__", {**usual, "budget_s": 0.0})
        patch.setenv("COLUMNS", "80")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An architecture, a set with it, and a table that knows it."""
    folder = tmp_path_factory.mktemp("measure")
    (folder / "tiny.json").write_text(SPEC.resolved_json())
    (folder / "set.toml").write_text('[[architecture]]\nname = "tiny"\nspec = "tiny.json"\n')
    shapes = [Shape("decode", 1, 16), Shape("decode", 3, 16), Shape("prefill", 1, 16)]
    latency.profile(latency.cases_for_spec(SPEC, shapes), folder=folder / "mine", budget_s=0.0)
    return folder


def test_measure_shares_one_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = []
    real = whole.build
    monkeypatch.setattr(whole, "build", lambda *a, **k: built.append(a) or real(*a, **k))
    words = ["measure", str(folder / "tiny.json"), "--device", "cpu", "--batch", "1,2"]
    assert call([*words, "--context", "16,32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(built) == 1
    assert found["dtype"] == "float32"
    rows = found["measurements"]
    assert [(row["batch"], row["context"]) for row in rows] == [(1, 16), (1, 32), (2, 16), (2, 32)]
    for row in rows:
        times = row["latency_us"]
        assert 0 < times["p10"] <= times["p50"] <= times["p90"]
        assert row["tokens_per_s"] == pytest.approx(row["batch"] / times["p50"] * 1e6)
        assert row["memory_bytes"]["weights"] == 4 * found["parameters"]
        assert row["memory_bytes"]["state"] == 2 * 64 * 4 * row["batch"] * row["context"]
        assert row["backends"]["attention"] == "sdpa"


def test_measure_beside_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["measure", str(folder / "tiny.json"), "--device", "cpu", "--context", "16,99"]
    assert call([*words, "--compare-to-table", str(folder / "mine")]) == 0
    out = capsys.readouterr().out
    assert "predicted ms" in out
    assert "%" in out
    assert "does not reach 99" in out or "no row for" in out
    assert max(map(len, out.split("\n\n")[1].splitlines()[:3])) <= 80


def test_calibrate_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["calibrate", "--profile", str(folder / "mine"), "--set", str(folder / "set.toml")]
    words += ["--context", "16", "--prompts", "1x16", "--out", str(tmp_path)]
    assert call([*words, "--summarize"]) == 2
    assert "there is nothing to compare" in capsys.readouterr().err
    assert call(words) == 0
    out = capsys.readouterr().out
    # decode at the batches of the table
    assert "3 shapes, off by" in out
    assert "decode, batch 1" in out
    assert "decode, batch 3" in out
    assert call([*words, "--summarize", "--batch", "1"]) == 0
    assert "decode, batch 3" not in capsys.readouterr().out
    assert "prefill" in out
    files = sorted(path.name for path in (tmp_path / "mine").iterdir())
    assert files == [
        *("calibration.png", "interpolation.csv"),
        *("measured.jsonl", "results.csv", "summary.json"),
    ]
    assert (folder / "mine" / "calibration.json").exists()
    assert call([*words, "--repeat", "2"]) == 0
    assert "2 rows of" in capsys.readouterr().out
    assert (tmp_path / "mine" / "repeat.json").exists()


def test_neither_optuna_nor_matplotlib_is_needed(folder: Path, tmp_path: Path) -> None:
    words = ["calibrate", "--profile", str(folder / "mine"), "--set", str(folder / "set.toml")]
    words += ["--phase", "prefill", "--prompts", "1x16", "--out", str(tmp_path)]
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['optuna', 'matplotlib']))\n"
        f"from archsearch.cli.main import call; sys.exit(call({words!r}) or call(['doctor']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "no figure" in done.stdout
    assert (tmp_path / "mine" / "results.csv").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["measure", "a f @64", "--device", "tpu"], "device must be 'cpu' or 'cuda[:index]'"),
        (["measure", "a f @64", "--phase", "decod"], "phase must be one of"),
        (["measure", "a f @64", "--phase", ","], "--phase"),
        (["measure", "a f @64", "--batch", "0"], "--batch must be positive"),
        (["measure", "a f @64", "--dtype", "int8"], "dtype must be one of"),
        (["measure", "a f @64", "--compare-to-table", "nope"], "no latency table 'nope'"),
        (["calibrate", "--profile", "nope"], "no latency table 'nope'"),
        (["calibrate", "--profile", "MINE", "--set", "nope.toml"], "no set of architectures"),
        (["calibrate", "--profile", "MINE", "--prompts", "2048"], "rows x tokens"),
        (["calibrate", "--profile", "MINE", "--set", "SET", "--only", "tny"], "mean 'tiny'"),
        (["calibrate", "--profile", "MINE", "--repeat", "999"], "got 999 to repeat"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: Sequence[str], expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"MINE": str(folder / "mine"), "SET": str(folder / "set.toml")}
    assert call([places.get(word, word) for word in words]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["measure", "a f @64", "--device", "cuda"]) == 2
    assert "needs a CUDA GPU, and torch sees none" in capsys.readouterr().err


def test_a_call_that_cannot_be_measured_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the call waits for the GPU\nand much more")

    monkeypatch.setattr("archsearch.latency.whole.WholeModel.measure", broken)
    assert call(["measure", "a f @64", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "RuntimeError: the call waits for the GPU" in error
    assert error.count("\n") == 1
