"""Measure models as the Nemotron-Flash paper's Table 6 does, in one engine, on this device.

Three parts per model, each a line in a file, so that a run goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from archsearch.latency.ceilings import measure_ceilings
from archsearch.latency.largest_batch import measure_largest_batch
from archsearch.latency.measured import Row
from archsearch.latency.measured import append_row
from archsearch.latency.measured import begin_row
from archsearch.latency.measured import forget_begun
from archsearch.latency.measured import is_fresh
from archsearch.latency.measured import origin
from archsearch.latency.measured import read_rows
from archsearch.latency.measured import recover_begun
from archsearch.latency.measured import sources_of
from archsearch.latency.provenance import backend_packages
from archsearch.latency.provenance import measured_hardware
from archsearch.latency.provenance import method
from archsearch.latency.provenance import now
from archsearch.latency.question import PARTS
from archsearch.latency.question import Part
from archsearch.latency.question import Question
from archsearch.latency.sweep import check_alive
from archsearch.latency.sweep import failure
from archsearch.latency.whole import MANY_BUDGET_S
from archsearch.latency.whole import DoesNotFit
from archsearch.latency.whole import Measurement
from archsearch.latency.whole import WholeModel
from archsearch.operators import Shape
from archsearch.space import ArchSpec
from archsearch.space import count

OnPart = Callable[[ArchSpec, Part], None]
OnSpec = Callable[[ArchSpec, list[Row]], None]


def measure_all(
    specs: Sequence[ArchSpec],
    question: Question,
    folder: Path,
    *,
    device: str,
    budget_s: float | None = None,
    on_part: OnPart | None = None,
    on_spec: OnSpec | None = None,
) -> None:
    """Measure what `folder` has no valid row of, each model built once; a failure is a row, and
    tried again last by the next call. `on_part` hears what begins, `on_spec` what was found.

    Raises OSError where the folder cannot be written or the GPU stops working, and ValueError
    for a damaged file there or a GPU that is too full.
    """
    if budget_s is None:
        budget_s = MANY_BUDGET_S[device.partition(":")[0]]
    folder.mkdir(parents=True, exist_ok=True)
    recover_begun(folder)
    todo = _todo(specs, question, valid_rows(folder, question, device))
    read = measure_ceilings(device).read_bytes_s if todo and device.startswith("cuda") else None
    for spec, parts in todo:
        base = origin(spec, device) | {"read_bytes_s": read}
        model = _Model(spec, question, device, budget_s)
        rows: list[Row] = []
        try:
            for part in parts:
                row = {**base, **question.of(part), "measured": now(), "error": ""}
                begin_row(folder, row)
                if on_part:
                    on_part(spec, part)
                row |= model.measure(part)
                append_row(folder, row)
                rows.append(row)
                if row["error"]:
                    check_alive(device, row["error"])
        finally:
            forget_begun(folder)
            # its memory is the next one's
            del model
            if on_spec and rows:
                on_spec(spec, rows)


@dataclass
class _Model:
    """A model that is built when its first part is measured."""

    spec: ArchSpec
    question: Question
    device: str
    budget_s: float
    built: WholeModel | None = None

    def measure(self, part: Part) -> Row:
        """What was found, or the error."""
        try:
            if self.built is None:
                dtype = self.question.dtype
                self.built = WholeModel(self.spec, device=self.device, dtype=dtype)
            found = MEASURE[part](self.built, self.question, self.budget_s)
            return found | {"sources": sources_of(self.spec, found["backends"])}
        except DoesNotFit as error:
            return {"error": str(error)}
        except Exception as error:
            return {"error": failure(error)}


def valid_rows(folder: Path, question: Question, device: str) -> dict[tuple[str, Part], Row]:
    """The latest row per model's id and part that answers `question`, measured on this device
    with the present torch, sources and kernel packages."""
    hardware, latest = measured_hardware(device).slug, dict[tuple[str, Part], Row]()
    present = {"method": method(device), "packages": backend_packages(device)}
    for row in read_rows(folder, lambda row: row["part"] in PARTS and row["hardware"]):
        here = row["hardware"] == hardware and row["torch"] == str(torch.__version__)
        asked = question.of(row["part"])
        if not here or any(row.get(key) != value for key, value in asked.items()):
            continue
        key = row["id"], row["part"]
        # a failure does not undo a measurement
        undone = key in latest and row["error"] and not latest[key]["error"]
        if is_fresh(row, present) and not undone:
            latest[key] = row
    return latest


def _todo(
    specs: Sequence[ArchSpec], question: Question, known: Mapping[tuple[str, Part], Row]
) -> list[tuple[ArchSpec, list[Part]]]:
    """The parts that are missing of each model; a model that failed before comes last."""
    todo = []
    for spec in specs:
        rows = {part: known.get((spec.id, part)) for part in PARTS}
        missing = [part for part, row in rows.items() if row is None or row["error"]]
        if missing:
            todo.append((spec, missing, any(row and row["error"] for row in rows.values())))
    return [(spec, parts) for spec, parts, _ in sorted(todo, key=lambda item: item[2])]


def measure_latency(model: WholeModel, question: Question, budget_s: float) -> Row:
    """The decode step of one row among others at several contexts, with room for all `tokens`."""
    shapes = [Shape("decode", 1, context, question.dtype) for context in question.contexts]
    found = [model.measure(shape, budget_s=budget_s, capacity=question.tokens) for shape in shapes]
    return {
        "contexts": list(question.contexts),
        "step_us": [one.timing.sustained_us for one in found],
        "step_bytes": [count.step_bytes(model.spec, shape) for shape in shapes],
        **_values(found[-1]),
    }


def measure_prefill(model: WholeModel, question: Question, budget_s: float) -> Row:
    """One prompt of `input_tokens` among others, in one pass."""
    shape = Shape("prefill", 1, question.input_tokens, question.dtype)
    found = model.measure(shape, budget_s=budget_s)
    return {"prefill_us": found.timing.sustained_us, **_values(found)}


def measure_throughput(model: WholeModel, question: Question, budget_s: float) -> Row:
    """The decode step in the middle of the output, at the largest batch that fits."""
    capacity = question.input_tokens + question.output_tokens
    found, tries = measure_largest_batch(
        model,
        context=question.middle,
        capacity=capacity,
        limit=question.max_batch,
        budget_s=budget_s,
    )
    return {
        "batch": found.shape.batch,
        "batches_tried": tries,
        "context": question.middle,
        "step_us": found.timing.sustained_us,
        "step_bytes": count.step_bytes(model.spec, found.shape),
        **_values(found),
    }


MEASURE: dict[Part, Callable[[WholeModel, Question, float], Row]] = {
    "latency": measure_latency,
    "prefill": measure_prefill,
    "throughput": measure_throughput,
}


def _values(found: Measurement) -> Row:
    return {
        "repeats": found.timing.repeats,
        "used_cuda_graph": found.timing.used_cuda_graph,
        "kernels": found.timing.kernels,
        "sm_clock_mhz": found.reading.sm_clock_mhz,
        "throttled": found.reading.throttled,
        "weight_bytes": found.weight_bytes,
        "state_bytes": found.state_bytes,
        "memory_bytes": found.memory_bytes,
        "backends": dict(found.backends),
    }
