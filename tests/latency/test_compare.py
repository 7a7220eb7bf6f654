"""The paper's comparison: what is computed from measurements, what is kept, what fits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from archsearch.latency import compare
from archsearch.latency import largest_batch
from archsearch.latency import measured
from archsearch.latency import table6
from archsearch.latency.question import Question
from archsearch.latency.whole import DoesNotFit
from archsearch.latency.whole import Measurement
from archsearch.latency.whole import WholeModel
from archsearch.operators import Shape
from archsearch.report.figures import png
from archsearch.report.figures.table6 import plot_comparison
from archsearch.space import ArchSpec
from archsearch.space import count
from archsearch.space import load
from archsearch.space import parse

HYBRID = parse("d f m2 f @64", vocab_size=50, num_meta_tokens=2, name="hybrid")
DENSE = parse("a f @64", vocab_size=50, name="dense")
QUESTION = Question(tokens=8, input_tokens=12, output_tokens=4, dtype="float32", max_batch=3)
QUICK: dict[str, Any] = {"device": "cpu", "budget_s": 0.0}


@pytest.fixture(autouse=True)
def measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archsearch.timing.CPU_PASSES", 1)


def test_the_mean_step_is_integrated_over_the_tokens() -> None:
    # a step that grows linearly is told exactly by any points
    contexts = [1, 40, 99]
    seconds = table6.integrate(contexts, [2.0 + 0.1 * c for c in contexts], 100)
    assert seconds == pytest.approx(sum(2.0 + 0.1 * c for c in range(1, 100)) / 99 * 100)
    assert table6.integrate([1], [2.0], 2) == 4.0
    assert Question().contexts == (1, 4096, 8191)
    assert Question(tokens=2).contexts == (1,)


def test_a_line_says_what_its_rows_say() -> None:
    flash, dense = load("nemotron-flash-1b"), load("qwen3-0.6b")
    question = Question(tokens=101, output_tokens=10)
    rows = fake_rows(flash, step_us=100.0, batch=40) | fake_rows(dense, step_us=300.0, batch=8)
    first, second = table6.lines([flash, dense], rows, question)
    assert first.latency_s == pytest.approx(101 * 100e-6)
    assert second.latency_s == pytest.approx(101 * 300e-6)
    # 1 GB at 100 TB/s takes 10 us
    assert first.latency_floor_share == pytest.approx(0.1)
    assert first.tokens_per_s == pytest.approx(40 / 1e-3)
    assert first.floor_share == pytest.approx(0.01)
    assert first.total_tokens_per_s == pytest.approx(40 * 10 / (40 * 0.5 + 10 * 1e-3))
    assert (second.latency_times, second.throughput_times) == pytest.approx((3.0, 5.0))
    assert second.against == "nemotron-flash-1b"
    assert second.paper_latency_times == pytest.approx(1.9, abs=0.01)
    assert second.paper_throughput_times == pytest.approx(45.6, abs=0.05)
    (alone,) = table6.lines([dense], rows, question)
    assert (alone.latency_times, alone.paper_latency_s) == (None, 27.55)


def test_a_model_of_ones_own_is_held_against_the_nearest_flash() -> None:
    specs = [load("nemotron-flash-1b"), load("nemotron-flash-3b"), parse("(a f)x24 @3072")]
    rows = {}
    for spec in specs:
        rows |= fake_rows(spec, step_us=50.0, batch=2)
    assert table6.lines(specs, rows, Question())[2].against == "nemotron-flash-3b"
    # a name alone makes no published model
    own = DENSE.model_copy(update={"name": "qwen3-0.6b"})
    (line,) = table6.lines([own], fake_rows(own, step_us=50.0, batch=2), Question())
    assert (line.paper_latency_s, line.against) == (None, "")


def test_the_published_figures_are_those_of_presets() -> None:
    published = table6.published()
    assert len(published) == 10
    for name, one in published.items():
        assert load(name).name == name
        assert one.against in published
        assert one.latency_s >= published[one.against].latency_s
    assert "2511.18890" in table6.source()["source"]
    # the paper's abstract rounds its own table, and the model card swaps these two
    assert published["qwen2.5-3b"].latency_s / 28.71 == pytest.approx(1.72, abs=0.01)
    assert published["qwen3-1.7b"].latency_s / 28.71 == pytest.approx(1.26, abs=0.01)


def test_a_step_moves_all_weights_and_what_it_remembers() -> None:
    shape = Shape("decode", 1, 100)
    moved = count.step_bytes(DENSE, shape)
    weights, cache = 4 * count.parameters(DENSE), count.state_bytes(DENSE, 100)
    # beyond these only the new token and what passes between layers
    assert 0 <= moved - weights - cache < 0.02 * weights
    untied = parse("a f @64", vocab_size=50, tie_embeddings=False)
    assert count.step_bytes(untied, shape) == moved
    more = count.step_bytes(HYBRID, replace(shape, batch=9)) - count.step_bytes(HYBRID, shape)
    states = count.state_bytes(HYBRID, 100, 8)
    assert 2 * states <= more < 2.2 * states


def test_measure_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Shape, int | None]] = []
    real = WholeModel.measure

    def counted(self: WholeModel, shape: Shape, **options: Any) -> Measurement:
        calls.append((shape, options.get("capacity")))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, shape, **options)

    monkeypatch.setattr(WholeModel, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        compare.measure_all([DENSE, HYBRID], QUESTION, tmp_path, **QUICK)
    assert [row["part"] for row in measured.read_rows(tmp_path, len)] == ["latency"]
    said: list[str] = []
    compare.measure_all(
        [DENSE, HYBRID],
        QUESTION,
        tmp_path,
        on_part=lambda spec, part: said.append(f"{spec.name} {part}"),
        on_spec=lambda spec, rows: said.append(f"{spec.name}: {len(rows)}"),
        **QUICK,
    )
    assert said == [
        *("dense prefill", "dense throughput", "dense: 2"),
        *("hybrid latency", "hybrid prefill", "hybrid throughput", "hybrid: 3"),
    ]
    assert calls[:3] == [(Shape("decode", 1, context), 8) for context in (1, 4, 7)]
    assert calls[-2:] == [(Shape("prefill", 1, 12), None), (Shape("decode", 3, 14), 16)]
    rows = compare.valid_rows(tmp_path, QUESTION, "cpu")
    for line in table6.lines([DENSE, HYBRID], rows, QUESTION):
        assert not line.errors
        assert line.batch == 3
        assert min(line.latency_s or 0, line.tokens_per_s or 0, line.total_tokens_per_s or 0) > 0
        # no bandwidth is known of a CPU
        assert line.floor_share is None
    calls.clear()
    compare.measure_all([DENSE, HYBRID], QUESTION, tmp_path, **QUICK)
    assert not calls
    # another question about the throughput leaves the rest
    compare.measure_all([DENSE], replace(QUESTION, output_tokens=2), tmp_path, **QUICK)
    assert calls == [(Shape("decode", 3, 13), 14)]


def test_what_was_measured_otherwise_does_not_count(tmp_path: Path) -> None:
    compare.measure_all([DENSE], QUESTION, tmp_path, **QUICK)
    assert len(compare.valid_rows(tmp_path, QUESTION, "cpu")) == 3
    row = measured.read_rows(tmp_path, len)[0]
    changes: tuple[dict[str, Any], ...] = (
        {"torch": "1.0"},
        {"hardware": "abacus"},
        {"sources": {"ffn": "x"}},
        {"method": 0},
        {"packages": {"triton": {"triton": "0.1"}}},
    )
    for change, valid in (({}, 1), *((change, 0) for change in changes)):
        (tmp_path / measured.MEASURED_FILE).write_text(json.dumps(row | change) + "\n")
        assert len(compare.valid_rows(tmp_path, QUESTION, "cpu")) == valid, change


def test_a_failure_is_a_row_and_tried_again_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = WholeModel.__init__

    def failing(self: WholeModel, spec: ArchSpec, **options: Any) -> None:
        order.append(spec.name)
        if len(order) <= 3:
            raise DoesNotFit("dense does not fit the abacus")
        real(self, spec, **options)

    monkeypatch.setattr(WholeModel, "__init__", failing)
    compare.measure_all([DENSE], QUESTION, tmp_path, **QUICK)
    rows = compare.valid_rows(tmp_path, QUESTION, "cpu")
    (line,) = table6.lines([DENSE], rows, QUESTION)
    assert line.errors == ("latency, prefill, throughput: dense does not fit the abacus",)
    compare.measure_all([DENSE, HYBRID], QUESTION, tmp_path, **QUICK)
    assert order[3:] == ["hybrid", "dense"]
    assert all(not row["error"] for row in compare.valid_rows(tmp_path, QUESTION, "cpu").values())


class FakeModel:
    """A GPU whose memory ends at so many rows, told as torch or as a library tells it."""

    spec, dtype = DENSE, "float32"

    def __init__(self, free: int, fits: int, error: Exception) -> None:
        self.free, self.fits, self.error = free, fits, error
        self.tried: list[int] = []

    def free_bytes(self) -> int:
        return self.free

    def measure(self, shape: Shape, *, budget_s: float, capacity: int | None = None) -> int:
        if (shape.batch, shape.context, capacity) == (1, 1, None):
            assert not self.tried, "it warms up once, before the memory is full"
            return 0
        assert (shape.context, capacity) == (90, 100)
        self.tried.append(shape.batch)
        if shape.batch > self.fits:
            raise self.error
        return shape.batch


@pytest.mark.parametrize(
    "error",
    [
        DoesNotFit("full"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
    ],
)
def test_the_largest_batch_is_found_downwards(error: Exception) -> None:
    room = largest_batch.SPARE_BYTES + int(largest_batch.SPARE_SHARE * 2**31)
    one = largest_batch.row_bytes(DENSE, 100, "float32")
    guess = (2**31 - room) // one // 8 * 8
    options: dict[str, Any] = {"context": 90, "capacity": 100, "limit": None, "budget_s": 0.0}
    model: Any = FakeModel(2**31, guess, error)
    assert largest_batch.measure_largest_batch(model, **options) == (guess, 1)
    model = FakeModel(2**31, guess - 1, error)
    found, tries = largest_batch.measure_largest_batch(model, **options)
    assert (found, tries) == (guess - guess // 16 - (guess - guess // 16) % 8, 2)
    # however little fits, it is not tried for long
    model = FakeModel(2**31, 1, error)
    assert largest_batch.measure_largest_batch(model, **options)[0] == 1
    assert len(model.tried) < 20
    with pytest.raises(type(error), match=str(error)):
        largest_batch.measure_largest_batch(FakeModel(2**31, 0, error), **options)  # type: ignore[arg-type]
    model = FakeModel(2**31, guess, error)
    assert largest_batch.measure_largest_batch(model, **options | {"limit": 5}) == (5, 1)


def test_another_error_is_no_lack_of_memory() -> None:
    model: Any = FakeModel(2**31, 0, RuntimeError("illegal memory access"))
    with pytest.raises(RuntimeError, match="illegal"):
        largest_batch.measure_largest_batch(
            model, context=90, capacity=100, limit=None, budget_s=0.0
        )
    assert len(model.tried) == 1


def test_what_a_row_takes_is_its_state_and_its_logits() -> None:
    spec = load("nemotron-flash-1b")
    state = count.state_bytes(spec, 33792, 1, "bfloat16")
    assert 1.0 < largest_batch.row_bytes(spec, 33792, "bfloat16") / state < 1.05
    assert largest_batch.fitting_rows(0, 10**6) == 1
    assert largest_batch.fitting_rows(2**30 + 2**29, 2**29) == 1
    assert [largest_batch.fewer_rows(n, 16) for n in (1, 2, 20, 64, 504)] == [1, 1, 19, 60, 472]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"tokens": 1}, "tokens must be at least 2; got 1"),
        ({"input_tokens": 0}, "input_tokens must be positive; got 0"),
        ({"max_batch": -1}, "max_batch must be positive; got -1"),
        ({"dtype": "int8"}, "dtype must be one of"),
    ],
)
def test_a_bad_question_is_one_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Question(**fields)


def test_results_hold_every_line_with_its_provenance(tmp_path: Path) -> None:
    flash, dense = load("nemotron-flash-1b"), load("qwen3-0.6b")
    rows = fake_rows(flash, step_us=100.0, batch=40) | fake_rows(dense, step_us=300.0, batch=8)
    rows[dense.id, "throughput"] = rows[dense.id, "throughput"] | {"error": "it is full"}
    found, report = table6.summarise([flash, dense], Question(), rows, device="cpu")
    table6.write_results(found, report, tmp_path)
    table = pd.read_csv(tmp_path / table6.RESULTS_FILE).set_index("name")
    assert table.loc["qwen3-0.6b", "paper_tokens_per_s"] == 160
    assert table.loc["qwen3-0.6b", "errors"] == "throughput: it is full"
    assert pd.isna(table.loc["qwen3-0.6b", "tokens_per_s"])
    kept = json.loads((tmp_path / table6.REPORT_FILE).read_text())
    assert kept["git_commits"] == ["abc"]
    assert kept["software"]["torch"] == str(torch.__version__)
    assert kept["read_bytes_s"] == [1e14]
    assert [model["batch"] for model in kept["models"]] == [40, None]
    assert "trapezoid" in kept["how"]["latency"]


def test_the_figure_draws_what_there_is() -> None:
    specs = [load("nemotron-flash-1b"), load("qwen3-0.6b"), DENSE]
    rows = fake_rows(specs[0], step_us=100.0, batch=40) | fake_rows(DENSE, step_us=10.0, batch=2)
    lines = table6.lines(specs, rows, Question())
    figure = plot_comparison(lines, "fake GPU", "H100")
    assert png(figure, dpi=40).startswith(b"\x89PNG")
    left, right = figure.axes
    points = [len(one.get_offsets()) for half in (left, right) for one in half.collections]
    assert points == [2, 2, 2, 2, 2]
    texts = {text.get_text() for text in right.texts}
    assert {"45.6×", "20.0×"} <= texts
    (empty,) = plot_comparison(table6.lines(specs, {}, Question()), "fake GPU", "H100").axes
    assert empty.texts[0].get_text() == "nothing was measured yet"


def fake_rows(spec: ArchSpec, *, step_us: float, batch: int) -> dict[Any, Any]:
    """Invented: one step of `step_us` at every context, 1 ms at `batch`, 0.5 s of prefill."""
    base = {"error": "", "read_bytes_s": 1e14, "measured": "2000-01-01", "git_commit": "abc"}
    return {
        (spec.id, "latency"): base
        | {"contexts": [1, 50, 100], "step_us": 3 * [step_us], "step_bytes": 3 * [10**9]},
        (spec.id, "prefill"): base | {"prefill_us": 5e5},
        (spec.id, "throughput"): base | {"batch": batch, "step_us": 1000.0, "step_bytes": 10**9},
    }


def test_a_model_depends_on_the_fused_steps_that_ran_the_head_among_them() -> None:
    ran = {"attention": "triton", "ffn": "sdpa", "head": "triton"}
    plain, fused = measured.sources_of(DENSE, {}), measured.sources_of(DENSE, ran)
    assert set(plain) == {"attention", "embedding", "ffn", "head"}
    assert set(fused) - set(plain) == {"attention.step", "head.step"}
    assert all(fused.values())
