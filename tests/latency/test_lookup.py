"""What holds between measured rows: batches, contexts, windows, backends; and how well."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from archsearch import operators
from archsearch.hardware import PEAKS
from archsearch.latency import Case
from archsearch.latency import cases_for_spec
from archsearch.latency import leave_one_out
from archsearch.latency import predict
from archsearch.latency import predict_many
from archsearch.latency import predict_patterns
from archsearch.latency.cases import PARTS
from archsearch.latency.cases import part_cost
from archsearch.latency.holdout import between_batches
from archsearch.latency.holdout import summarise
from archsearch.latency.lookup import LatencyIndex
from archsearch.latency.lookup import without_fused
from archsearch.operators import Cost
from archsearch.operators import Shape
from archsearch.profiles import Table
from archsearch.profiles import make_rows
from archsearch.space import ArchSpec
from archsearch.space import parse

H200 = PEAKS["H200"]
BATCHES, CONTEXTS = (1, 8, 32, 128), (1024, 4096, 8192, 32768)
SPEC = parse("a f w f m2 f @1024", vocab_size=1000)
TimeOf = Callable[[Case, Cost], float]


def cost_of(case: Case) -> Cost:
    config = json.loads(case.config)
    if case.operator in PARTS:
        return part_cost(case, config["vocab_size"])
    operator = operators.get(case.operator)
    return operator.cost(operator.configure(case.hidden_size, **config), case.shape)


def affine(case: Case, cost: Cost) -> float:
    """Launches, then the longer of traffic and computation at 80 % of the peaks."""
    floor = max(cost.bytes / H200.bandwidth_bytes_s, cost.flops / H200.bf16_flops_s)
    return 18.0 + 1e6 * floor / 0.8


def saturating(case: Case, cost: Cost) -> float:
    """Few tokens use a GPU badly, and kernels come in waves."""
    tokens = case.shape.tokens
    compute = cost.flops / H200.bf16_flops_s / 0.75 * (1 + 300 / tokens)
    waves = 1 + 0.02 * np.sin(tokens / 700)
    return float(18 + 1e6 * (cost.bytes / H200.bandwidth_bytes_s / 0.85 + compute) * waves)


def row(case: Case, time_of: TimeOf = affine, **changes: Any) -> dict[str, Any]:
    cost = cost_of(case)
    us = time_of(case, cost)
    return {
        **asdict(case),
        "backend": "torch",
        "latency_us_p10": us,
        "latency_us_p50": us,
        "latency_us_p90": us,
        "repeats": 9,
        "stack": 6,
        "stack_bytes": 1,
        "roofline_us": us / 2,
        "energy_j": us / 1e4,
        "used_cuda_graph": True,
        "error": "",
        **changes,
    }


def shapes(phase: Any, batches: Iterable[int], contexts: Iterable[int]) -> list[Shape]:
    return [
        Shape(phase, batch, context, "bfloat16")
        for batch in batches
        for context in contexts
        if phase == "decode" or batch * context <= 65536
    ]


def table(cases: Iterable[Case], time_of: TimeOf = affine, *more: dict[str, Any]) -> Table:
    rows = make_rows([*(row(case, time_of) for case in cases), *more])
    return Table("made-up", rows, {"sources": {}})


@pytest.fixture(scope="module")
def grid() -> Table:
    asked = [*shapes("decode", BATCHES, CONTEXTS), *shapes("prefill", BATCHES, CONTEXTS)]
    return table(cases_for_spec(SPEC, asked))


@pytest.mark.parametrize(
    ("phase", "batch", "context"),
    [
        ("decode", 1, 3000),
        ("decode", 20, 4096),
        ("decode", 100, 20000),
        ("prefill", 1, 20000),
        ("prefill", 4, 2000),
    ],
)
def test_between_rows_a_time_grows_with_the_work(
    grid: Table, phase: Any, batch: int, context: int
) -> None:
    shape = Shape(phase, batch, context, "bfloat16")
    truth = sum(affine(case, cost_of(case)) for case in _calls(SPEC, shape))
    found = predict(SPEC, shape, grid)
    assert found.latency_us == pytest.approx(truth, rel=0.02)
    assert found.floor_us == pytest.approx(found.latency_us / 2)
    assert found.energy_j == pytest.approx(found.latency_us / 1e4)


def test_a_model_pays_for_its_replay_once() -> None:
    shape = Shape("decode", 1, 1024, "bfloat16")
    plain = table(cases_for_spec(SPEC, [shape]))
    # what each stretch of measuring found it to cost; a stretch on a CPU says nothing
    sessions = [{"id": place, "ceilings": {"replay_us": us}} for place, us in enumerate((3, 9, 4))]
    meta = {**plain.meta, "sessions": [*sessions, {"id": 3}]}
    told = Table("made-up", plain.rows.assign(steady_us=2 * plain.rows["latency_us_p50"]), meta)
    once, twice = predict(SPEC, shape, plain), predict(SPEC, shape, told)
    assert twice.latency_us == pytest.approx(once.latency_us + 4)
    assert twice.parts["embedding"] == pytest.approx(once.parts["embedding"] + 4)
    assert twice.parts["head"] == once.parts["head"]
    assert twice.steady_us == pytest.approx(2 * once.latency_us + 4)
    assert once.steady_us is None


def test_a_window_bends_the_line_where_it_ends() -> None:
    window = json.loads(_case("w", 1, 1024).config)["window"]
    contexts = (window // 2, window * 4)
    curve = table(
        cases_for_spec(parse("w @1024", vocab_size=1000), shapes("decode", [1], contexts))
    )
    index = LatencyIndex(curve)
    at_window, beyond = (index[_case("w", 1, at)].p50 for at in (window, window * 2))
    assert at_window == pytest.approx(index[_case("w", 1, window * 4)].p50)
    assert at_window == beyond > index[_case("w", 1, window * 3 // 4)].p50


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        (Shape("decode", 200, 4096, "bfloat16"), "decode for batches 1 to 128 .* batch 200; "),
        (Shape("decode", 4, 512, "bfloat16"), "batch 4, for decode contexts 1024 to 32768 .* 512"),
        (Shape("prefill", 16, 2048, "bfloat16"), "batch 16, for prefill contexts? .* reach 2048"),
        (Shape("train", 1, 1024, "bfloat16"), "only for phase decode, prefill; measure it"),
        (Shape("decode", 1, 1024), "float32.*, only for dtype bfloat16; measure it"),
    ],
)
def test_outside_is_refused_with_what_was_measured(
    grid: Table, shape: Shape, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        predict(SPEC, shape, grid)


def test_a_gpu_is_measured_on_a_gpu(grid: Table) -> None:
    here = Table("gpu", grid.rows, {"sources": {}, "hardware": {"kind": "gpu"}})
    with pytest.raises(ValueError, match=r"--dtype bfloat16 --device cuda$"):
        predict(SPEC, Shape("decode", 500, 1024, "bfloat16"), here)


def test_meta_tokens_are_named_where_they_lead_outside(grid: Table) -> None:
    led = SPEC.model_copy(update={"num_meta_tokens": 256})
    with pytest.raises(ValueError, match=r"reach 33024; .* \(256 meta tokens are counted\)"):
        predict(led, Shape("decode", 1, 32768, "bfloat16"), grid)


def test_backends_rank_by_their_own_part() -> None:
    case = _case("m2", 1, 1024)
    # mamba_ssm is preferred to torch, to the reference, to what nobody knows
    ordered = (
        *("mamba_ssm+causal_conv1d", "mamba_ssm"),
        *("torch+causal_conv1d", "torch", "reference", "new"),
    )
    for best in range(len(ordered)):
        rows = [row(case, backend=label) | _us(label) for label in reversed(ordered[best:])]
        index = LatencyIndex(table([], affine, *rows))
        assert index[case].p50 == _us(ordered[best])["latency_us_p50"], ordered[best]


def test_rows_of_plain_steps_are_told_from_fused_ones(grid: Table) -> None:
    meta = {**grid.meta, "hardware": {"kind": "gpu"}}
    rows = grid.rows.copy()
    fused = (rows["operator"] == "ffn") & (rows["batch"] == 1)
    rows.loc[fused, "backend"] = "triton"
    table = Table("both", rows, meta)
    assert without_fused(table, ["ffn", "attention", "mamba2", "ffn", "head"]) == (
        "attention",
        "mamba2",
        "head",
    )
    on_cpu = Table("cpu", rows, {**meta, "hardware": {"kind": "cpu"}})
    assert without_fused(on_cpu, ["attention"]) == ()


def test_leave_one_out_is_exact_where_time_follows_work(grid: Table) -> None:
    found = leave_one_out(grid)
    assert set(found["axis"]) == {"context", "batch"}
    assert set(found["operator"]) == {"attention", "sliding_window", "mamba2", "ffn", *PARTS}
    inner = found[(found["operator"] == "attention") & (found["phase"] == "decode")]
    # two inner of four contexts at each batch, two inner of four batches at each context
    assert len(inner) == 2 * 4 + 2 * 4
    assert inner["error"].abs().max() < 1e-9
    assert list(leave_one_out(table([])).columns) == list(found.columns)
    # two inner of four batches: of decode, whatever the operator and the context
    across = between_batches(grid, "decode")
    assert across is not None
    assert across.count == ((found["phase"] == "decode") & (found["axis"] == "batch")).sum()
    assert across.median <= across.p90 < 1e-9
    assert between_batches(table([]), "decode") is None


def test_leave_one_out_tells_how_far_a_realistic_table_is() -> None:
    asked = [*shapes("decode", BATCHES, CONTEXTS), *shapes("prefill", (1, 2, 4, 8), CONTEXTS)]
    found = leave_one_out(table(cases_for_spec(SPEC, asked), saturating))
    assert found["error"].abs().max() > 0.001, "too good to be true"
    summary = summarise(found).set_index(["operator", "phase", "axis"])
    assert (summary["count"] > 0).all()
    assert (summary["median"] <= summary["p90"]).all()
    assert (summary["p90"] <= summary["worst"]).all()
    assert summary["median"].max() < 0.03
    assert summary["worst"].max() < 0.10


def test_patterns_cost_what_their_specs_do(grid: Table) -> None:
    shape = Shape("decode", 8, 2000, "bfloat16")
    patterns = [(1024, ("a", "f", "m2")), (1024, ("attention", "ffn")), (1024, ())]
    layers = [[{"operator": code} for code in codes] for _, codes in patterns]
    specs = [ArchSpec.create(hidden_size=1024, vocab_size=1000, layers=some) for some in layers]
    found = predict_patterns(patterns, shape, grid, vocab_size=1000)
    assert found.tolist() == pytest.approx(predict_many(specs, shape, grid).tolist())
    assert found[:2].tolist() == pytest.approx(
        [predict(spec, shape, grid).latency_us for spec in specs[:2]]
    )
    with pytest.raises(ValueError, match="unknown operator"):
        predict_patterns([(1024, ("zz",))], shape, grid, vocab_size=1000)
    with pytest.raises(ValueError, match="no row for mamba "):
        predict_patterns([(1024, ("m1",))], shape, grid, vocab_size=1000)


def test_overridden_layers_have_rows_of_their_own(grid: Table) -> None:
    shape = Shape("decode", 1, 1024, "bfloat16")
    narrow = {"operator": "f", "config": {"intermediate_size": 128}}
    mixed = ArchSpec.create(
        hidden_size=1024, vocab_size=1000, layers=({"operator": "f"}, narrow, narrow)
    )
    wider = table(cases_for_spec(SPEC, [shape]) + cases_for_spec(mixed, [shape])[2:3])
    found = predict(mixed, shape, wider)
    (ffn,) = (part for part in found.by_operator if part.operator == "ffn")
    one, other = (affine(case, cost_of(case)) for case in _calls(mixed, shape)[1:3])
    assert (ffn.calls, ffn.latency_us) == (3, pytest.approx(one + 2 * other))
    assert (
        predict_many([mixed, mixed], shape, wider).tolist()
        == [pytest.approx(found.latency_us)] * 2
    )


def test_look_up_is_quick(grid: Table) -> None:
    """A tenth of what experiments/lookup-speed measures, for a busy machine."""
    layers = parse("(a f w f m2 f)x4 @1024", vocab_size=1000).layers
    specs = [ArchSpec.create(hidden_size=1024, vocab_size=1000, layers=layers) for _ in range(300)]
    shape = Shape("decode", 8, 2000, "bfloat16")
    predict_many(specs[:1], shape, grid)
    begin = time.perf_counter()
    predict_many(specs, shape, grid)
    assert time.perf_counter() - begin < 300 / 10_000


def _calls(spec: ArchSpec, shape: Shape) -> list[Case]:
    from archsearch.latency.cases import model_cases

    return model_cases(spec, shape)


def _case(code: str, batch: int, context: int) -> Case:
    spec = parse(f"{code} @1024", vocab_size=1000)
    return _calls(spec, Shape("decode", batch, context, "bfloat16"))[1]


def _us(label: str) -> dict[str, float]:
    us = 10.0 + len(label)
    return {f"latency_us_{name}": us for name in ("p10", "p50", "p90")}
