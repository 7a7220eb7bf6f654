"""Hold a table against whole models that it was not made from: measure, compare, keep.

Predictions are made anew whenever they are compared, so that a better table needs no GPU.
"""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

import pandas as pd

from archsearch.files import write_text
from archsearch.latency.agreement import Comparison
from archsearch.latency.agreement import RankOrder
from archsearch.latency.agreement import group_errors
from archsearch.latency.agreement import rank_orders
from archsearch.latency.calibration import Group
from archsearch.latency.calibration import write_calibration
from archsearch.latency.ceilings import measure_ceilings
from archsearch.latency.holdout import leave_one_out
from archsearch.latency.holdout import summarise
from archsearch.latency.measured import Row
from archsearch.latency.measured import append_row
from archsearch.latency.measured import begin_row
from archsearch.latency.measured import forget_begun
from archsearch.latency.measured import origin
from archsearch.latency.measured import recover_begun
from archsearch.latency.measured import shape_of
from archsearch.latency.measured import sources_of
from archsearch.latency.measured import valid_rows
from archsearch.latency.missing import Missing
from archsearch.latency.missing import reasons
from archsearch.latency.predict import predict
from archsearch.latency.provenance import measured_hardware
from archsearch.latency.provenance import method
from archsearch.latency.provenance import now
from archsearch.latency.sweep import check_alive
from archsearch.latency.sweep import failure
from archsearch.latency.whole import MANY_BUDGET_S
from archsearch.latency.whole import Measurement
from archsearch.latency.whole import WholeModel
from archsearch.operators import Shape
from archsearch.profiles import Table
from archsearch.space import ArchSpec
from archsearch.space import load

RESULTS_FILE, SUMMARY_FILE = "results.csv", "summary.json"
INTERPOLATION_FILE = "interpolation.csv"
# what else a GPU's table and its models tell: the name -> the column of a measured row, which is
# the field of a prediction too
OTHERS = {"steady time": "steady_us", "energy": "energy_j"}
NOT_YET = "not measured yet with the present sources and packages"

OnSpec = Callable[[ArchSpec, list[Row]], None]


def read_architectures(path: Path) -> list[ArchSpec]:
    """The architectures of a TOML file: `[[architecture]]` with a `name` and a `spec` (preset,
    pattern or JSON file). Raises ValueError with one sentence, and OSError if it is not there.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML file: {error}") from None
    entries = content.get("architecture")
    if not isinstance(entries, list) or not entries or set(content) != {"architecture"}:
        raise ValueError(f"{path} must consist of [[architecture]] entries")
    specs = [_architecture(entry, path, number) for number, entry in enumerate(entries, 1)]
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path}: two architectures are called {name!r}")
    return specs


def _architecture(entry: Mapping[str, Any], path: Path, number: int) -> ArchSpec:
    what = f"{path}: architecture {number}"
    if set(entry) != {"name", "spec"} or not all(isinstance(v, str) for v in entry.values()):
        raise ValueError(f"{what} must have the texts 'name' and 'spec'; got {sorted(entry)}")
    text = entry["spec"]
    if text.endswith(".json"):
        # a file that lies beside this one
        text = str(path.parent / text)
    try:
        return load(text).model_copy(update={"name": entry["name"]})
    except ValueError as error:
        raise ValueError(f"{what} ({entry['name']}): {error}") from None


@dataclass(frozen=True)
class Plan:
    """Whole models to measure, the shapes to measure each at, and the table to hold beside."""

    specs: Sequence[ArchSpec]
    shapes: Sequence[Shape]
    table: Table

    def questions(self, spec: ArchSpec) -> tuple[list[Shape], dict[Shape, str]]:
        """The shapes that the table answers for `spec`, and why it does not answer others."""
        answered, refused = [], {}
        for shape in self.shapes:
            try:
                predict(spec, shape, self.table)
            except ValueError as error:
                refused[shape] = str(error)
            else:
                answered.append(shape)
        return answered, refused


def measure_all(
    plan: Plan,
    folder: Path,
    *,
    device: str,
    budget_s: float | None = None,
    limit_s: float | None = None,
    on_spec: OnSpec | None = None,
) -> bool:
    """Measure what `folder` has no valid row of, each model built once; a failure is a row.

    Only what the table predicts is measured. Returns whether all is done (False after
    `limit_s` seconds). Raises ValueError where the table is another device's, OSError where
    the folder cannot be written or the GPU stops working.
    """
    check_same_device(plan.table, device)
    if budget_s is None:
        budget_s = MANY_BUDGET_S[device.partition(":")[0]]
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + (limit_s if limit_s is not None else float("inf"))
    recover_begun(folder)
    todo = _todo(plan, valid_rows(folder, plan.table))
    if device.startswith("cuda") and todo:
        # brings the clocks up
        measure_ceilings(device)
    for spec, shapes in todo:
        if time.monotonic() > end:
            return False
        rows: list[Row] = []
        try:
            for row in _measure_spec(spec, shapes, folder, device, budget_s):
                append_row(folder, row)
                rows.append(row)
                if time.monotonic() > end:
                    break
        finally:
            forget_begun(folder)
            if on_spec and rows:
                on_spec(spec, rows)
        if len(rows) < len(shapes):
            return False
    return True


def _todo(plan: Plan, known: Sequence[Row]) -> list[tuple[ArchSpec, list[Shape]]]:
    """What is missing of each model. What failed before comes last, there and on the whole: it
    may take the device with it."""
    done = {(row["id"], shape_of(row)) for row in known if not row["error"]}
    failed = {(row["id"], shape_of(row)) for row in known if row["error"]}
    todo = []
    for spec in plan.specs:
        missing = [shape for shape in plan.questions(spec)[0] if (spec.id, shape) not in done]
        missing.sort(key=lambda shape: (spec.id, shape) in failed)
        if missing:
            todo.append((spec, missing))
    return sorted(todo, key=lambda item: (item[0].id, item[1][-1]) in failed)


def _measure_spec(
    spec: ArchSpec, shapes: Sequence[Shape], folder: Path, device: str, budget_s: float
) -> Iterator[Row]:
    """A row per shape, announced in `folder`; the model is freed at the end."""
    base = origin(spec, device)
    model: WholeModel | None = None
    for shape in shapes:
        row = {**base, **asdict(shape), "measured": now(), "error": ""}
        begin_row(folder, row)
        try:
            if model is None:
                model = WholeModel(spec, device=device, dtype=shape.dtype)
            row |= _values(model.measure(shape, budget_s=budget_s))
            row["sources"] = sources_of(spec, row["backends"])
        except Exception as error:
            row["error"] = failure(error)
        yield row
        if row["error"]:
            check_alive(device, row["error"])


def _values(measurement: Measurement) -> Row:
    timing = measurement.timing
    return {
        "latency_us_p10": timing.p10_us,
        "latency_us_p50": timing.p50_us,
        "latency_us_p90": timing.p90_us,
        "steady_us": timing.steady_us,
        "repeats": timing.repeats,
        "used_cuda_graph": timing.used_cuda_graph,
        "kernels": timing.kernels,
        "energy_j": measurement.energy_j,
        "sm_clock_mhz": measurement.reading.sm_clock_mhz,
        "throttled": measurement.reading.throttled,
        "state_bytes": measurement.state_bytes,
        "memory_bytes": measurement.memory_bytes,
        "backends": dict(measurement.backends),
    }


def check_same_device(table: Table, device: str) -> None:
    """Raise ValueError where the table was measured on other hardware than `device`, or in
    another way than now."""
    measured, here = table.meta.get("hardware", {}), measured_hardware(device)
    if measured.get("slug") != here.slug:
        raise ValueError(
            f"the table {table.name!r} was measured on {measured.get('name', 'another device')},"
            f" and this is {here.name}: calibrate a table of this machine"
        )
    if table.meta.get("method") != method(device):
        raise ValueError(
            f"the table {table.name!r} is of method {table.meta.get('method')}, and this would be"
            f" measured by method {method(device)}: measure the table again first"
        )


@dataclass(frozen=True)
class Agreement:
    """What a calibration says: every comparison, the errors by group, the rank order."""

    comparisons: tuple[Comparison, ...]
    groups: tuple[Group, ...]
    orders: tuple[RankOrder, ...]
    # why models are missing, each reason once (see `missing.reasons`)
    failed: tuple[str, ...]
    # how well the table's rows are told by their neighbours (see `holdout.leave_one_out`)
    left_out: pd.DataFrame
    # the errors of `OTHERS`, where table and models tell them
    others: Mapping[str, tuple[Group, ...]] = field(default_factory=dict)


def compare(plan: Plan, folder: Path) -> Agreement:
    """Predict what was measured into `folder`, as far as `plan` asks for it."""
    rows = valid_rows(folder, plan.table)
    comparisons, missing = [], []
    others: dict[str, list[Comparison]] = {}
    for spec in plan.specs:
        answered, refused = plan.questions(spec)
        missing += [Missing(spec.name, shape, reason) for shape, reason in refused.items()]
        by_shape = {shape_of(row): row for row in rows if row["id"] == spec.id}
        for shape in answered:
            if (row := by_shape.get(shape)) is None:
                missing.append(Missing(spec.name, shape, NOT_YET))
                continue
            if row["error"]:
                missing.append(Missing(spec.name, shape, row["error"]))
                continue
            found = predict(spec, shape, plan.table)
            measured = row["latency_us_p50"]
            comparisons.append(Comparison(spec.name, shape, found.latency_us, measured))
            for what, key in OTHERS.items():
                told, measured = getattr(found, key), row.get(key)
                if told is not None and measured is not None:
                    other = Comparison(spec.name, shape, told, measured)
                    others.setdefault(what, []).append(other)
    return Agreement(
        tuple(comparisons),
        tuple(group_errors(comparisons)),
        tuple(rank_orders(comparisons)),
        tuple(reasons(missing, plan.table)),
        leave_one_out(plan.table),
        {what: tuple(group_errors(found)) for what, found in others.items()},
    )


def write_agreement(agreement: Agreement, plan: Plan, folder: Path) -> None:
    """Write results and summary into `folder`, and the errors beside the table, where its
    predictions find them. Raises OSError where either cannot be written."""
    rows = valid_rows(folder, plan.table)
    origin = {
        "table": plan.table.name,
        "table_measured": plan.table.meta.get("measured"),
        "models": len({one.name for one in agreement.comparisons}),
        "measured": max((row["measured"] for row in rows), default=""),
        "git_commits": sorted({str(row["git_commit"]) for row in rows}),
    }
    summary = {
        **origin,
        "groups": _plain(agreement.groups),
        "others": {what: _plain(groups) for what, groups in agreement.others.items()},
        "rank_orders": [asdict(order) for order in agreement.orders],
        "failed": list(agreement.failed),
    }
    text = json.dumps(summary, indent=2) + "\n"
    write_text(folder / SUMMARY_FILE, text)
    _write_results(agreement, plan, folder)
    interpolation = summarise(agreement.left_out)
    interpolation.to_csv(folder / INTERPOLATION_FILE, index=False, float_format="%.5f")
    if plan.table.path is not None:
        write_calibration(plan.table, agreement.groups, origin)


def _plain(groups: Sequence[Group]) -> list[Row]:
    return [asdict(group) | {"label": group.label} for group in groups]


def _write_results(agreement: Agreement, plan: Plan, folder: Path) -> None:
    notations = {spec.name: spec.notation for spec in plan.specs}
    rows = [
        {
            "name": one.name,
            "notation": notations[one.name],
            **asdict(one.shape),
            "predicted_us": one.predicted_us,
            "measured_us": one.measured_us,
            "error_percent": 100 * one.error,
        }
        for one in agreement.comparisons
    ]
    pd.DataFrame(rows).to_csv(folder / RESULTS_FILE, index=False, float_format="%.2f")
