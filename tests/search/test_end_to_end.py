"""The whole search with real models, tiny ones: table, training, measured front, baselines."""

from __future__ import annotations

import numpy as np
import pytest

from archsearch.latency import cases_for_space
from archsearch.latency import profile
from archsearch.search import TableEvaluator
from archsearch.search import evolve
from archsearch.search import load_run
from archsearch.train import data as token_data
from archsearch.train.sources import Document
from archsearch.train.tokenizer import ByteTokenizer


@pytest.mark.slow
def test_real_models_from_table_to_front(config, tmp_path) -> None:
    cfg = config(
        space="nemotron-flash",
        widths=(64,),
        codes=("a", "m2", "d"),
        max_layers=6,
        context=32,
        target_latency_ms=None,
        population=2,
        tournament=2,
        recipe={
            "steps": 3,
            "batch_size": 2,
            "seq_len": 32,
            "warmup_steps": 1,
            "eval_tokens": 128,
        },
        baselines=("a", "m2"),
    )
    space = cfg.make_space()
    table = profile(cases_for_space(space, [cfg.shape]), folder=tmp_path / "t", budget_s=0.005)
    documents = [Document(f"{i}", f"line {i % 7} of the text\n" * 20) for i in range(40)]
    data = token_data.from_documents(documents, ByteTokenizer(), name="lines")
    evaluator = TableEvaluator(table, data, cfg.recipe, cfg.shape)

    evolve(cfg, trials=3, evaluator=evaluator, root=tmp_path / "runs")
    run = load_run(tmp_path / "runs/test")

    assert list(run.candidates["status"]) == ["trained"] * 3
    assert np.isfinite(run.candidates[["loss", "bits_per_byte", "latency_us", "seconds"]]).all(
        axis=None
    )
    assert all(len(curve) == 3 for curve in run.candidates["curve"])
    assert list(run.front["role"])[-2:] == ["baseline", "baseline"]
    assert (run.front["error"] == "").all()
    assert (run.front["measured_us_p50"] > 0).all()
    # what was trained is what is handed over
    assert run.best is not None
    assert evaluator.score(run.best, cfg.seed).loss == pytest.approx(
        run.front[run.front["role"] == "best"]["loss"].iloc[0]
    )
