"""The paper's comparison on a GPU: shares of the roofline, and a memory that is filled. Run:
make gpu"""

from __future__ import annotations

from pathlib import Path

import pytest

from archsearch.latency import compare
from archsearch.latency import table6
from archsearch.latency.largest_batch import measure_largest_batch
from archsearch.latency.question import Question
from archsearch.latency.whole import WholeModel
from archsearch.space import ArchSpec
from archsearch.space import LayerSpec
from archsearch.space import parse

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def poisoned_memory() -> None:
    """Times are of memory as it comes: to fill it is a kernel too."""


def test_a_hybrid_is_measured_in_graphs(tmp_path: Path) -> None:
    spec = parse("d f m2 f a f @1024", num_meta_tokens=16, head_norm=True)
    question = Question(tokens=1024, input_tokens=2048, output_tokens=64, max_batch=32)
    compare.measure_all([spec], question, tmp_path, device="cuda", budget_s=0.05)
    rows = compare.valid_rows(tmp_path, question, "cuda")
    assert [row["error"] for row in rows.values()] == ["", "", ""]
    assert all(row["used_cuda_graph"] for row in rows.values())
    (line,) = table6.lines([spec], rows, question)
    assert line.batch == 32
    for share in (line.latency_floor_share, line.floor_share):
        assert share is not None
        # a small model's weights may stay in the L2
        assert 0.02 < share < 1.5


def test_the_memory_is_filled_and_given_back() -> None:
    # 2 GiB of cache per row
    wide = LayerSpec(operator="attention", config={"num_kv_heads": 8})
    spec = ArchSpec.create(hidden_size=1024, layers=(wide, LayerSpec(operator="ffn"), wide))
    model = WholeModel(spec, device="cuda", dtype="bfloat16")
    before = model.free_bytes()
    assert before is not None
    found, tries = measure_largest_batch(
        model, context=2**17, capacity=2**18, limit=None, budget_s=0.0
    )
    assert found.peak_bytes is not None
    assert found.peak_bytes - found.weight_bytes > 0.85 * before
    assert tries <= 3
    del found
    after = model.free_bytes()
    assert after is not None
    assert before - after < 2**30
