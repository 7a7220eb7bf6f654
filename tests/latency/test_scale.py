"""Estimates for other GPUs: what scales with what, the bounds, and the refusals."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from archsearch.hardware import PEAKS
from archsearch.latency import Case
from archsearch.latency import predict
from archsearch.latency import scaled
from archsearch.latency.cases import model_cases
from archsearch.latency.scale import KERNELS
from archsearch.latency.scale import find_gpu
from archsearch.operators import Shape
from archsearch.profiles import Table
from archsearch.profiles import make_rows
from archsearch.space import parse

SPEC = parse("a f @64", vocab_size=100)
SHAPE = Shape("decode", 1, 128, "bfloat16")
CASES = dict(zip(("embedding", "a", "f", "head"), model_cases(SPEC, SHAPE), strict=True))
H200, H100 = PEAKS["H200"], PEAKS["H100"]


def row(case: Case, us: float, **cost: Any) -> dict[str, Any]:
    return {
        **asdict(case),
        "backend": "torch",
        "latency_us_p10": us,
        "latency_us_p50": us,
        "latency_us_p90": us,
        "repeats": 9,
        "stack": 6,
        "stack_bytes": 1,
        "used_cuda_graph": True,
        "error": "",
        "energy_j": 1.0,
        "kernels": 0,
        "flops": 0,
        **cost,
    }


def table(*rows: dict[str, Any], name: str = "NVIDIA H200") -> Table:
    hardware = {"name": name, "kind": "gpu"}
    return Table("nvidia-h200", make_rows(rows), {"sources": {}, "hardware": hardware})


def times(found: Table) -> list[float]:
    first = found.rows.iloc[0]
    return [first[f"latency_us_{name}"] for name in ("p10", "p50", "p90")]


def test_memory_bound_rows_scale_with_the_bandwidth() -> None:
    # ten microseconds of traffic at half the peak
    traffic = row(CASES["f"], 20.0, bytes=int(10e-6 * H200.bandwidth_bytes_s), flops=1000)
    low, middle, high = times(scaled(table(traffic), "H100"))
    assert middle == pytest.approx(20.0 * 4.8 / 3.35)
    assert (low, high) == pytest.approx((20.0, 20.0 * 4.8 / 3.35))


def test_compute_bound_rows_scale_with_the_flop_rate() -> None:
    work = row(CASES["f"], 20.0, bytes=1000, flops=int(10e-6 * H200.bf16_flops_s))
    low, middle, high = times(scaled(table(work), "A100"))
    assert middle == pytest.approx(20.0 * 989.4 / 312)
    # all of it as the launches, all of it as the computation
    assert (low, high) == pytest.approx((10.0 * 989.4 / 312, 20.0 * 989.4 / 312))


def test_launches_scale_with_launches() -> None:
    kernels = 4
    launch, traffic = kernels * H200.launch_us, int(10e-6 * H200.bandwidth_bytes_s)
    mixed = row(CASES["f"], 10.0 + launch, bytes=traffic, kernels=kernels)
    _, middle, _ = times(scaled(table(mixed), "Orin"))
    orin = PEAKS["Orin"]
    slower = H200.bandwidth_bytes_s / orin.bandwidth_bytes_s
    assert middle == pytest.approx(10.0 * slower + kernels * orin.launch_us, rel=1e-5)


def test_what_bounds_a_row_may_change_with_the_gpu() -> None:
    # just below the H200's ridge: on a GPU with less computation per byte, above it
    ridge = H200.bf16_flops_s / H200.bandwidth_bytes_s
    traffic = 10_000_000
    near = row(CASES["f"], 5.0, bytes=traffic, flops=int(traffic * ridge * 0.9))
    (_, middle, _), target = times(scaled(table(near), "RTX 4090")), PEAKS["RTX 4090"]
    efficiency = 1e6 * traffic / H200.bandwidth_bytes_s / 5.0
    expected = 1e6 * traffic * ridge * 0.9 / target.bf16_flops_s / efficiency
    assert middle == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("gpu", [gpu for gpu in PEAKS if gpu != "H200"])
@pytest.mark.parametrize("kernels", [0, 3, 500, None])
def test_bounds_hold_the_estimate_and_the_floor(gpu: str, kernels: int | None) -> None:
    rows = [
        row(CASES["a"], 8.0, bytes=9_000_000, flops=10**9, kernels=kernels),
        row(CASES["f"], 90.0, bytes=9_000_000, flops=10**10, kernels=kernels),
        row(CASES["embedding"], 2.0, bytes=0, kernels=kernels),
    ]
    found = scaled(table(*rows), gpu).rows
    low, middle, high = (found[f"latency_us_{name}"] for name in ("p10", "p50", "p90"))
    assert (low > 0).all()
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert (found["roofline_us"] <= middle * (1 + 1e-9)).all()
    assert found["energy_j"].isna().all()


def test_the_same_gpu_gives_the_measured_times() -> None:
    traffic = row(CASES["f"], 20.0, bytes=24_000_000, kernels=3)
    measured = table(traffic)
    assert scaled(measured, "H200") is measured


def test_uncounted_kernels_are_those_of_alike_rows() -> None:
    traffic = {"bytes": int(10e-6 * H200.bandwidth_bytes_s)}
    other = Case("ffn", CASES["f"].config, 128, "decode", 1, 0, "bfloat16")
    known = row(other, 40.0, **traffic, kernels=2)
    unknown = row(CASES["f"], 40.0, **traffic, kernels=None)
    told = row(CASES["f"], 40.0, **traffic, kernels=2)
    assert times(scaled(table(unknown, known), "A100")) == times(scaled(table(told), "A100"))
    usual = row(CASES["f"], 40.0, **traffic, kernels=KERNELS)
    assert times(scaled(table(unknown), "A100")) == times(scaled(table(usual), "A100"))


def test_a_model_is_predicted_from_an_estimate() -> None:
    traffic = {"bytes": int(10e-6 * H200.bandwidth_bytes_s)}
    measured = table(*(row(case, 20.0, **traffic) for case in CASES.values()))
    estimate = scaled(measured, "H100")
    assert estimate.label == "H100, estimated from nvidia-h200"
    assert estimate.meta["estimate"]["target"] == "H100"
    found = predict(SPEC, SHAPE, estimate)
    assert found.latency_us == pytest.approx(80.0 * 4.8 / 3.35)
    assert (found.low_us, found.high_us) == pytest.approx((80.0, 80.0 * 4.8 / 3.35))
    assert found.energy_j is None
    assert predict(SPEC, SHAPE, measured).energy_j == 4.0


def test_the_replay_of_the_graph_scales_with_launches() -> None:
    rows = [row(case, 20.0, bytes=1000, kernels=0) for case in CASES.values()]
    plain = table(*rows)
    ceilings = {"replay_us": 3.0, "read_bytes_s": 1.0}
    sessions = [{"id": 0, "ceilings": ceilings}, {"id": 1}]
    replayed = Table(plain.name, plain.rows, {**plain.meta, "sessions": sessions})
    launches = PEAKS["Orin"].launch_us / H200.launch_us
    more = [predict(SPEC, SHAPE, scaled(one, "Orin")).latency_us for one in (replayed, plain)]
    assert more[0] - more[1] == pytest.approx(3.0 * launches)
    assert ceilings["replay_us"] == 3.0


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a100", "A100"),
        ("A100-SXM4-40GB", "A100-SXM4-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("Jetson AGX Orin", "Orin"),
    ],
)
def test_gpus_are_found_as_people_write_them(name: str, found: str) -> None:
    assert find_gpu(name) == found


def test_unknown_gpus_and_tables_are_refused() -> None:
    traffic = row(CASES["f"], 20.0, bytes=1000)
    with pytest.raises(ValueError, match=r"did you mean 'RTX 4090'\? known are B200, H200"):
        scaled(table(traffic), "RTX 4080")
    with pytest.raises(ValueError, match="no GPU 'TPU' is known; known are"):
        scaled(table(traffic), "TPU")
    with pytest.raises(ValueError, match="measured on AMD EPYC, whose peaks are not known"):
        scaled(table(traffic, name="AMD EPYC"), "H100")
