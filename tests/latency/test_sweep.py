"""Real measurements, short ones: what they record, and how a sweep goes on after a break."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from archsearch import hardware
from archsearch import latency
from archsearch import operators
from archsearch.hardware import Hardware
from archsearch.latency import sweep
from archsearch.latency.roofline import floor_us
from archsearch.latency.stack import STACK
from archsearch.latency.stack import prepare
from archsearch.operators import Cost
from archsearch.operators import Shape
from archsearch.profiles import load_table
from archsearch.space import LayerSpec
from archsearch.space import parse

SPEC = parse("a f m2 f @64", vocab_size=50)
DECODE = Shape("decode", 2, 32)
EVERY_PHASE = [DECODE, Shape("prefill", 1, 16), Shape("train", 1, 16)]


def quick(cases: list[latency.Case], folder: Path, **options: object) -> object:
    return latency.profile(cases, folder=folder, budget_s=0.0, **options)  # type: ignore[arg-type]


def test_every_operator_and_phase_is_measured_and_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # whether it runs is the question here, not for how long
    monkeypatch.setattr(sweep, "MIN_REPEATS", dict.fromkeys(operators.PHASES, 2))
    monkeypatch.setattr(sweep, "CPU_PASSES", 1)
    layers = tuple(LayerSpec(operator=name) for name in operators.names())
    spec = SPEC.model_copy(update={"layers": layers})
    cases = latency.cases_for_spec(spec, EVERY_PHASE)
    seen: list[tuple[int, int]] = []
    before = torch.get_rng_state()
    table = latency.profile(
        cases,
        folder=tmp_path / "mine",
        budget_s=0.0,
        on_progress=lambda done, total, left: seen.append((done, total)),
    )
    assert torch.equal(torch.get_rng_state(), before), "measuring drew from the global generator"
    assert (table.rows["error"] == "").all(), table.rows["error"].tolist()
    assert len(table.rows) == len(cases)
    assert seen[0] == (0, len(cases))
    assert seen[-1] == (len(cases), len(cases))
    for shape in EVERY_PHASE:
        found = latency.predict(spec, shape, table)
        assert set(found.parts) == {*operators.names(), "embedding", "head"}
        assert 0 < found.low_us <= found.latency_us <= found.high_us
    attention = table.rows.query("operator == 'attention' and phase == 'decode'").iloc[0]
    assert attention["backend"] == "sdpa"
    assert attention["stack"] == STACK["decode"]
    assert attention["stack_bytes"] > 0
    assert attention["bytes"] > 0
    assert attention["context"] == DECODE.context
    assert table.meta["hardware"]["slug"] == hardware.describe().slug
    assert table.meta["software"]["torch"] == torch.__version__


def test_a_decode_row_times_the_layer_step_at_its_position() -> None:
    case = next(c for c in latency.cases_for_spec(SPEC, [DECODE]) if c.operator == "attention")
    work = prepare(case, "cpu")
    assert (work.count, work.distinct) == (1, STACK["decode"])
    assert work.before is not None
    work.before()
    out = work.call()
    assert isinstance(out, torch.Tensor)
    assert out.shape == (2, 64)
    assert torch.isfinite(out).all()


def test_a_failure_is_a_row_and_the_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = latency.cases_for_spec(SPEC, [DECODE])
    wrong = replace(cases[1], config='{"num_heads":3,"num_kv_heads":2}')
    quick([wrong, *cases], tmp_path / "mine")
    rows = load_table(tmp_path / "mine").rows
    failed = rows[rows["error"] != ""]
    assert len(rows) == len(cases) + 1
    assert failed["error"].item().startswith("ValueError: attention config")
    # a failed row is tried again, the others are not
    measured = []
    monkeypatch.setattr(
        sweep, "measure_case", lambda case, **_: measured.append(case) or failed.iloc[0].to_dict()
    )
    quick([wrong, *cases], tmp_path / "mine")
    assert measured == [wrong] * sweep.CPU_PASSES


def test_an_interrupted_sweep_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = latency.cases_for_spec(SPEC, [DECODE])
    real, calls = sweep.measure_case, []

    def interrupted(case: latency.Case, **options: object) -> object:
        calls.append(case)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(case, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep, "measure_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quick(cases, tmp_path / "mine")
    assert len(load_table(tmp_path / "mine").rows) == 2
    quick(cases, tmp_path / "mine")
    assert calls[3:] == cases[2:] * sweep.CPU_PASSES
    assert len(load_table(tmp_path / "mine").rows) == len(cases)


def test_the_quieter_of_two_measurements_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = latency.cases_for_spec(SPEC, [DECODE])[0]
    real, times = sweep.measure_case, [300.0, 200.0, 250.0]

    def noisy(case: latency.Case, **options: object) -> object:
        row = real(case, **options)  # type: ignore[arg-type]
        return (
            row | {f"latency_us_p{q}": times[-1] for q in (10, 50, 90)} | {"repeats": times.pop()}
        )

    monkeypatch.setattr(sweep, "measure_case", noisy)
    table = quick([case], tmp_path / "mine")
    assert table.rows["latency_us_p50"].tolist() == [200.0]  # type: ignore[attr-defined]
    assert not times


def test_a_table_of_another_torch_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = latency.cases_for_spec(SPEC, [DECODE])[:1]
    quick(cases, tmp_path / "mine")
    monkeypatch.setattr(torch, "__version__", "99.0")
    quick(cases, tmp_path / "mine")
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found[0] == "mine"
    assert found[1].startswith("mine-until-")
    assert load_table(tmp_path / "mine").meta["software"]["torch"] == "99.0"
    assert len(load_table(tmp_path / found[1]).rows) == 1


def test_stale_rows_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = latency.cases_for_spec(SPEC, [DECODE])
    quick(cases, tmp_path / "mine")
    hashes = sweep.source_hashes

    def changed(names: Iterable[str]) -> dict[str, str]:
        return {name: "changed" if name == "ffn" else hashes([name])[name] for name in names}

    for module in ("archsearch.latency.sweep", "archsearch.profiles.sources"):
        monkeypatch.setattr(f"{module}.source_hashes", changed)
    measured = []
    real = sweep.measure_case
    monkeypatch.setattr(
        sweep, "measure_case", lambda case, **o: measured.append(case.operator) or real(case, **o)
    )
    quick(cases, tmp_path / "mine")
    assert measured == ["ffn"] * sweep.CPU_PASSES
    assert not load_table(tmp_path / "mine").stale


def test_folder_that_cannot_be_written_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write a latency table"):
        quick(latency.cases_for_spec(SPEC, [DECODE]), tmp_path / "file" / "mine")


@pytest.mark.parametrize("shape", EVERY_PHASE, ids=lambda shape: shape.phase)
def test_whole_models_are_timed(shape: Shape) -> None:
    spec = SPEC.model_copy(update={"num_meta_tokens": 3, "head_norm": True})
    found = latency.measure_model(spec, shape, budget_s=0.0)
    assert found.repeats >= 10
    assert 0 < found.p10_us <= found.p50_us <= found.p90_us


def test_floor_is_the_longer_of_memory_and_compute() -> None:
    gpu = Hardware("gpu", "NVIDIA H200", "nvidia-h200", 132, 0, 141 * 10**9)
    assert floor_us(Cost(0, 0, 4_800_000, 0), gpu) == pytest.approx(1.0)
    assert floor_us(Cost(0, 989_400_000, 1, 0), gpu) == pytest.approx(1.0)
    assert floor_us(Cost(0, 1, 1, 0), hardware.describe()) is None


def test_below_the_floor_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "floor_us", lambda cost, device: 1e9)
    case = latency.cases_for_spec(SPEC, [DECODE])[0]
    row = sweep.measure_case(case, budget_s=0.0)
    assert "below the floor" in row["error"]
    assert "latency_us_p50" not in row
