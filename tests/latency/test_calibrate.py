"""Calibration: its arithmetic, and a whole one with tiny models on this CPU."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from archsearch import latency
from archsearch.latency import calibrate
from archsearch.latency import measured
from archsearch.latency.agreement import Comparison
from archsearch.latency.agreement import group_errors
from archsearch.latency.agreement import kendall_tau
from archsearch.latency.agreement import largest_band
from archsearch.latency.agreement import rank_orders
from archsearch.latency.agreement import target_of
from archsearch.latency.calibrate import Plan
from archsearch.latency.calibration import CALIBRATION_FILE
from archsearch.latency.calibration import CalibrationError
from archsearch.latency.calibration import Group
from archsearch.latency.calibration import calibration_error
from archsearch.latency.calibration import write_calibration
from archsearch.latency.missing import Missing
from archsearch.latency.missing import reasons
from archsearch.latency.predict import predict
from archsearch.latency.repeat import repeat_rows
from archsearch.latency.repeat import sample_rows
from archsearch.latency.repeat import write_repeat
from archsearch.latency.whole import WholeModel
from archsearch.operators import Shape
from archsearch.profiles import Table
from archsearch.profiles import load_table
from archsearch.space import parse

NOTATIONS = ("a f @64", "(m2 f)x2 @64", "m2 f a f @64")
SHAPES = (Shape("decode", 1, 16), Shape("decode", 2, 16), Shape("prefill", 1, 16))


def comparison(name: str, batch: int, predicted: float, measured_us: float) -> Comparison:
    return Comparison(name, Shape("decode", batch, 1024), predicted, measured_us)


@pytest.fixture(scope="module", autouse=True)
def measured_once() -> Iterator[None]:
    """Quick instead of quiet."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("timing", "latency.sweep", "latency.repeat"):
            patch.setattr(f"archsearch.{module}.CPU_PASSES", 1)
        yield


@pytest.fixture(scope="module")
def set_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny architectures; files, since the short form carries no vocabulary."""
    folder = tmp_path_factory.mktemp("set")
    lines = []
    for number, notation in enumerate(NOTATIONS):
        spec = parse(notation, vocab_size=50)
        (folder / f"{number}.json").write_text(spec.resolved_json())
        lines += ["[[architecture]]", f'name = "tiny-{number}"', f'spec = "{number}.json"']
    (folder / "set.toml").write_text("\n".join(lines))
    return folder / "set.toml"


@pytest.fixture(scope="module")
def folder_of_table(set_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables") / "mine"
    specs = calibrate.read_architectures(set_file)
    cases = [case for spec in specs for case in latency.cases_for_spec(spec, SHAPES)]
    latency.profile(cases, folder=folder, budget_s=0.0)
    return folder


@pytest.fixture
def plan(set_file: Path, folder_of_table: Path) -> Plan:
    table = load_table(folder_of_table)
    return Plan(calibrate.read_architectures(set_file), SHAPES, table)


def test_kendall_tau_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 6, 9), rng.integers(0, 6, 9)
        score, x_pairs, y_pairs = 0, 0, 0
        for i, j in itertools.combinations(range(9), 2):
            a, b = int(np.sign(x[i] - x[j])), int(np.sign(y[i] - y[j]))
            score, x_pairs, y_pairs = score + a * b, x_pairs + abs(a), y_pairs + abs(b)
        assert kendall_tau(x, y) == pytest.approx(score / (x_pairs * y_pairs) ** 0.5)
    assert kendall_tau([1, 2, 3], [10, 20, 30]) == 1.0
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1.0
    assert kendall_tau([1, 1], [1, 2]) is None


def test_the_largest_band_is_found() -> None:
    values = [100.0, 200.0, 205.0, 122.0, 110.0, 123.0, 90.0]
    # 90 to 110 and 100 to 122 are bands around one centre; 100 to 123 is too wide
    assert largest_band(values) == [6, 0, 4]
    assert largest_band([*values, 115.0]) == [0, 4, 7, 3]
    assert largest_band([]) == []


def test_errors_by_group() -> None:
    one = [comparison("m", 1, 100 + off, 100.0) for off in (-4, 1, 2, 0, 3)]
    many = [comparison("m", batch, 110, 100.0) for batch in (8, 128)]
    groups = {group.label: group.error for group in group_errors([*many, *one])}
    assert groups["decode, batch 1"].median == pytest.approx(0.02)
    assert groups["decode, batch 1"].p90 == pytest.approx(0.036)
    assert groups["decode, batch 1"].count == 5
    assert groups["decode, batch 8-128"].median == pytest.approx(0.1)
    first, second = group_errors([*one, *many])
    assert target_of(first).median == 0.03  # type: ignore[union-attr]
    assert target_of(second).p90 == 0.10  # type: ignore[union-attr]


def test_rank_order_is_of_one_context_and_one_row() -> None:
    near = [comparison(f"near-{n}", 1, 100 - n, 100.0 + n) for n in range(4)]
    far = [comparison("far", 1, 500, 510.0), comparison("batch", 8, 1, 900.0)]
    (order,) = rank_orders([*near, *far])
    assert (order.context, order.count) == (1024, 5)
    assert order.band == ("near-0", "near-1", "near-2", "near-3")
    assert order.band_tau == -1.0
    assert order.tau == pytest.approx((4 - 6) / 10)


def test_whole_calibration(plan: Plan, tmp_path: Path) -> None:
    said: list[str] = []
    options = {"device": "cpu", "budget_s": 0.0}
    finished = calibrate.measure_all(
        plan,
        tmp_path,
        on_spec=lambda spec, rows: said.append(f"{spec.name} {len(rows)}"),
        **options,
    )
    assert finished
    assert said == ["tiny-0 3", "tiny-1 3", "tiny-2 3"]
    agreement = calibrate.compare(plan, tmp_path)
    assert len(agreement.comparisons) == 9
    assert not agreement.failed
    for one in agreement.comparisons:
        assert one.predicted_us == pytest.approx(
            latency.predict(_spec(plan, one.name), one.shape, plan.table).latency_us
        )
    calibrate.write_agreement(agreement, plan, tmp_path)
    results = pd.read_csv(tmp_path / calibrate.RESULTS_FILE)
    ratio = results["predicted_us"] / results["measured_us"] - 1
    assert (ratio * 100 - results["error_percent"]).abs().max() < 0.1
    summary = json.loads((tmp_path / calibrate.SUMMARY_FILE).read_text())
    assert summary["models"] == 3
    assert [group["error"]["count"] for group in summary["groups"]] == [3, 3, 3]
    # predictions find their error beside the table
    found = calibration_error(plan.table, Shape("decode", 32, 999))
    assert found == agreement.groups[1].error
    assert calibration_error(plan.table, Shape("train", 1, 16)) is None


def _spec(plan: Plan, name: str) -> object:
    return next(spec for spec in plan.specs if spec.name == name)


def test_a_second_run_measures_what_is_missing(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Shape] = []
    real = WholeModel.measure

    def interrupted(self: WholeModel, shape: Shape, **options: float) -> object:
        calls.append(shape)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, shape, **options)

    monkeypatch.setattr(WholeModel, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate.measure_all(plan, tmp_path, device="cpu", budget_s=0.0)
    assert len(measured.read_rows(tmp_path)) == 1
    # as if the machine had died while writing
    with (tmp_path / measured.MEASURED_FILE).open("a") as file:
        file.write('{"name": "cut sh')
    assert calibrate.measure_all(plan, tmp_path, device="cpu", budget_s=0.0)
    assert len(calls) == 2 + 8
    assert len(calibrate.compare(plan, tmp_path).comparisons) == 9
    calls.clear()
    assert calibrate.measure_all(plan, tmp_path, device="cpu", budget_s=0.0)
    assert not calls


def test_a_failure_is_a_row_and_tried_again_last(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = WholeModel.__init__

    def failing(self: WholeModel, spec: object, **options: str) -> None:
        order.append(spec.name)  # type: ignore[attr-defined]
        if spec.name == "tiny-0" and len(order) == 1:  # type: ignore[attr-defined]
            raise ValueError("tiny-0 does not fit")
        real(self, spec, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(WholeModel, "__init__", failing)
    one = replace(plan, shapes=SHAPES[:1])
    assert calibrate.measure_all(one, tmp_path, device="cpu", budget_s=0.0)
    agreement = calibrate.compare(one, tmp_path)
    assert agreement.failed == ("tiny-0: ValueError: tiny-0 does not fit",)
    assert len(agreement.comparisons) == 2
    both = replace(plan, shapes=SHAPES[:2])
    assert calibrate.measure_all(both, tmp_path, device="cpu", budget_s=0.0)
    assert order[-3:] == ["tiny-1", "tiny-2", "tiny-0"]
    assert not calibrate.compare(both, tmp_path).failed


def test_what_a_process_died_on_is_a_row(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    real = measured.begin_row

    def kept(folder: Path, row: measured.Row) -> None:
        real(folder, row)
        begun.append((folder / measured.BEGUN_FILE).read_text())

    monkeypatch.setattr(calibrate, "begin_row", kept)
    one = replace(plan, specs=plan.specs[:1])
    assert calibrate.measure_all(one, tmp_path, device="cpu", budget_s=0.0)
    assert not (tmp_path / measured.BEGUN_FILE).exists()
    # the process died on the first of them
    (tmp_path / measured.MEASURED_FILE).unlink()
    (tmp_path / measured.BEGUN_FILE).write_text(begun[0])
    begun.clear()
    assert calibrate.measure_all(one, tmp_path, device="cpu", budget_s=0.0)
    assert measured.read_rows(tmp_path)[0]["error"] == measured.DIED
    assert [json.loads(text)["phase"] for text in begun] == ["decode", "prefill", "decode"]
    assert not calibrate.compare(one, tmp_path).failed


def test_the_time_limit_stops_between_shapes(plan: Plan, tmp_path: Path) -> None:
    options = {"device": "cpu", "budget_s": 0.0}
    assert not calibrate.measure_all(plan, tmp_path, limit_s=0.0, **options)
    assert len(measured.read_rows(tmp_path)) <= 1
    missing = calibrate.compare(plan, tmp_path).failed
    assert missing == (f"tiny-0 and 2 other models: {calibrate.NOT_YET}",)


def test_what_the_table_does_not_answer_is_not_measured(plan: Plan, tmp_path: Path) -> None:
    far = replace(plan, specs=plan.specs[:1], shapes=[Shape("decode", 1, 9999)])
    assert calibrate.measure_all(far, tmp_path, device="cpu", budget_s=0.0)
    assert not measured.read_rows(tmp_path)
    assert calibrate.compare(far, tmp_path).failed[0].startswith("tiny-0: the table 'mine' has ")


def test_a_phase_without_rows_is_told_once(plan: Plan) -> None:
    training = replace(plan, shapes=[*SHAPES[:1], Shape("train", 1, 16), Shape("train", 2, 8)])
    missing = [
        Missing(spec.name, shape, reason)
        for spec in training.specs
        for shape, reason in training.questions(spec)[1].items()
    ]
    assert len(missing) == 6
    command = "archsearch profile SPEC... --phase train --batch 1,2 --context 8,16 --dtype float32"
    assert reasons(missing, plan.table) == [
        f"the table 'mine' has no rows of phase train: measure them with: {command}"
    ]
    on_gpu = replace(plan.table, meta={"hardware": {"kind": "gpu"}})
    (sentence,) = reasons([Missing("m", Shape("train", 1, 1024, "bfloat16"), "")], on_gpu)
    assert sentence.endswith("archsearch profile --grid shipped --phase train --device cuda")


def test_a_reason_is_told_once(plan: Plan) -> None:
    decode, train = SHAPES[0], Shape("train", 1, 16)
    failures = [("a", "out of memory"), ("b", "lost"), ("a", "lost"), ("b", "out of memory")]
    missing = [Missing(name, decode, reason) for name, reason in failures]
    missing += [Missing("c", decode, "lost"), Missing("a", train, "no row")]
    phase, *others = reasons(missing, plan.table)
    assert "phase train" in phase
    assert others == ["a and 1 other model: out of memory", "b and 2 other models: lost"]


@pytest.mark.parametrize(
    "change",
    [
        {"sources": {"attention": "changed"}},
        {"method": 0},
        {"packages": {"triton": {"triton": "0.1"}}},
        {"backends": {"attention": "fla"}, "packages": {"fla": {"numpy": "0.1"}}},
    ],
)
def test_models_that_were_measured_otherwise_do_not_count(
    plan: Plan, tmp_path: Path, change: dict[str, Any]
) -> None:
    one = replace(plan, specs=plan.specs[:1], shapes=SHAPES[:1])
    calibrate.measure_all(one, tmp_path, device="cpu", budget_s=0.0)
    (row,) = measured.read_rows(tmp_path)
    other = {"packages": {"fla": {"numpy": "0.1"}}}
    assert measured.is_fresh(row | other, plan.table.meta), "fla did not run"
    row |= change
    (tmp_path / measured.MEASURED_FILE).write_text(json.dumps(row) + "\n")
    assert not calibrate.compare(one, tmp_path).comparisons
    stale = replace(plan.table, holds_stale=True)
    assert len(calibrate.compare(replace(one, table=stale), tmp_path).comparisons) == 1


def test_steady_time_and_energy_are_compared_where_both_tell(plan: Plan, tmp_path: Path) -> None:
    one = replace(plan, specs=plan.specs[:1], shapes=SHAPES[:1])
    calibrate.measure_all(one, tmp_path, device="cpu", budget_s=0.0)
    assert calibrate.compare(one, tmp_path).others == {}, "a CPU tells neither"
    rows = plan.table.rows.assign(steady_us=100.0, energy_j=0.5)
    told = replace(one, table=replace(plan.table, rows=rows))
    assert calibrate.compare(told, tmp_path).others == {}, "the model was measured without"
    found = predict(one.specs[0], SHAPES[0], told.table)
    assert found.steady_us is not None and found.energy_j is not None
    (row,) = measured.read_rows(tmp_path)
    row |= {"steady_us": found.steady_us / 1.1, "energy_j": found.energy_j / 0.8}
    (tmp_path / measured.MEASURED_FILE).write_text(json.dumps(row) + "\n")
    agreement = calibrate.compare(told, tmp_path)
    errors = {what: groups[0].error.median for what, groups in agreement.others.items()}
    assert errors == pytest.approx({"steady time": 0.1, "energy": 0.2})
    calibrate.write_agreement(
        agreement, replace(told, table=replace(told.table, path=None)), tmp_path
    )
    summary = json.loads((tmp_path / calibrate.SUMMARY_FILE).read_text())
    assert summary["others"]["energy"][0]["label"] == "decode, batch 1"


def test_a_table_of_another_device_is_refused(plan: Plan, tmp_path: Path) -> None:
    hardware = {"name": "NVIDIA H200", "slug": "nvidia-h200"}
    foreign = replace(plan.table, meta={**plan.table.meta, "hardware": hardware})
    with pytest.raises(ValueError, match="measured on NVIDIA H200, and this is"):
        calibrate.measure_all(replace(plan, table=foreign), tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[architecture]", "no TOML file"),
        ("x = 1", "must consist of"),
        ('[[architecture]]\nname = "a"', "architecture 1 must have the texts"),
        ('[[architecture]]\nname = "a"\nspec = "a q @64"', r"architecture 1 \(a\): .*'q'"),
        ('[[architecture]]\nname = "a"\nspec = "a f @64"\n' * 2, "two architectures are called"),
    ],
)
def test_a_bad_set_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "set.toml").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        calibrate.read_architectures(tmp_path / "set.toml")


def test_damaged_files_are_named(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / measured.MEASURED_FILE).write_text("{}\n")
    with pytest.raises(ValueError, match=r"measured\.jsonl is damaged"):
        calibrate.compare(plan, tmp_path)
    (tmp_path / CALIBRATION_FILE).write_text("[]")
    with pytest.raises(ValueError, match="no calibration of a latency table"):
        calibration_error(replace(plan.table, path=tmp_path), SHAPES[0])
    assert calibration_error(replace(plan.table, path=None), SHAPES[0]) is None


def test_a_calibration_holds_for_its_table_alone(plan: Plan, tmp_path: Path) -> None:
    table = replace(plan.table, path=tmp_path)
    error = CalibrationError(median=0.02, p90=0.05, count=3)
    write_calibration(table, [Group("decode", (1,), (8,), error)], {})
    assert calibration_error(table, Shape("decode", 1, 8)) == error
    sessions = [{"id": 0, "measured": "2031-01-01T00:00:00+00:00"}]
    other = replace(table, meta={**table.meta, "sessions": sessions})
    assert calibration_error(other, Shape("decode", 1, 8)) is None


def test_the_sample_is_the_same_on_any_day(folder_of_table: Path) -> None:
    table = load_table(folder_of_table)
    sample = sample_rows(table, 6, seed=0)
    shuffled = Table("mine", table.rows.iloc[::-1].reset_index(drop=True), table.meta)
    columns = ["operator", "config", "phase", "batch", "context"]
    again = sample_rows(shuffled, 6, seed=0)
    assert again[columns].to_numpy().tolist() == sample[columns].to_numpy().tolist()
    assert not sample_rows(table, 6, seed=1)[columns].equals(sample[columns])
    # no group twice before every group once
    assert not sample.duplicated(["operator", "phase", "batch"]).any()
    with pytest.raises(ValueError, match="measured rows; got 999"):
        sample_rows(table, 999, seed=0)


def test_rows_are_measured_again(folder_of_table: Path, tmp_path: Path) -> None:
    table = load_table(folder_of_table)
    found = repeat_rows(table, count=2, seed=0, device="cpu")
    assert len(found.rows) == 2
    for row in found.rows:
        assert row.difference == pytest.approx(row.again_us / row.table_us - 1)
    write_repeat(found, tmp_path)
    write_repeat(found, tmp_path)
    kept = json.loads((tmp_path / "repeat.json").read_text())
    assert len(kept) == 2
    assert kept[0]["count"] == 2
    assert kept[0]["within_tolerance"] == found.within
    assert kept[0]["table_measured"] == table.meta["measured"]
