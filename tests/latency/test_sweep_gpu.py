"""A small sweep on a GPU: every operator's decode step, and what a row says. Run: make gpu"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from archsearch import operators
from archsearch.latency import Case
from archsearch.latency import predict
from archsearch.latency import profile
from archsearch.latency.cases import cases_for_spec
from archsearch.latency.cases import config_key
from archsearch.latency.ceilings import measure_ceilings
from archsearch.latency.plan import MIXERS
from archsearch.latency.plan import Grid
from archsearch.latency.shelf import Shelf
from archsearch.latency.sweep import measure_case
from archsearch.latency.whole import WholeModel
from archsearch.operators import Shape
from archsearch.space import parse

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def poisoned_memory() -> None:
    """Times are of memory as it comes: to fill it is a kernel too."""


def test_decode_rows_of_all_operators(tmp_path: Path) -> None:
    grid = Grid(codes=MIXERS, widths=(1024,), batches=(1,), contexts=(1024,))
    cases = [case for case in grid.cases() if case.phase == "decode"]
    table = profile(cases, folder=tmp_path / "t", device="cuda")
    rows = table.rows
    assert (rows["error"] == "").all(), rows["error"].tolist()
    assert rows["used_cuda_graph"].all()
    assert (rows["kernels"] >= 1).all()
    l2_bytes = torch.cuda.get_device_properties("cuda").L2_cache_size
    layers = rows[~rows["operator"].isin(["embedding", "head"])]
    assert ((layers["stack_bytes"] > 2 * l2_bytes) | (layers["stack"] == 32)).all()
    assert (layers["latency_us_p90"] < 1.5 * layers["latency_us_p10"]).all()
    (session,) = table.meta["sessions"]
    assert session["ceilings"]["read_bytes_s"] > 0
    assert session["ceilings"]["replay_us"] < 20
    told = rows[rows["power_w"].notna()]
    assert (told["power_w"] > 0).all()
    assert told["energy_j"].tolist() == pytest.approx(
        (1e-6 * told["power_w"] * told["steady_us"]).tolist()
    )


def test_what_does_not_fit_is_a_row_and_the_next_case_runs() -> None:
    ceilings, shelf = measure_ceilings("cuda"), Shelf("cuda")
    config = config_key(operators.get("attention").configure(1024, num_kv_heads=8))
    for context, error in ((1 << 24, "of GPU memory for one layer"), (1024, "")):
        case = Case("attention", config, 1024, "decode", 128, context, "bfloat16")
        row = measure_case(case, device="cuda", shelf=shelf, ceilings=ceilings)
        assert error in row["error"]
        assert bool(row["error"]) == bool(error), row["error"]


@pytest.mark.parametrize("pattern", ["(m2 f)x16 @1280", "(d f a f)x8 @2048"])
def test_a_model_takes_as_long_as_its_rows(pattern: str, tmp_path: Path) -> None:
    spec, decode = parse(pattern), Shape("decode", 1, 1024, "bfloat16")
    shapes = {decode: 0.03, Shape("prefill", 8, 2048, "bfloat16"): 0.05}
    table = profile(cases_for_spec(spec, shapes), folder=tmp_path / "t", device="cuda")
    model = WholeModel(spec, device="cuda", dtype="bfloat16")
    for shape, rel in shapes.items():
        found, measured = predict(spec, shape, table), model.measure(shape)
        if shape is decode:
            assert found.latency_us == pytest.approx(measured.timing.p50_us, rel=rel)
        assert found.steady_us == pytest.approx(measured.timing.steady_us, rel=rel)
        if measured.energy_j is not None:
            # rows in a model are as hot as their neighbours, alone as hot as they are themselves
            assert found.energy_j == pytest.approx(measured.energy_j, rel=0.15)
