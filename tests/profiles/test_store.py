"""Tables on disk: round trip, damage, foreign files, stale rows, names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from archsearch import profiles
from archsearch.profiles import Table
from archsearch.profiles import load_table
from archsearch.profiles import make_rows
from archsearch.profiles import save_table
from archsearch.profiles import sources
from archsearch.profiles.store import META_FILE
from archsearch.profiles.store import ROWS_FILE


def row(**changes: Any) -> dict[str, Any]:
    return {
        "operator": "ffn",
        "config": '{"intermediate_size":192}',
        "hidden_size": 64,
        "phase": "decode",
        "batch": 1,
        "context": 0,
        "dtype": "float32",
        "backend": "torch",
        "latency_us_p10": 9.0,
        "latency_us_p50": 10.0,
        "latency_us_p90": 12.0,
        "repeats": 30,
        "stack": 6,
        "stack_bytes": 1000,
        "used_cuda_graph": False,
        "session": 0,
        "error": "",
        **changes,
    }


def table(*rows: dict[str, Any], **meta: Any) -> Table:
    frame = make_rows(rows or [row()])
    known = {"sources": profiles.source_hashes(frame["operator"]), **meta}
    return Table("mine", frame, known)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARCHSEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "profiles"


def test_round_trip(tmp_path: Path) -> None:
    rows = [
        row(kernels=3, roofline_us=1.5),
        row(phase="prefill", context=128),
        row(
            batch=2,
            error="RuntimeError: no",
            latency_us_p50=None,
            latency_us_p10=None,
            latency_us_p90=None,
        ),
    ]
    saved = save_table(table(*rows, hardware={"slug": "x"}), tmp_path / "mine")
    loaded = load_table(tmp_path / "mine")
    pd.testing.assert_frame_equal(loaded.rows, saved.rows)
    assert loaded.meta["hardware"] == {"slug": "x"}
    assert loaded.meta["rows"] == 3
    assert loaded.rows["kernels"].tolist()[0] == 3
    assert loaded.rows["energy_j"].isna().all()
    assert loaded.label == "mine"
    assert sorted(os.listdir(tmp_path / "mine")) == [META_FILE, ROWS_FILE]


def test_a_table_without_rows_round_trips(tmp_path: Path) -> None:
    save_table(Table("none", profiles.empty_rows(), {"sources": {}}), tmp_path / "none")
    assert load_table(tmp_path / "none").rows.empty


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"phase": "dream"}, "phase must be one of"),
        ({"config": '{"b": 1, "a": 2}'}, "config must be canonical JSON"),
        ({"config": "[1]"}, "config must be canonical JSON"),
        ({"latency_us_p50": 8.0}, "not positive and in order"),
        ({"latency_us_p10": -1.0}, "not positive and in order"),
        ({"latency_us_p90": None}, "not positive and in order"),
        ({"hidden_size": "wide"}, "column 'hidden_size' must be int64"),
        ({"backend": None}, "column 'backend' has empty cells"),
        ({"colour": "red"}, "unknown column 'colour'"),
    ],
)
def test_rows_are_checked(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_rows([row(**changes)])


def test_keys_are_unique_and_columns_complete() -> None:
    with pytest.raises(ValueError, match="two rows for ffn at width 64"):
        make_rows([row(), row(latency_us_p50=11.0)])
    lacking = row()
    del lacking["stack"]
    with pytest.raises(ValueError, match="no column 'stack'"):
        make_rows([lacking])


def test_merge_replaces_by_key_and_drops_failures() -> None:
    failed = row(batch=2, backend="", error="OOM", latency_us_p50=None)
    old = make_rows([row(), failed])
    new = make_rows([row(latency_us_p50=11.0), row(batch=2), row(batch=3)])
    merged = profiles.merge(old, new)
    assert sorted(merged["batch"]) == [1, 2, 3]
    assert merged.loc[merged["batch"] == 1, "latency_us_p50"].item() == 11.0
    assert (merged["error"] == "").all()


def test_failed_write_leaves_the_old_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    save_table(table(), folder)

    def fail(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", fail)
    with pytest.raises(OSError, match="cannot write a latency table"):
        save_table(table(row(), row(batch=2)), folder)
    assert len(load_table(folder).rows) == 1
    assert sorted(os.listdir(folder)) == [META_FILE, ROWS_FILE]


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    save_table(table(), folder)
    whole = (folder / ROWS_FILE).read_bytes()
    (folder / ROWS_FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged or no Parquet file"):
        load_table(folder)
    pd.DataFrame({"a": [1]}).to_parquet(folder / ROWS_FILE)
    with pytest.raises(ValueError, match="not a latency table: no column 'operator'"):
        load_table(folder)
    (folder / ROWS_FILE).unlink()
    with pytest.raises(ValueError, match=f"has no {ROWS_FILE}"):
        load_table(folder)
    (folder / ROWS_FILE).write_bytes(whole)
    meta = json.loads((folder / META_FILE).read_text())
    for text, sentence in (
        ("{", "is not JSON"),
        ("[]", "not the provenance"),
        (json.dumps({**meta, "format": 99}), "has format 99"),
    ):
        (folder / META_FILE).write_text(text)
        with pytest.raises(ValueError, match=sentence):
            load_table(folder)
    (folder / META_FILE).unlink()
    with pytest.raises(ValueError, match=f"has no {META_FILE}"):
        load_table(folder)


def test_stale_rows_are_left_out_unless_allowed(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    hashes = profiles.source_hashes(["ffn", "attention"])
    both = (row(), row(operator="attention", context=8))
    save_table(table(*both, sources={**hashes, "attention": "old"}), folder)
    loaded = load_table(folder)
    assert set(loaded.rows["operator"]) == {"ffn"}
    assert loaded.stale == {"attention": "other sources of attention"}
    assert loaded.label == "mine"
    allowed = load_table(folder, allow_stale=True)
    assert len(allowed.rows) == 2
    assert allowed.label == "mine (stale: attention)"
    save_table(table(sources={}), folder)
    with pytest.raises(ValueError, match="measured with other sources of ffn"):
        load_table(folder)


def test_tables_are_found_by_name(cache: Path, tmp_path: Path) -> None:
    save_table(table(), cache / "cpu-mine-1t")
    found = [info for info in profiles.list_tables() if info.origin == "cache"]
    assert [(info.name, info.path) for info in found] == [("cpu-mine-1t", cache / "cpu-mine-1t")]
    assert load_table("cpu-mine-1t").path == cache / "cpu-mine-1t"
    assert load_table(cache / "cpu-mine-1t" / ROWS_FILE).name == "cpu-mine-1t"
    with pytest.raises(ValueError, match=r"no latency table 'cpu-mime-1t'; did you mean 'cpu-m"):
        load_table("cpu-mime-1t")
    with pytest.raises(ValueError, match=r"there are .*cpu-mine-1t"):
        load_table(tmp_path / "nowhere")


def test_the_beginning_of_a_name_is_enough_where_it_is_the_only_one(cache: Path) -> None:
    save_table(table(), cache / "gpu-mine-80gb")
    assert load_table("gpu-mine").name == "gpu-mine-80gb"
    save_table(table(), cache / "gpu-mine-96gb")
    several = "several latency tables begin with 'gpu-mine': gpu-mine-80gb, gpu-mine-96gb"
    with pytest.raises(ValueError, match=several):
        load_table("gpu-mine")
    with pytest.raises(ValueError, match="no latency table 'gpu-min'"):
        load_table("gpu-min")
    save_table(table(), cache / "gpu-mine")
    assert load_table("gpu-mine").name == "gpu-mine"


def test_shipped_tables_are_sound() -> None:
    for info in profiles.list_tables():
        if info.origin == "shipped":
            loaded = load_table(info.path, allow_stale=True)
            assert loaded.meta["hardware"]["slug"] == info.name
            # what one GPU cannot hold is a row that says so, and rare
            failed = loaded.rows["error"] != ""
            assert loaded.rows["error"][failed].str.contains("out of memory").all()
            assert failed.mean() < 0.001


def test_source_hash_follows_code_and_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = sources._closure("operators.sliding_window.module")
    assert {"operators.attention.module", "operators.layer"} <= reached
    assert "operators.ffn.module" not in reached
    code = 'def f():\n    """Doc."""\n    # why\n    return 1\n'
    assert sources._code(code) == sources._code("def f():\n\n    return 1\n")
    assert sources._code(code) != sources._code("def f():\n    return 2\n")
    other = code + "\ndef g():\n    return 3\n"
    assert sources._code(other) != sources._code(code)
    assert sources._code(other, ("f",)) == sources._code(code), "g is not what counts"
    hashes = profiles.source_hashes(["ffn", "attention", "head", "../ffn"])
    assert hashes["../ffn"] == ""
    assert len({hashes["ffn"], hashes["attention"], hashes["head"]}) == 3


def test_imports_without_torch() -> None:
    code = (
        "import sys, archsearch.profiles, archsearch.latency;"
        "assert not {'torch', 'optuna'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_how_products_are_cut_is_a_source_of_fused_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, module = sources.source_hashes(["ffn.step", "ffn"]).values()
    monkeypatch.setattr(sources, "TUNED_PRODUCTS", "operators/tuned/none_*.json")
    sources._source_hash.cache_clear()
    other, same = sources.source_hashes(["ffn.step", "ffn"]).values()
    sources._source_hash.cache_clear()
    assert (other != step, same) == (True, module)


def test_fused_rows_of_another_compiler_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "installed_version", lambda name: "3.7.1")
    folder = tmp_path / "mine"
    sessions = [{"id": 0, "packages": {"triton": {"triton": "3.6.0"}}}]
    hashes = {"ffn": "", **sources.source_hashes(["ffn.step"])}
    save_table(table(row(backend="triton"), sessions=sessions, sources=hashes), folder)
    assert len(load_table(folder).rows) == 1


def test_rows_of_another_package_version_are_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"flash-linear-attention": "0.6.0", "causal-conv1d": "1.7.0"}
    monkeypatch.setattr(sources, "installed_version", lambda name: installed.get(name, ""))
    sessions = [
        {"id": 0, "packages": {"fla": {"flash-linear-attention": "0.5.0"}}},
        {
            "id": 1,
            "packages": {
                "fla": {"flash-linear-attention": "0.6.0"},
                "causal_conv1d": {"causal-conv1d": "1.7.0"},
            },
        },
    ]
    rows = [
        row(backend="fla"),
        row(backend="torch", batch=2),
        row(backend="fla+causal_conv1d", batch=3, session=1),
    ]
    folder = tmp_path / "mine"
    save_table(table(*rows, sessions=sessions), folder)
    loaded = load_table(folder)
    assert loaded.rows["batch"].tolist() == [2, 3]
    assert loaded.stale == {"ffn": "flash-linear-attention 0.5.0 (0.6.0 is installed)"}
    assert loaded.label == "mine", "no stale row is held"
    assert load_table(folder, allow_stale=True).label == "mine (stale: ffn)"
    installed["causal-conv1d"] = "1.8.0"
    assert load_table(folder).rows["batch"].tolist() == [2]
    # a machine without the packages takes the table as it is
    installed.clear()
    assert len(load_table(folder).rows) == 3
    installed["flash-linear-attention"] = "0.7.0"
    save_table(table(rows[0], sessions=sessions), folder)
    with pytest.raises(ValueError, match=r"measured with flash-linear-attention 0\.5\.0 \(0\.7"):
        load_table(folder)


@pytest.mark.parametrize("sessions", [{}, [1], [{"measured": "now"}]])
def test_sessions_are_checked(sessions: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'sessions' must be a list of entries with an 'id'"):
        save_table(table(sessions=sessions), tmp_path / "mine")
