"""Sweeps that stop and go on: limits, kills, cases that take the process down, GPU failures."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from archsearch.latency import Case
from archsearch.latency import journal
from archsearch.latency import profile
from archsearch.latency import sweep
from archsearch.latency.ceilings import Ceilings
from archsearch.latency.plan import Grid
from archsearch.latency.plan import group_of
from archsearch.profiles import load_table
from archsearch.profiles import sources

GRID = Grid(codes=("a",), widths=(64,), batches=(1,), contexts=(16, 32), vocab_size=50)
CASES = GRID.cases()
CEILINGS = Ceilings(4e12, 7e14, 2.0)


class FakeGPU:
    """Stands where the GPU is asked: times, provenance, ceilings."""

    def __init__(self) -> None:
        self.measured: list[Case] = []
        self.packages: dict[str, dict[str, str]] = {"sdpa": {}}
        self.breaks_at: Case | None = None
        self.works = True

    def measure(self, case: Case, **_: Any) -> dict[str, Any]:
        self.measured.append(case)
        blank = journal.blank_row(case)
        if case == self.breaks_at:
            self.works = False
            return blank | {"error": "RuntimeError: CUDA error: an illegal memory access"}
        times = {f"latency_us_p{q}": 10.0 for q in (10, 50, 90)}
        return blank | times | {"backend": "fla+sdpa", "used_cuda_graph": True}

    def provenance(self, device: str) -> dict[str, Any]:
        assert device == "cuda"
        return {
            "hardware": {"slug": "nvidia-h200"},
            "software": {"torch": "2.11", "cuda": "13.0"},
            "packages": self.packages,
            "git_commit": None,
            "method": 2,
            "method_text": "",
            "measured": "2026-01-01T00:00:00+00:00",
        }


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGPU:
    fake = FakeGPU()
    monkeypatch.setattr(sweep, "measure_case", fake.measure)
    monkeypatch.setattr(sweep, "provenance", fake.provenance)
    monkeypatch.setattr(sweep, "measure_ceilings", lambda device: CEILINGS)
    monkeypatch.setattr(sweep, "still_works", lambda device: fake.works)
    return fake


def rows_of(folder: Path) -> pd.DataFrame:
    return load_table(folder, allow_stale=True).rows


def test_a_gpu_sweep_goes_group_by_group_once(gpu: FakeGPU, tmp_path: Path) -> None:
    table = profile(CASES, folder=tmp_path / "t", device="cuda")
    assert sorted(map(str, gpu.measured)) == sorted(map(str, CASES))
    groups = [group_of(case) for case in gpu.measured]
    changes = sum(a != b for a, b in pairwise(groups))
    assert changes + 1 == len(set(groups))
    (entry,) = table.meta["sessions"]
    del entry["seconds"]
    assert entry == {
        "id": 0,
        "ceilings": CEILINGS.to_dict(),
        **{
            key: gpu.provenance("cuda")[key]
            for key in ("measured", "git_commit", "software", "packages", "method_text")
        },
    }
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == [
        "meta.json",
        "table.parquet",
    ]


def test_every_stretch_is_a_session(gpu: FakeGPU, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    profile(CASES[:3], folder=folder, device="cuda")
    table = profile(CASES, folder=folder, device="cuda")
    assert table.rows["session"].tolist() == [0] * 3 + [1] * (len(CASES) - 3)
    assert [entry["id"] for entry in table.meta["sessions"]] == [0, 1]
    # nothing to do: no third one
    again = profile(CASES, folder=folder, device="cuda")
    assert again.meta["sessions"] == table.meta["sessions"]
    assert len(gpu.measured) == len(CASES)


def test_a_limit_stops_in_good_order(
    gpu: FakeGPU, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(10_000))
    monkeypatch.setattr(sweep.time, "monotonic", lambda: float(next(now)))
    table = profile(CASES, folder=tmp_path / "t", device="cuda", limit_s=6.0)
    assert 0 < len(table.rows) < len(CASES)
    left = sweep.untried(table.rows, CASES)
    assert len(left) + len(table.rows) == len(CASES)
    done = profile(CASES, folder=tmp_path / "t", device="cuda")
    assert not sweep.missing(done.rows, CASES)
    assert len(gpu.measured) == len(CASES)
    # to the end of the stretch
    assert done.meta["sessions"][0]["seconds"] > 6


def test_a_killed_process_loses_the_case_it_was_on(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    code = f"""
import os
from pathlib import Path
from archsearch.latency import sweep
from archsearch.latency.journal import blank_row
from archsearch.latency.plan import Grid
cases = Grid(codes=("a",), widths=(64,), batches=(1,), contexts=(16, 32), vocab_size=50).cases()
seen = []
def measure(case, **_):
    if len(seen) == 3:
        os._exit(9)
    seen.append(case)
    times = {{f"latency_us_p{{q}}": 10.0 for q in (10, 50, 90)}}
    return blank_row(case) | times | {{"backend": "sdpa"}}
sweep.measure_case = measure
sweep.CPU_PASSES = 1
sweep.profile(cases, folder=Path({str(folder)!r}))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert (folder / journal.JOURNAL_FILE).exists()
    journal.recover(folder)
    assert not (folder / journal.JOURNAL_FILE).exists()
    rows = rows_of(folder)
    assert rows["error"].tolist() == ["", "", "", journal.DIED]
    assert rows.loc[3, "operator"] == CASES[3].operator


def test_a_cut_last_line_of_the_journal_is_no_harm(gpu: FakeGPU, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    profile(CASES[:2], folder=folder, device="cuda")
    row = gpu.measure(CASES[2]) | {"session": 0}
    lines = [{"begin": _case(CASES[2])}, {"row": row}, {"begin": _case(CASES[3])}]
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / journal.JOURNAL_FILE).write_text(text[:-9])
    journal.recover(folder)
    assert len(rows_of(folder)) == 3


def test_what_kills_the_process_twice_is_left_alone(gpu: FakeGPU, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    profile(CASES[:2], folder=folder, device="cuda")
    deadly = next(case for case in CASES[2:] if case.operator == CASES[1].operator)
    begun = json.dumps({"begin": _case(deadly)}) + "\n"
    for expected in (journal.DIED, journal.DIED_AGAIN):
        (folder / journal.JOURNAL_FILE).write_text(begun)
        journal.recover(folder)
        assert rows_of(folder)["error"].tolist()[-1] == expected
    gpu.measured.clear()
    profile([*CASES[:2], deadly], folder=folder, device="cuda")
    assert gpu.measured == []
    profile([*CASES[:2], deadly], folder=folder, device="cuda", retry=True)
    assert gpu.measured == [deadly]
    assert (rows_of(folder)["error"] == "").all()


def test_a_gpu_that_breaks_stops_the_sweep_with_its_rows_saved(
    gpu: FakeGPU, tmp_path: Path
) -> None:
    folder = tmp_path / "t"
    gpu.breaks_at = CASES[4]
    for died in (journal.DIED, journal.DIED_AGAIN):
        gpu.works = True
        with pytest.raises(OSError, match=r"the GPU stopped working at .*illegal memory access"):
            profile(CASES, folder=folder, device="cuda")
        error = rows_of(folder).set_index(journal.CASE)["error"]
        assert error[tuple(_case(CASES[4]).values())].startswith(f"{died}: RuntimeError")
    gpu.works = True
    table = profile(CASES, folder=folder, device="cuda")
    assert sweep.missing(table.rows, CASES) == [CASES[4]]


def test_an_ordinary_failure_does_not_stop_it(
    gpu: FakeGPU, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.breaks_at = CASES[4]
    monkeypatch.setattr(sweep, "still_works", lambda device: True)
    table = profile(CASES, folder=tmp_path / "t", device="cuda")
    assert len(table.rows) == len(CASES)
    assert (table.rows["error"] != "").sum() == 1


def test_what_failed_before_comes_last(gpu: FakeGPU, tmp_path: Path) -> None:
    gpu.breaks_at = CASES[0]
    gpu.works = True
    with pytest.raises(OSError, match="the GPU stopped"):
        profile(CASES[:1], folder=tmp_path / "t", device="cuda")
    gpu.breaks_at, gpu.works = None, True
    gpu.measured.clear()
    profile(CASES, folder=tmp_path / "t", device="cuda")
    assert gpu.measured[-1] == CASES[0]
    assert len(gpu.measured) == len(CASES)


def test_rows_of_another_kernel_package_are_measured_again(
    gpu: FakeGPU, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "t"
    installed = {"flash-linear-attention": "0.6.0"}
    monkeypatch.setattr(sources, "installed_version", lambda name: installed.get(name, ""))
    gpu.packages = {"fla": dict(installed)}
    profile(CASES[:3], folder=folder, device="cuda")
    profile(CASES, folder=folder, device="cuda")
    assert len(gpu.measured) == len(CASES)
    installed["flash-linear-attention"] = "0.7.0"
    gpu.packages = {"fla": dict(installed)}
    table = profile(CASES[:2], folder=folder, device="cuda")
    assert set(gpu.measured[len(CASES) :]) == set(CASES[:2])
    assert len(table.rows) == 2, "what is stale is not kept"
    assert [entry["packages"]["fla"] for entry in table.meta["sessions"]] == [installed]


def test_a_table_of_another_format_is_set_aside(gpu: FakeGPU, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    profile(CASES[:1], folder=folder, device="cuda")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "format": 1}))
    profile(CASES[:1], folder=folder, device="cuda")
    assert len(list(tmp_path.iterdir())) == 2
    assert len(rows_of(folder)) == 1


def _case(case: Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in journal.CASE}
