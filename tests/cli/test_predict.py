"""`archsearch predict` says what the library says, for people and as JSON, and why it cannot."""

from __future__ import annotations

import json
from dataclasses import asdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from archsearch.cli.main import call
from archsearch.hardware import PEAKS
from archsearch.latency import cases_for_spec
from archsearch.latency import holdout
from archsearch.latency import predict
from archsearch.latency.calibration import CALIBRATION_FILE
from archsearch.latency.calibration import CalibrationError
from archsearch.latency.calibration import Group
from archsearch.latency.calibration import write_calibration
from archsearch.operators import Shape
from archsearch.profiles import Table
from archsearch.profiles import load_table
from archsearch.profiles import make_rows
from archsearch.profiles import save_table
from archsearch.profiles import source_hashes
from archsearch.space import count
from archsearch.space import load

PATTERN = "(a f m2 f)x2 @1024"
SPEC = load(PATTERN)
GPU = {"kind": "gpu", "name": "NVIDIA H200", "slug": "nvidia-h200", "memory_bytes": 150 * 10**9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of the pattern, decode at batches 1 and 32, with energy, training without."""
    asked = [Shape("decode", b, c, "bfloat16") for b in (1, 32) for c in (1024, 8192)]
    cases = cases_for_spec(SPEC, [*asked, Shape("train", 1, 1024, "bfloat16")])
    rows = [
        {
            **asdict(case),
            "backend": "torch",
            "latency_us_p10": 9.0 + case.batch,
            "latency_us_p50": 10.0 + case.batch,
            "latency_us_p90": 12.0 + case.batch,
            "steady_us": (10.0 + case.batch) * (1.2 if case.phase == "train" else 1.0),
            "repeats": 9,
            "stack": 6,
            "stack_bytes": 1,
            "kernels": 2,
            "bytes": 1000,
            "flops": 1000,
            "roofline_us": 5.0,
            "energy_j": 0.5 if case.phase == "decode" else None,
            "used_cuda_graph": True,
            "error": "",
        }
        for case in cases
    ]
    meta = {"sources": source_hashes({case.operator for case in cases}), "hardware": GPU}
    path = tmp_path_factory.mktemp("tables") / "made-up"
    save_table(Table("made-up", make_rows(rows), meta), path)
    return path


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


class Command:
    """The command with a table, and what it printed."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._table, self._capsys = str(folder), capsys

    def text(self, *words: str) -> str:
        assert call(["predict", PATTERN, "--profile", self._table, *words]) == 0
        return self._capsys.readouterr().out

    def json(self, *words: str) -> Any:
        return json.loads(self.text(*words, "--json"))

    def refusal(self, *words: str) -> str:
        assert call(["predict", PATTERN, "--profile", self._table, *words]) == 2
        return self._capsys.readouterr().err


@pytest.fixture
def command(folder: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(folder, capsys)


def test_json_is_the_librarys_prediction(command: Command, folder: Path) -> None:
    shape = Shape("decode", 8, 2048, "bfloat16")
    found = predict(SPEC, shape, load_table(folder))
    said = command.json("--batch", "8", "--context", "2048")
    (answer,) = said["predictions"]
    assert (said["id"], said["phase"], said["dtype"]) == (SPEC.id, "decode", "bfloat16")
    assert (said["estimate"], answer["calibration"]) == (None, None)
    assert answer["latency_us"] == pytest.approx(found.latency_us)
    assert answer["latency_us"] == pytest.approx(10 * 18.0)
    assert (answer["low_us"], answer["high_us"]) == pytest.approx((10 * 17.0, 10 * 20.0))
    assert answer["tokens_per_s"] == pytest.approx(8e6 / found.latency_us)
    assert answer["energy_per_token_j"] == pytest.approx(10 * 0.5 / 8)
    assert answer["floor_us"] == pytest.approx(50.0)
    memory = answer["memory_bytes"]
    assert memory["parameters"] == 2 * count.parameters(SPEC)
    assert memory["state"] == count.state_bytes(SPEC, 2048, 8, "bfloat16")
    assert memory["total"] == memory["parameters"] + memory["state"]
    assert answer["fits"] is True
    assert said["without_fused"] == ["attention", "ffn", "mamba2", "head"]
    parts = {part["operator"]: part for part in answer["by_operator"]}
    assert list(parts) == ["embedding", "attention", "ffn", "mamba2", "head"]
    assert (parts["ffn"]["calls"], parts["ffn"]["latency_us"]) == (4, pytest.approx(72.0))
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1.0)


def test_text_of_one_shape(command: Command) -> None:
    text = command.text("--context", "2048")
    for words in (
        "110 µs",
        "100 µs – 130 µs",
        "not calibrated",
        "9,091 tokens/s",
        "5 J per token",
    ):
        assert words in text
    assert "50 µs, 45% of the latency" in text
    assert "power cap" not in text
    assert "plain ones; the fused, which a GPU runs today, are faster" in text
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())


def test_several_shapes_are_a_table(command: Command) -> None:
    words = ("--batch", "1,32,64", "--context", "1024,8192")
    text = command.text(*words)
    assert "p10 – p90" not in text
    assert "not calibrated" in text
    assert "batches 1 to 32 and does not reach batch 64" in text
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines() if "table" not in line)
    answers = command.json(*words)["predictions"]
    assert [(one["batch"], one["context"]) for one in answers] == [
        (batch, context) for batch in (1, 32, 64) for context in (1024, 8192)
    ]
    assert [bool(one["error"]) for one in answers] == [False] * 4 + [True] * 2


def test_training_says_what_is_counted(command: Command) -> None:
    (answer,) = command.json("--phase", "train")["predictions"]
    weights = 2 * count.parameters(SPEC)
    assert answer["memory_bytes"] == {
        "parameters": weights,
        "state": 0,
        "gradients": weights,
        "optimizer": 2 * weights,
        "total": 4 * weights,
    }
    assert answer["energy_per_token_j"] is None
    text = command.text("--phase", "train")
    assert "without the optimiser's update" in text
    assert "J per token" not in text
    # one after another they take longer: 10 rows of 11 µs and a fifth
    assert "one each 132 µs: the power cap holds" in text
    assert answer["tokens_per_s"] == pytest.approx(1024e6 / 132)
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines() if "optimiser" not in line)


def test_calibration_is_the_uncertainty(command: Command, folder: Path) -> None:
    error = CalibrationError(median=0.021, p90=0.048, count=36)
    write_calibration(load_table(folder), [Group("decode", (1,), (1024,), error)], {})
    try:
        (answer,) = command.json()["predictions"]
        assert answer["calibration"] == asdict(error)
        assert "median 2.1%, p90 4.8% on 36 measurements" in command.text()
        assert "± 2.1%" in command.text("--context", "1024,8192")
        # two measured batches: no row lies between others
        assert "not calibrated between measured batches " in command.text("--batch", "8")
    finally:
        (folder / CALIBRATION_FILE).unlink()


def test_between_measured_batches_rows_that_are_left_out_tell_the_error(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_out = CalibrationError(median=0.031, p90=0.08, count=5)
    monkeypatch.setattr(holdout, "between_batches", lambda table, phase: left_out)
    (answer,) = command.json("--batch", "8")["predictions"]
    assert (answer["calibration"], answer["interpolation"]) == (None, asdict(left_out))
    text = " ".join(command.text("--batch", "8").split())
    assert "not calibrated between measured batches; rows that are left out: median 3.1%" in text
    text = command.text("--batch", "1,8")
    assert "(± 3.1%)" in text
    assert "(±) between measured batches: the median error of rows" in text
    (answer,) = command.json("--batch", "32")["predictions"]
    assert answer["interpolation"] is None, "it was measured"


def test_an_estimate_says_so_and_carries_bounds(command: Command) -> None:
    said = command.json("--hardware", "A100")
    assert said["estimate"]["target"] == "A100"
    (answer,) = said["predictions"]
    assert answer["low_us"] < answer["latency_us"] < answer["high_us"]
    assert answer["device_memory_bytes"] == PEAKS["A100"].memory_bytes
    assert (answer["calibration"], answer["energy_per_token_j"]) == (None, None)
    text = command.text("--hardware", "A100")
    for words in ("A100, estimated from made-up", "about ", "bounds", "an estimate"):
        assert words in text


def test_what_does_not_fit_is_said(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEAKS, "A100", replace(PEAKS["A100"], memory_bytes=2**28))
    assert "does not fit: " in command.text("--hardware", "A100")
    assert "the memory is 256.0 MiB" in command.text("--hardware", "A100")
    text = command.text("--hardware", "A100", "--context", "1024,8192")
    assert "does not fit where marked" in text
    assert text.count(" MiB !") == 2
    assert command.json("--hardware", "A100")["predictions"][0]["fits"] is False


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--hardware", "A10"], "no GPU 'A10' is known; did you mean 'A100'? known are B200"),
        (["--phase", "decod"], "phase must be one of ['decode', 'prefill', 'train']; got 'decod'"),
        (["--phase", "prefill"], "only for phase decode, train"),
        (["--dtype", "bf16"], "dtype must be one of ['float32', 'bfloat16', 'float16']"),
        (["--dtype", "float32"], "only for dtype bfloat16"),
        (["--batch", "0"], "--batch must be positive integers"),
        (["--context", "9000"], "decode contexts 1024 to 8192 and does not reach 9000"),
    ],
)
def test_mistakes_are_one_sentence(command: Command, words: list[str], sentence: str) -> None:
    said = command.refusal(*words)
    assert sentence in said
    assert said.count("\n") == 1


def test_unknown_profiles_name_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["predict", PATTERN, "--profile", "cpu-amd-epic-1t"]) == 2
    assert "did you mean 'cpu-amd-epyc-1t'? there " in capsys.readouterr().err


def test_stale_rows_are_refused_unless_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = load_table(folder)
    sources = {**table.meta["sources"], "mamba2": "other"}
    old = tmp_path / "old"
    save_table(Table("old", table.rows, {**table.meta, "sources": sources}), old)
    assert call(["predict", PATTERN, "--profile", str(old)]) == 2
    assert (
        "other sources of mamba2, are left out: allow them, or measure" in capsys.readouterr().err
    )
    assert Command(old, capsys).json("--allow-stale")["table"].startswith("old (stale: mamba2")
