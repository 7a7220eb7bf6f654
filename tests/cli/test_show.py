"""What the listing commands say is what the library says, in 80 columns and as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from archsearch import operators
from archsearch.cli import terminal
from archsearch.cli.main import call
from archsearch.operators import Shape
from archsearch.space import count
from archsearch.space import get_space
from archsearch.space import load
from archsearch.space import presets
from archsearch.space import space_names


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert call(words) == 0
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    return json.loads(output(capsys, *words, "--json"))


def test_operators(capsys: pytest.CaptureFixture[str]) -> None:
    rows = as_json(capsys, "operators", "--width", "256", "--context", "64")
    assert [row["code"] for row in rows] == [op.code for op in operators.OPERATORS]
    for row, operator in zip(rows, operators.OPERATORS, strict=True):
        cost = operator.cost(operator.configure(256), Shape("decode", context=64))
        assert (row["parameters"], row["state_bytes"]) == (cost.parameters, cost.state_bytes)
    text = output(capsys, "operators")
    assert all(operator.name in text for operator in operators.OPERATORS)


def test_presets(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in as_json(capsys, "presets")}
    assert tuple(rows) == presets.names()
    assert rows["qwen3-0.6b"]["parameters"] == 596_049_920
    text = output(capsys, "presets")
    assert all(name in text for name in presets.names()), "a name was cut"
    assert "596,049,920" in text


@pytest.mark.parametrize("name", space_names())
def test_space(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = as_json(capsys, "space", "show", name)
    assert shown == json.loads(json.dumps(get_space(name).describe()))
    text = output(capsys, "space", "show", name)
    assert f"{get_space(name).size():,}" in text
    assert name in output(capsys, "space", "list")


@pytest.mark.parametrize("source", ["nemotron-flash-1b", "(gd f w f)x6 @1280"])
def test_arch_json_agrees_with_the_library(
    source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--context", "300", "--batch", "4", "--dtype", "bfloat16")
    shown, spec = as_json(capsys, "arch", "show", source, *words), load(source)
    assert shown["id"] == spec.id
    assert shown["notation"] == spec.notation
    assert shown["parameters"] == count.parameters(spec)
    assert shown["flops_per_token"] == count.flops_per_token(spec, 300)
    assert shown["state_bytes"] == count.state_bytes(spec, 300, 4, "bfloat16")
    assert shown["hidden_size"] == spec.hidden_size
    assert [layer["operator"] for layer in shown["layers"]] == [
        layer.operator for layer in spec.layers
    ]
    assert sum(layer["state_bytes"] for layer in shown["layers"]) == shown["state_bytes"]
    head = 2 * spec.vocab_size * spec.hidden_size
    mixers = sum(layer["flops_per_token"] for layer in shown["layers"])
    assert mixers + head == shown["flops_per_token"]


def test_arch_text_fits_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "arch", "show", "qwen3-0.6b")
    assert max(map(len, text.splitlines())) <= 80
    assert "596,049,920" in text
    assert "29.6%" in text


def test_strip_breaks_between_cells() -> None:
    codes = ["a", "m2", "gla", "f"] * 10
    lines = terminal.strip(codes, width=30).plain.split("\n")
    assert all(len(line) <= 30 for line in lines)
    assert " ".join(lines).split() == codes


@pytest.mark.parametrize(
    ("number", "text"), [(12, "12 B"), (1536, "1.5 KiB"), (3 * 1024**3, "3.0 GiB")]
)
def test_sizes(number: int, text: str) -> None:
    assert terminal.size(number) == text


@pytest.mark.parametrize(("number", "text"), [(999, "999"), (1500, "1.5 k"), (2.75e9, "2.8 G")])
def test_counts(number: float, text: str) -> None:
    assert terminal.count(number) == text
