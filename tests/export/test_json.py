"""The exported file holds everything, reads back to the same architecture, and is never half."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archsearch import operators
from archsearch.cli.main import call
from archsearch.export import EXPORTERS
from archsearch.export import export
from archsearch.space import load

EVERYTHING = " ".join(operator.code for operator in operators.OPERATORS) + " @256"


@pytest.mark.parametrize("source", ["nemotron-flash-1b", "qwen3-0.6b", EVERYTHING])
def test_json_reads_back_to_the_same_architecture(source: str, tmp_path: Path) -> None:
    spec = load(source)
    file = tmp_path / "arch.json"
    file.write_text(export(spec, "json"), encoding="utf-8")
    again = load(str(file))
    assert again.id == spec.id
    assert again.configs == spec.configs


def test_json_leaves_nothing_to_defaults() -> None:
    spec = load(EVERYTHING)
    written = json.loads(export(spec, "json"))
    for layer, config in zip(written["layers"], spec.configs, strict=True):
        assert layer["config"].keys() | {"hidden_size"} == type(config).model_fields.keys()


def test_unknown_format_names_what_exists() -> None:
    with pytest.raises(ValueError, match=r"unknown format 'jsno'; did you mean 'json'\?"):
        export(load("a f @128"), "jsno")
    assert set(EXPORTERS) == {"json"}


def test_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["export", "a f @128", "--to", "json"]) == 0
    assert capsys.readouterr().out == export(load("a f @128"), "json")


def test_command_exports_the_winner_of_a_run_by_path_and_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    winner = tmp_path / "runs" / "demo" / "best" / "arch.json"
    winner.parent.mkdir(parents=True)
    winner.write_text(load("d f a f @128").model_dump_json())
    monkeypatch.chdir(tmp_path)
    for source in ("demo", "runs/demo"):
        assert call(["export", source]) == 0
        assert json.loads(capsys.readouterr().out)["layers"][0]["operator"] == "deltanet"


def test_run_without_winner_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["export", str(tmp_path)]) == 2
    assert "has no winner yet" in capsys.readouterr().err


def test_command_does_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "arch.json"
    out.write_text("mine")
    assert call(["export", "a f @128", "--out", str(out)]) == 2
    assert out.read_text() == "mine"
    assert "give --force" in capsys.readouterr().err
    assert call(["export", "a f @128", "--out", str(out), "--force"]) == 0
    assert load(str(out)).id == load("a f @128").id
    assert list(tmp_path.iterdir()) == [out]


def test_a_place_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert call(["export", "a f @128", "--out", str(tmp_path / "file" / "arch.json")]) == 2
    assert capsys.readouterr().err.startswith("archsearch: cannot write")
