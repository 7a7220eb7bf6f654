"""Tables of several machines of one kind become one; others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from archsearch.latency.provenance import differences
from archsearch.profiles import Table
from archsearch.profiles import join
from archsearch.profiles import load_table
from archsearch.profiles import make_rows
from archsearch.profiles import save_table
from archsearch.profiles import source_hashes


def row(batch: int, latency_us: float = 10.0, **changes: Any) -> dict[str, Any]:
    return {
        "operator": "ffn",
        "config": "{}",
        "hidden_size": 64,
        "phase": "decode",
        "batch": batch,
        "context": 0,
        "dtype": "bfloat16",
        "backend": "torch",
        **{f"latency_us_p{q}": latency_us for q in (10, 50, 90)},
        "repeats": 5,
        "stack": 2,
        "stack_bytes": 1,
        "used_cuda_graph": True,
        "session": 0,
        "error": "",
        **changes,
    }


def table(day: int, *rows: dict[str, Any], name: str = "gpu", **meta: Any) -> Table:
    measured = f"2026-01-0{day}"
    return Table(
        name,
        make_rows(rows),
        {
            "hardware": {"slug": "nvidia-h200"},
            "software": {"torch": "2.11", "cuda": "13.0"},
            "packages": {"triton": {"triton": "3.6.0"}},
            "method": 2,
            "measured": measured,
            "sources": source_hashes(["ffn"]),
            "sessions": [{"id": 0, "measured": measured}],
            **meta,
        },
    )


def test_rows_and_sessions_of_all(tmp_path: Path) -> None:
    joined = join([table(2, row(1), row(2, 20.0)), table(1, row(2), row(3))], differences)
    found = joined.rows.set_index("batch")
    assert found["latency_us_p50"].to_dict() == {1: 10.0, 2: 20.0, 3: 10.0}, "the later one wins"
    days = {entry["id"]: entry["measured"] for entry in joined.meta["sessions"]}
    assert found["session"].map(days).to_dict() == {
        1: "2026-01-02",
        2: "2026-01-02",
        3: "2026-01-01",
    }
    assert joined.meta["measured"] == "2026-01-02"
    saved = save_table(joined, tmp_path / "gpu")
    assert len(load_table(tmp_path / "gpu").rows) == len(saved.rows) == 3


def test_a_failure_gives_way_to_a_time() -> None:
    failed = row(1, error="OutOfMemoryError", backend="")
    for name in ("latency_us_p10", "latency_us_p50", "latency_us_p90"):
        failed[name] = None
    for first, second in ((1, 2), (2, 1)):
        joined = join([table(first, failed), table(second, row(1))], differences)
        assert joined.rows["error"].tolist() == [""]


def test_a_session_that_two_tables_share_is_one() -> None:
    start = table(1, row(1))
    grown = table(
        2,
        row(1),
        row(2, session=1),
        sessions=[{"id": 0, "measured": "2026-01-01"}, {"id": 1, "measured": "2026-01-02"}],
    )
    joined = join([grown, start], differences)
    assert [entry["id"] for entry in joined.meta["sessions"]] == [0, 1]
    assert joined.rows["session"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("meta", "difference"),
    [
        ({"hardware": {"slug": "nvidia-h100"}}, "hardware nvidia-h100 -> nvidia-h200"),
        ({"software": {"torch": "2.12", "cuda": "13.0"}}, r"torch 2\.12 -> 2\.11"),
        ({"packages": {"triton": {"triton": "3.5.1"}}}, r"triton 3\.5\.1 -> 3\.6\.0"),
        ({"method": 1}, "method 1 -> 2"),
        ({"sources": {"ffn": "other"}}, "sources of ffn"),
    ],
)
def test_foreign_tables_are_refused(meta: dict[str, Any], difference: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be merged with .*{difference}"):
        join([table(1, row(1), **meta), table(2, row(2))], differences)


def test_sources_that_no_row_was_measured_with_keep_nothing_apart() -> None:
    kept = source_hashes(["ffn", "ffn.step"])
    prompts = table(1, row(1, phase="prefill"), sources={**kept, "ffn.step": "another"})
    steps = table(2, row(1, backend="triton"), sources=kept)
    joined = join([prompts, steps], differences)
    assert len(joined.rows) == 2
    assert joined.meta["sources"] == kept
    # the newest is not the only one that others must agree with
    earlier = table(1, row(2, backend="triton"), sources={"ffn.step": "another"})
    newest = table(3, row(3, phase="prefill"), sources=kept)
    with pytest.raises(ValueError, match=r"sources of ffn\.step"):
        join([earlier, steps, newest], differences)
    # a failure may be the fused step's
    failed = table(1, row(2, backend="triton", error="lost"), sources={"ffn.step": "another"})
    with pytest.raises(ValueError, match=r"sources of ffn\.step"):
        join([failed, steps], differences)


def test_nothing_to_merge() -> None:
    with pytest.raises(ValueError, match="at least one table"):
        join([], differences)
