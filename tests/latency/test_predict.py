"""Predictions from a made-up table: sums, interpolation, refusals."""

from __future__ import annotations

from dataclasses import asdict
from dataclasses import replace
from typing import Any

import pytest

from archsearch import operators
from archsearch.latency import Case
from archsearch.latency import cases_for_space
from archsearch.latency import cases_for_spec
from archsearch.latency import predict
from archsearch.latency import predict_many
from archsearch.latency import predict_patterns
from archsearch.latency.cases import model_cases
from archsearch.operators import Shape
from archsearch.profiles import Table
from archsearch.profiles import make_rows
from archsearch.space import ArchSpec
from archsearch.space import get_space
from archsearch.space import parse

SPEC = parse("(a f m2 f)x2 @64", vocab_size=100)
SHAPES = [Shape("decode", 1, 128), Shape("decode", 1, 512), Shape("prefill", 1, 128)]
TIMES = {"embedding": 1.0, "attention": 10.0, "ffn": 20.0, "mamba2": 40.0, "head": 5.0}


def time_of(case: Case) -> float:
    """Attention grows with the context: 10 + context / 8."""
    return TIMES[case.operator] + case.context / 8


def measured(case: Case, **changes: Any) -> dict[str, Any]:
    time = time_of(case)
    return {
        **asdict(case),
        "backend": "torch",
        "latency_us_p10": 0.5 * time,
        "latency_us_p50": time,
        "latency_us_p90": 2.0 * time,
        "repeats": 9,
        "stack": 6,
        "stack_bytes": 1,
        "used_cuda_graph": False,
        "error": "",
        **changes,
    }


def table(cases: list[Case], *more: dict[str, Any], stale: dict[str, str] | None = None) -> Table:
    rows = make_rows([*(measured(case) for case in cases), *more])
    return Table("mine", rows, {"sources": {}}, stale=stale or {})


@pytest.fixture
def full() -> Table:
    return table(cases_for_spec(SPEC, SHAPES))


def test_cases_are_what_the_model_needs() -> None:
    cases = cases_for_spec(SPEC, SHAPES)
    assert len(cases) == len(set(cases))
    decode = [case for case in cases if case.phase == "decode"]
    # one row per operator and part, and one more context for the cache that grows
    assert [(case.operator, case.context) for case in decode] == [
        ("embedding", 0),
        ("attention", 128),
        ("ffn", 0),
        ("mamba2", 0),
        ("head", 0),
        ("attention", 512),
    ]
    assert len(model_cases(SPEC, SHAPES[0])) == len(SPEC.layers) + 2


def test_what_the_whole_model_shares_is_no_part_of_the_key() -> None:
    other = parse("(a f m2 f)x2 @64", vocab_size=100, norm_eps=1e-5, max_position=8192)
    assert cases_for_spec(other, SHAPES) == cases_for_spec(SPEC, SHAPES)


def test_a_space_needs_every_operator_at_every_width() -> None:
    space = get_space("free", widths=(64, 128), codes=("a", "m2"), fields={"vocab_size": 100})
    cases = cases_for_space(space, SHAPES[:1])
    assert {(case.operator, case.hidden_size) for case in cases} == {
        (operator, width) for operator in TIMES for width in (64, 128)
    }
    assert set(cases_for_spec(SPEC, SHAPES[:1])) <= set(cases)


def test_sum_of_rows(full: Table) -> None:
    found = predict(SPEC, SHAPES[0], full)
    assert found.parts == {
        "embedding": 1.0,
        "attention": 2 * 26.0,
        "ffn": 80.0,
        "mamba2": 80.0,
        "head": 5.0,
    }
    assert found.latency_us == 218.0
    assert (found.low_us, found.high_us) == (109.0, 436.0)


@pytest.mark.parametrize(("scale", "late"), [(200.0, 0.0), (500.0, 1 - 50_000 / 109_000)])
def test_a_long_call_gives_way_to_the_power_cap(scale: float, late: float) -> None:
    shape = SHAPES[0]
    rows = []
    for case in cases_for_spec(SPEC, [shape]):
        median = scale * time_of(case)
        # in steady work FFNs are slower
        steady = 1.1 * median if case.operator == "ffn" else median
        rows.append(measured(case, **_exactly(median), steady_us=steady))
    capped = table([], *rows)
    found = predict(SPEC, shape, capped)
    assert found.parts["ffn"] == pytest.approx(scale * 80 * (1 + 0.1 * late))
    assert found.parts["attention"] == pytest.approx(scale * 52)
    assert found.steady_us == pytest.approx(scale * 226)
    assert found.high_us == pytest.approx(found.latency_us)
    assert predict_many([SPEC], shape, capped)[0] == pytest.approx(found.latency_us)
    pattern = (64, ("a", "f", "m2", "f", "a", "f", "m2", "f"))
    assert predict_patterns([pattern], shape, capped, vocab_size=100)[0] == pytest.approx(
        found.latency_us
    )


@pytest.mark.parametrize("lacking", ["head", "ffn"])
def test_a_long_call_stays_as_it_is_where_steady_time_is_not_known(lacking: str) -> None:
    rows = []
    for case in cases_for_spec(SPEC, SHAPES[:1]):
        median = 500.0 * time_of(case)
        steady = {} if case.operator == lacking else {"steady_us": 1.1 * median}
        rows.append(measured(case, **_exactly(median), **steady))
    partly = table([], *rows)
    assert predict(SPEC, SHAPES[0], partly).latency_us == pytest.approx(109_000)
    assert predict_many([SPEC], SHAPES[0], partly)[0] == pytest.approx(109_000)


def test_decode_interpolates_linearly(full: Table) -> None:
    found = predict(SPEC, Shape("decode", 1, 320), full)
    assert found.parts["attention"] == pytest.approx(2 * (10 + 320 / 8))


def test_prefill_interpolates_with_the_flops() -> None:
    lengths = (128, 200, 512)
    cases = cases_for_spec(SPEC, [Shape("prefill", 1, t) for t in lengths])
    attention = {case.context: case for case in cases if case.operator == "attention"}
    config = SPEC.configs[0]
    flops = {
        t: operators.get("attention").cost(config, case.shape).flops
        for t, case in attention.items()
    }
    times = {t: 5.0 + flops[t] / 1e6 for t in lengths}
    rows = [measured(c, **_exactly(times.get(c.context, 1.0))) for c in cases if c.context != 200]
    found = predict(SPEC, Shape("prefill", 1, 200), Table("t", make_rows(rows), {"sources": {}}))
    assert found.parts["attention"] == pytest.approx(2 * times[200])


def _exactly(us: float) -> dict[str, float]:
    return {f"latency_us_{name}": us for name in ("p10", "p50", "p90")}


def test_meta_tokens_count_in_the_context(full: Table) -> None:
    led = parse("(a f m2 f)x2 @64", vocab_size=100, num_meta_tokens=64)
    found = predict(led, Shape("decode", 1, 256), full)
    assert found.parts["attention"] == pytest.approx(2 * (10 + 320 / 8))
    with pytest.raises(ValueError, match="128 to 512 and does not reach 576"):
        predict(led, Shape("decode", 1, 512), full)


def test_many_equal_one_by_one(full: Table) -> None:
    specs = [SPEC, parse("f f @64", vocab_size=100), parse("m2 f @64", vocab_size=100)]
    expected = [predict(spec, SHAPES[0], full).latency_us for spec in specs]
    assert predict_many(specs, SHAPES[0], full).tolist() == pytest.approx(expected)
    assert predict_many([], SHAPES[0], full).shape == (0,)


@pytest.mark.parametrize("context", [127, 513])
def test_refuses_to_extrapolate(full: Table, context: int) -> None:
    with pytest.raises(ValueError, match="contexts 128 to 512 and does not reach") as error:
        predict(SPEC, Shape("decode", 1, context), full)
    command = "archsearch profile --operators a --widths 64 --phase decode --batch 1"
    assert f"{command} --context {context} --dtype float32" in str(error.value)


@pytest.mark.parametrize(
    ("spec", "shape", "sentence"),
    [
        (parse("d @64", vocab_size=100), SHAPES[0], "no row for deltanet .* --operators d "),
        (parse("f @128", vocab_size=100), SHAPES[0], "width 128 .* --vocab-size 100 "),
        (parse("f @64", vocab_size=99), SHAPES[0], 'no row for embedding {"vocab_size":99}'),
        (SPEC, Shape("decode", 2, 128), "batch 2"),
        (SPEC, Shape("decode", 1, 128, "bfloat16"), "bfloat16"),
        (SPEC, Shape("train", 1, 128), "train"),
    ],
)
def test_missing_rows_are_named(full: Table, spec: ArchSpec, shape: Shape, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        predict(spec, shape, full)


def test_config_that_no_option_says_asks_for_the_architecture(full: Table) -> None:
    wide = ArchSpec.create(
        hidden_size=64,
        vocab_size=100,
        layers=({"operator": "ffn", "config": {"intermediate_size": 100}},),
    )
    with pytest.raises(ValueError, match="archsearch profile SPEC"):
        predict(wide, SHAPES[0], full)


def test_failed_and_stale_rows_say_so() -> None:
    cases = [c for c in cases_for_spec(SPEC, SHAPES[:1]) if c.operator != "mamba2"]
    lost = next(c for c in cases_for_spec(SPEC, SHAPES[:1]) if c.operator == "mamba2")
    failed = measured(lost, error="RuntimeError: boom", latency_us_p50=None)
    with pytest.raises(ValueError, match="measuring it failed with: RuntimeError: boom"):
        predict(SPEC, SHAPES[0], table(cases, failed))
    stale = table(cases, stale={"mamba2": "mamba-ssm 1 (2 is installed)"})
    with pytest.raises(
        ValueError, match=r"with mamba-ssm 1 \(2 is installed\), are left out: allow"
    ):
        predict(SPEC, SHAPES[0], stale)
    with pytest.raises(ValueError, match=r"no row for mamba2 .*float32\); measure it"):
        predict(SPEC, SHAPES[0], replace(stale, holds_stale=True))


def test_the_preferred_backend_counts() -> None:
    cases = cases_for_spec(SPEC, SHAPES[:1])
    attention = next(case for case in cases if case.operator == "attention")
    rest = [case for case in cases if case is not attention]
    slow = measured(attention, backend="reference", latency_us_p90=1e6, latency_us_p50=1e5)
    fast = measured(attention, backend="sdpa")
    for rows in ((slow, fast), (fast, slow)):
        assert predict(SPEC, SHAPES[0], table(rest, *rows)).parts["attention"] == 52.0


def test_case_shape_of_a_constant_row() -> None:
    case = cases_for_spec(SPEC, SHAPES)[0]
    assert case.shape == Shape("decode", 1, 1)
    assert replace(case, context=7).shape.context == 7
