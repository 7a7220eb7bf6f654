"""What was measured beside what the Nemotron-Flash paper's Table 6 says. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from archsearch.files import write_text
from archsearch.latency.provenance import provenance
from archsearch.latency.question import Part
from archsearch.latency.question import Question
from archsearch.latency.question import explain
from archsearch.space import ArchSpec
from archsearch.space import count
from archsearch.space import presets

RESULTS_FILE, REPORT_FILE = "results.csv", "results.json"
FILE = Path(__file__).with_name("table6.json")

# by (model's id, part): see `compare`
Rows = Mapping[tuple[str, Part], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Published:
    """One model in the paper's table; `against` is the Nemotron-Flash that it stands beside."""

    name: str
    against: str
    latency_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One model: what was measured (None: not), its share of the roofline, the paper's figures.

    `tokens_per_s` is of decoding alone, `total_tokens_per_s` with the prefill of all rows. A
    `..._times` says how many times as fast the Nemotron-Flash is that it is held `against`.
    """

    name: str
    id: str
    notation: str
    parameters: int
    against: str = ""
    latency_s: float | None = None
    latency_floor_share: float | None = None
    latency_times: float | None = None
    paper_latency_s: float | None = None
    paper_latency_times: float | None = None
    batch: int | None = None
    tokens_per_s: float | None = None
    floor_share: float | None = None
    throughput_times: float | None = None
    prefill_s: float | None = None
    total_tokens_per_s: float | None = None
    total_times: float | None = None
    paper_tokens_per_s: float | None = None
    paper_throughput_times: float | None = None
    # why something is missing, each reason once
    errors: tuple[str, ...] = ()


def source() -> dict[str, Any]:
    """The paper's figures with where they are from and what they mean."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


@lru_cache(maxsize=1)
def published() -> dict[str, Published]:
    """The paper's figures by preset."""
    return {entry["name"]: Published(**entry) for entry in source()["models"]}


def label(spec: ArchSpec) -> str:
    """What a model is called."""
    return spec.name or spec.notation


def lines(specs: Sequence[ArchSpec], rows: Rows, question: Question) -> list[Line]:
    """A line per model, of its rows that answer `question`."""
    found = [_line(spec, rows, question) for spec in specs]
    names = {one.against for one in published().values()}
    yardsticks = {presets.get(name).id: name for name in names}
    # by the preset's name, whatever a file calls it
    flash = {yardsticks[line.id]: line for line in found if line.id in yardsticks}
    return [_beside(line, flash) for line in found]


def summarise(
    specs: Sequence[ArchSpec], question: Question, rows: Rows, *, device: str
) -> tuple[list[Line], dict[str, Any]]:
    """What is known of every model, and all of it as plain values with its provenance."""
    asked = {spec.id for spec in specs}
    own = [row for (model, _), row in rows.items() if model in asked]
    found = lines(specs, rows, question)
    here = provenance(device)
    report = {
        **{key: here[key] for key in ("hardware", "software", "packages", "method")},
        "measured": max((row["measured"] for row in own), default=""),
        "git_commits": sorted({str(row["git_commit"]) for row in own}),
        "read_bytes_s": sorted({row["read_bytes_s"] for row in own if row["read_bytes_s"]}),
        "question": asdict(question),
        "how": explain(question),
        "paper": {key: value for key, value in source().items() if key != "models"},
        "models": [asdict(line) for line in found],
    }
    return found, report


def write_results(found: Sequence[Line], report: Mapping[str, Any], folder: Path) -> None:
    """Write the lines and everything about them into `folder`."""
    table = pd.DataFrame([asdict(line) for line in found])
    table["errors"] = ["; ".join(line.errors) for line in found]
    write_text(folder / RESULTS_FILE, table.to_csv(index=False, float_format="%.6g"))
    write_text(folder / REPORT_FILE, json.dumps(report, indent=2) + "\n")


def integrate(contexts: Sequence[int], values: Sequence[float], tokens: int) -> float:
    """The sum over `tokens` decoded one after another of what was measured at some contexts:
    the mean by the trapezoid rule, so many times."""
    if len(contexts) == 1:
        return tokens * values[0]
    points = pairwise(zip(contexts, values, strict=True))
    area = sum((right - left) * (a + b) / 2 for (left, a), (right, b) in points)
    return tokens * area / (contexts[-1] - contexts[0])


def _line(spec: ArchSpec, rows: Rows, question: Question) -> Line:
    parts = {part: row for (model, part), row in rows.items() if model == spec.id}
    errors: dict[str, list[Part]] = {}
    for part, row in parts.items():
        if row["error"]:
            errors.setdefault(row["error"], []).append(part)
    line = Line(
        name=label(spec),
        id=spec.id,
        notation=spec.notation,
        parameters=count.parameters(spec),
        errors=tuple(f"{', '.join(names)}: {reason}" for reason, names in errors.items()),
    )
    good = {part: row for part, row in parts.items() if not row["error"]}
    if "latency" in good:
        line = _with_latency(line, good["latency"], question.tokens)
    if "prefill" in good:
        line = replace(line, prefill_s=good["prefill"]["prefill_us"] / 1e6)
    if "throughput" in good:
        line = _with_throughput(line, good["throughput"], question.output_tokens)
    return line


def _with_latency(line: Line, row: Mapping[str, Any], tokens: int) -> Line:
    seconds = integrate(row["contexts"], row["step_us"], tokens) / 1e6
    moved = integrate(row["contexts"], row["step_bytes"], tokens)
    share = _floor_share(moved, seconds, row["read_bytes_s"])
    return replace(line, latency_s=seconds, latency_floor_share=share)


def _with_throughput(line: Line, row: Mapping[str, Any], output_tokens: int) -> Line:
    step, batch = row["step_us"] / 1e6, row["batch"]
    total = None
    if line.prefill_s is not None:
        total = batch * output_tokens / (batch * line.prefill_s + output_tokens * step)
    return replace(
        line,
        batch=batch,
        tokens_per_s=batch / step,
        floor_share=_floor_share(row["step_bytes"], step, row["read_bytes_s"]),
        total_tokens_per_s=total,
    )


def _floor_share(num_bytes: float, seconds: float, read_bytes_s: float | None) -> float | None:
    return num_bytes / read_bytes_s / seconds if read_bytes_s else None


def _beside(line: Line, flash: Mapping[str, Line]) -> Line:
    """The line with the paper's figures and those of the Nemotron-Flash that the paper holds it
    against, or of the one that is nearest in size."""
    paper = published().get(line.name)
    # a model of one's own may have any name
    if paper and line.id == presets.get(line.name).id:
        yardstick = published()[paper.against]
        line = replace(
            line,
            against=paper.against,
            paper_latency_s=paper.latency_s,
            paper_latency_times=paper.latency_s / yardstick.latency_s,
            paper_tokens_per_s=paper.tokens_per_s,
            paper_throughput_times=yardstick.tokens_per_s / paper.tokens_per_s,
        )
    elif flash:
        sizes = {name: abs(one.parameters - line.parameters) for name, one in flash.items()}
        line = replace(line, against=min(sizes, key=sizes.__getitem__))
    if (own := flash.get(line.against)) is None:
        return line
    return replace(
        line,
        latency_times=_ratio(line.latency_s, own.latency_s),
        throughput_times=_ratio(own.tokens_per_s, line.tokens_per_s),
        total_times=_ratio(own.total_tokens_per_s, line.total_tokens_per_s),
    )


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None
