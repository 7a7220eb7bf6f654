"""What a row times: how many layers, which are shared, and what is said about the GPU."""

from __future__ import annotations

import os
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from archsearch.latency import sweep
from archsearch.latency import warm
from archsearch.latency.cases import Case
from archsearch.latency.ceilings import Ceilings
from archsearch.latency.nvml import Meter
from archsearch.latency.nvml import Reading
from archsearch.latency.nvml import Sensor
from archsearch.latency.plan import Grid
from archsearch.latency.shelf import Shelf
from archsearch.latency.stack import stack_size
from archsearch.timing import Timing

MB, GB = 10**6, 10**9
FFN = Case("ffn", '{"activation":"swiglu","intermediate_size":32}', 16, "decode", 1, 0, "float32")
EMBEDDING = Case("embedding", '{"vocab_size":50}', 16, "decode", 1, 0, "float32")
HEAD = Case("head", '{"head_norm":false,"vocab_size":50}', 16, "decode", 1, 0, "float32")


@pytest.mark.parametrize(
    ("one_bytes", "count"),
    [(1 * MB, 32), (60 * MB, 32), (200 * MB, 20), (5 * GB, 2), (70 * GB, 1)],
)
def test_stacks_have_the_bytes_of_a_model_and_fit_the_memory(one_bytes: int, count: int) -> None:
    found = stack_size(one_bytes, (2, 32), 4 * GB, 50 * MB, 140 * GB)
    assert found == count
    assert found == 32 or found * one_bytes >= 4 * GB


def test_a_layer_that_does_not_fit_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"needs 130 GB .* the GPU has 140 GB"):
        stack_size(130 * GB, (2, 32), 4 * GB, 50 * MB, 140 * GB)
    with pytest.raises(ValueError, match="needs 0 GB"):
        # one alone would stay in the cache
        stack_size(60 * MB, (2, 32), 4 * GB, 50 * MB, 100 * MB)


def test_a_shelf_shares_layers_within_a_group() -> None:
    shelf = Shelf("cpu")
    before = torch.get_rng_state()
    first = shelf.layers(FFN, 2)
    assert shelf.layers(FFN, 3)[:2] == first
    weights = [layer.mixer.get_parameter("up_proj.weight") for layer in shelf.layers(FFN, 3)]
    assert not torch.equal(weights[0], weights[1])
    assert shelf.parts(HEAD, 1)[0].spec.vocab_size == 50
    assert shelf.layers(FFN, 1)[0] is not first[0], "another group came in between"
    assert torch.equal(torch.get_rng_state(), before)


def test_the_parts_of_a_call_share_what_it_takes() -> None:
    measured = Timing(10.0, 12.0, 14.0, 5, True, 6.0, steady_us=16.0)
    half = measured.per(2)
    assert (half.p50_us, half.kernels, half.steady_us) == (6.0, 3.0, 8.0)
    more = measured.plus(1.0)
    assert (more.p10_us, more.steady_us) == (11.0, 17.0)
    nothing_known = Timing(1.0, 1.0, 1.0, 1)
    assert nothing_known.per(2).kernels is None
    assert nothing_known.plus(1.0).steady_us is None


@pytest.mark.parametrize("case", [FFN, EMBEDDING], ids=lambda case: case.operator)
def test_no_row_holds_what_the_graph_itself_costs(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a sample is one of sixteen calls in a graph
    measured = Timing(10.0, 12.0, 14.0, 5, True, 6.0, calls=16, steady_us=16.0)
    monkeypatch.setattr(sweep, "_time", lambda *_: measured)
    # as wide as the layers that run between on a CPU must be
    wide = replace(case, hidden_size=64)
    row = sweep.measure_case(wide, ceilings=Ceilings(4e12, 7e14, replay_us=2.0))
    assert row["latency_us_p50"] == 12.0 - 2 / 16
    assert row["steady_us"] == 16.0 - 2 / 16


def test_energy_is_that_of_steady_work() -> None:
    assert Reading(power_w=500.0).energy_j(2000.0) == 1.0
    assert Reading(power_w=500.0).energy_j(None) is None
    assert Reading().energy_j(2000.0) is None


class FakeNVML:
    """As much of pynvml as is asked; `missing` functions raise as the driver does."""

    class NVMLError(Exception):
        """What pynvml raises."""

    def __init__(self, *missing: str, reasons: int = 0) -> None:
        self._missing, self._reasons = missing, reasons

    def _answer(self, name: str, value: Any) -> Any:
        if name in self._missing:
            raise self.NVMLError(name)
        return value

    def nvmlDeviceGetFieldValues(self, handle: object, fields: list[int]) -> Any:
        value = SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=412_000))
        return self._answer("instant", [value])

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:
        return self._answer("average", 300_000)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: object) -> int:
        return self._answer("limit", 700_000)

    def nvmlDeviceGetClockInfo(self, handle: object, kind: int) -> int:
        assert kind == 1
        return self._answer("clock", 1980)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: object) -> int:
        return self._answer("reasons", self._reasons)


def test_the_sensor_reads_what_the_driver_tells() -> None:
    assert Sensor(FakeNVML(), None).read() == Reading(412.0, 1980, False)
    assert Sensor(FakeNVML("instant"), None).read().power_w == 300.0
    everything = ("instant", "average", "clock", "reasons")
    assert Sensor(FakeNVML(*everything), None).read() == Reading()


@pytest.mark.parametrize(
    ("nvml", "reading", "spare"),
    [
        (FakeNVML(), Reading(650.0, 1980, False), True),
        (FakeNVML(), Reading(652.0, 1980, False), False),
        (FakeNVML(), Reading(500.0, 1980, True), False),
        (FakeNVML(), Reading(500.0), False),
        (FakeNVML(), Reading(), False),
        (FakeNVML("limit"), Reading(100.0, 1980, False), False),
    ],
)
def test_power_is_to_spare_far_below_the_cap(
    nvml: FakeNVML, reading: Reading, spare: bool
) -> None:
    assert Sensor(nvml, None).has_spare(reading) is spare


@pytest.mark.parametrize(
    ("reasons", "throttled"),
    # idle, application clocks, display; power cap, heat, power brake
    [(0x1, False), (0x2, False), (0x100, False), (0x4, True), (0x40, True), (0x80, True)],
)
def test_slowdowns_are_told_from_idling(reasons: int, throttled: bool) -> None:
    assert Sensor(FakeNVML(reasons=reasons), None).read().throttled is throttled


def test_the_meter_takes_medians_and_remembers_a_slowdown() -> None:
    readings = iter(
        [Reading(100.0, 1000, True), *(Reading(watts, 1900, False) for watts in (500.0, 600.0))]
    )
    fake = SimpleNamespace(read=lambda: next(readings), has_spare=lambda seen: seen.power_w < 550)
    meter = Meter(fake)  # type: ignore[arg-type]
    assert [meter() for _ in range(3)] == [True, True, False]
    assert meter.reading == Reading(500.0, 1900, True)
    nothing = Meter(None)
    assert nothing() is False
    assert nothing.reading == Reading()


def test_what_is_compiled_ahead_is_little_and_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(
        codes=("a", "d"),
        widths=(64,),
        batches=(1, 2, 4),
        contexts=(16, 32),
        train_contexts=(16,),
        vocab_size=50,
        dtype="float32",
    )
    monkeypatch.setattr(warm, "COMPILED", ("torch",))
    monkeypatch.setattr(warm, "PREFERRED", ())
    groups = warm.to_compile(grid.cases())
    assert [group[0].operator for group in groups] == ["deltanet", "ffn"]
    shapes = [(case.phase, case.batch, case.context) for case in groups[0]]
    assert shapes == [
        ("decode", 1, 0),
        ("decode", 2, 0),
        ("prefill", 1, 16),
        ("prefill", 2, 16),
        ("train", 1, 16),
    ]
    assert warm.run_group(groups[0], "cpu", None)
    assert not warm.run_group(groups[0], "cpu", 0.0), "the time is over"
    assert warm.warm([], "cpu", jobs=4) == 0
    # kernels of our own have blocks by batch
    monkeypatch.setattr(warm, "PREFERRED", ("deltanet",))
    own = [case.batch for case in warm.to_compile(grid.cases())[0] if case.phase == "decode"]
    assert own == [1, 2, 4]
    # and attention's by the room of its cache, while that is small
    monkeypatch.setattr(warm, "PREFERRED", ("attention", "head"))
    monkeypatch.setattr(warm, "MOST_TOKENS", 64)
    fused = [
        [(case.batch, case.context) for case in group if case.phase == "decode"]
        for group in warm.to_compile(grid.cases())
        if group[0].operator in warm.PREFERRED
    ]
    assert fused == [[(1, 16), (1, 32), (2, 16), (2, 32), (4, 16)], [(1, 0), (2, 0), (4, 0)]]


def test_compiling_processes_that_die_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # the first thing that each of them does
    monkeypatch.setattr(warm, "_take_turns", os._exit)
    cases = Grid(codes=("gd",), widths=(64,), batches=(1,), contexts=(16,)).cases()
    with pytest.raises(BrokenProcessPool):
        warm.warm(cases, "cpu", jobs=1)
