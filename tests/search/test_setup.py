"""From a request to a run: the target, the known designs, and what a saved run keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archsearch.latency import predict
from archsearch.search.run import open_run
from archsearch.search.setup import Prepared
from archsearch.search.setup import Request
from archsearch.search.setup import prepare
from archsearch.space import parse


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Prepare a small run on this machine's own table; keywords replace the request's."""
    monkeypatch.setenv("ARCHSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("archsearch.latency.sweep.CPU_PASSES", 1)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"line {number} of a text\n" for number in range(500)))

    def make(measured: list[int] | None = None, **fields) -> Prepared:
        settings = {"data": str(corpus), "context": 16, "widths": (64, 128), "codes": ("a", "d")}
        settings |= {"name": "small", "max_layers": 8}
        request = Request(**(settings | fields))
        calls = [] if measured is None else measured
        return prepare(
            request,
            root=tmp_path / "runs",
            on_profile=lambda done, total, left: calls.append(done),
        )

    return make


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_layers": 0}, "max_layers .* got 0"),
        ({"codes": ()}, "at least one token mixer"),
        ({"context": 0}, "context must be positive"),
        ({"name": ""}, "name"),
        ({"sampler": "tpee"}, "did you mean 'tpe'"),
        ({"target_latency_ms": -1.0}, "target_latency_ms"),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(fields, message, ask) -> None:
    measured: list[int] = []
    with pytest.raises(ValueError, match=message):
        ask(measured, **fields)
    assert not measured


@pytest.mark.slow
def test_a_request_becomes_a_run_that_goes_on_with_its_own_table(ask, tmp_path) -> None:
    first: list[int] = []
    prepared = ask(first)
    config = prepared.config
    assert first[-1] == len(prepared.table.rows)
    assert config.tokenizer == "bytes"
    assert prepared.evaluator.shape == config.shape
    assert config.fields["vocab_size"] == 256

    # the target is the latency of five blocks of attention and FFN
    five = parse("(a f)x5 @128", **config.fields)
    us = predict(five, config.shape, prepared.table).latency_us
    assert config.target_latency_ms == pytest.approx(us / 1000, rel=0.01)

    # known designs: in the space, within the target
    assert not config.seeds, "no known design is made of attention and DeltaNet alone"
    with_mamba = ask(codes=("a", "d", "m2"))
    seeds = with_mamba.config.seeds
    assert [text.split(")x")[0] for text in seeds] == ["(d f m2 f", "(m2 f a f", "(m2 f"]
    for text in seeds:
        spec = parse(text, **config.fields)
        with_mamba.config.make_space().encode(spec)
        limit = with_mamba.config.limits["latency_us"]
        assert predict(spec, config.shape, with_mamba.table).latency_us <= limit

    open_run(config, root=tmp_path / "runs", attach=prepared.attach)
    for file in (tmp_path / "cache").rglob("*.*"):
        file.unlink()
    again: list[int] = []
    assert ask(again).config == config
    assert not again, "the run's own table was measured again"
    with pytest.raises(ValueError, match=r"was made with the table .*; got 'elsewhere'"):
        ask(table="elsewhere")

    meta = tmp_path / "runs" / "small" / "profile" / "meta.json"
    old = json.loads(meta.read_text())
    meta.write_text(json.dumps(old | {"sources": old["sources"] | {"deltanet": "0"}}))
    with pytest.raises(ValueError, match="other sources of deltanet: give the run another name"):
        ask()
