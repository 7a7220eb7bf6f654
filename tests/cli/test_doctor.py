"""`archsearch doctor`: it says what serves each operator, and each reason once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from archsearch import doctor as library
from archsearch import operators
from archsearch.cli import doctor
from archsearch.cli.main import call
from archsearch.doctor import services
from archsearch.latency.whole import WholeModel
from archsearch.latency.whole import decode_call
from archsearch.operators import PHASES
from archsearch.operators import Shape
from archsearch.operators.backends import recorded
from archsearch.operators.fused.table import decode_backends
from archsearch.space import parse

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_every_operator_is_served_in_every_phase() -> None:
    found = {(s.operator, s.phase): s for s in services("cpu", torch.float32)}
    for name in operators.names():
        for phase in PHASES:
            service = found[name, phase]
            offered = operators.get(name).backends
            if phase == "decode":
                offered = decode_backends(name, offered)
            assert service.backend in offered
            assert tuple(service.refused) == offered[: offered.index(service.backend)]
            assert all(service.refused.values())


def test_what_it_says_is_what_runs() -> None:
    """The doctor asks modules without weights; here they run."""
    said = {s.operator: s.backend for s in services("cpu", torch.float32) if s.phase == "decode"}
    model = WholeModel(parse("a m2 gd f @64", vocab_size=20))
    step = decode_call(model.model, Shape("decode", 1, 8))
    with recorded() as used:
        step()
    assert used
    for operator, backend in used.items():
        assert said[operator] == backend


@no_gpu
def test_output_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert call(["doctor"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["GPU", "none", "that", "torch", "sees"]
    assert "Backends on cpu in float32" in lines
    row = next(line for line in lines if line.startswith("attention "))
    assert row.split()[1:] == ["sdpa"] * 3
    assert out.count("it needs a CUDA GPU") == len(
        {b for s in services("cpu", torch.float32) for b, why in s.refused.items() if "GPU" in why}
    )
    assert "cpu-amd-epyc-1t" in out
    assert max(map(len, lines)) <= 80


@no_gpu
def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["gpu"] is None
    assert found["software"]["torch"] == torch.__version__
    assert {s["operator"] for s in found["services"]} >= set(operators.names())
    assert found["tables"][-1]["origin"] == "shipped"


def test_reasons_are_grouped() -> None:
    def service(operator: str, phase: str, **refused: str) -> library.Service:
        return library.Service(operator, phase, "torch", refused)  # type: ignore[arg-type]

    found = list(
        doctor._reasons(
            [
                service("gla", "decode", fla="no"),
                service("gla", "train", fla="no"),
                service("kda", "decode", fla="no"),
                service("kda", "train", fla="wrong"),
            ]
        )
    )
    assert found == [("fla", "no", "gla, kda (decode)"), ("fla", "wrong", "kda (train)")]


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        (
            library.COMPILED,
            [
                "  pip install ninja packaging psutil setuptools wheel",
                "  pip install --no-build-isolation mamba-ssm causal-conv1d flash-attn",
            ],
        ),
        (("flash-linear-attention",), ["  pip install flash-linear-attention"]),
        ((), []),
    ],
)
def test_advice(missing: tuple[str, ...], expected: list[str]) -> None:
    found = library.examine()
    names = ("flash-linear-attention", *library.COMPILED)
    packages = {name: "" if name in missing else "1.0" for name in names}
    advice = list(doctor._advice(replace(found, packages=packages, gpu=found.cpu)))
    assert advice[: len(expected)] == expected
    assert any("nvcc" in line for line in advice) == bool(set(missing) & set(library.COMPILED))
