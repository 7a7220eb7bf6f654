"""Speed, memory and build time of decoding, held against what is wanted of them.

    python experiments/decode-figures/figures.py OUT [--backend triton|torch]

Writes OUT/result.json and prints one table. Needs a GPU; about a minute once kernels are compiled.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from fresh import asked_for

from archsearch import timing
from archsearch.files import write_text
from archsearch.latency.ceilings import measure_ceilings
from archsearch.latency.provenance import measured_hardware
from archsearch.latency.provenance import provenance
from archsearch.latency.whole import WholeModel
from archsearch.operators import Shape
from archsearch.space import ArchSpec
from archsearch.space import LayerSpec
from archsearch.space import count
from archsearch.space import load

DEVICE, DTYPE = "cuda", "bfloat16"
BUDGET_S = 0.1
COPY_BYTES = 2 << 30
FRESH = Path(__file__).with_name("fresh.py")
FRESH_MODEL, FRESH_CONTEXT = "nemotron-flash-1b", 8192
# states of Mamba-2: in the weights' type, as released, and in fp32
STATES = ("model", "float32")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The most that a figure may be, the most that is hoped for, and what the released code takes;
    None where there is no such number."""

    most: float
    goal: float | None = None
    released: float | None = None


@dataclass(frozen=True, slots=True)
class Decode:
    """A decode step, and milliseconds per token."""

    model: str
    batch: int
    context: int
    wanted: Wanted


SMALL, LARGE, DENSE = "nemotron-flash-1b", "nemotron-flash-3b", "qwen3-0.6b"
DECODES = (
    *(Decode(SMALL, 1, context, Wanted(0.68, 0.55, 1.48)) for context in (1024, 8192)),
    Decode(SMALL, 32, 1024, Wanted(1.00, 0.75, 2.21)),
    *(Decode(LARGE, 1, context, Wanted(1.62, 1.42, 3.49)) for context in (1024, 8192)),
    Decode(LARGE, 32, 1024, Wanted(2.40, 1.95, 4.96)),
    Decode(DENSE, 1, 1024, Wanted(0.75, 0.60)),
)
GRAPH_S = Wanted(10.0)
# peak memory over the bytes of the parameters
MEMORY = Wanted(1.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--backend", choices=("triton", "torch"))
    given = parser.parse_args()
    result: Row = {"provenance": provenance(DEVICE), "asked_backend": given.backend, "decode": []}
    path = given.out / "result.json"
    # ahead of everything that takes memory or time on this GPU
    result["fresh"] = fresh(given.backend)
    save(path, result)
    speeds = {"read": measure_ceilings(DEVICE).read_bytes_s, "copy": copy_bytes_s()}
    result["bytes_s"] = speeds
    with asked_for(given.backend):
        for row in decode_rows(speeds):
            result["decode"].append(row)
            save(path, result)
    show(result)


def save(path: Path, result: Row) -> None:
    write_text(path, json.dumps(result, indent=1) + "\n")


def fresh(backend: str | None) -> Row:
    """What a new process needs, its kernels compiled by another one before; "error" says why
    there is nothing."""
    command = [sys.executable, str(FRESH), FRESH_MODEL, str(FRESH_CONTEXT)]
    command += ["--backend", backend] if backend else []
    for _ in range(2):
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            return {"error": last_line(run.stderr)}
    found: Row = json.loads(last_line(run.stdout))
    stages = found["stages"]
    found["graph_s"] = stages["graph"]["seconds"]
    # the largest so far: the last stage has seen all of them
    found["memory"] = stages["decode"]["peak_bytes"] / found["parameter_bytes"]
    return found


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "it ended without a word"


def copy_bytes_s() -> float:
    """Bytes per second of a large copy, those read and those written."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    found = timing.measure(lambda: target.copy_(source), device=DEVICE, budget_s=0.1)
    return 2e6 * COPY_BYTES / found.p50_us


def decode_rows(speeds: dict[str, float]) -> Iterator[Row]:
    """One row per decode step and type of Mamba-2's states; its "error" says what went wrong."""
    for name, group in groupby(DECODES, key=lambda one: one.model):
        decodes, published = list(group), load(name)
        for state in STATES:
            spec = with_states(published, state)
            if state != STATES[0] and spec == published:
                continue
            model = WholeModel(spec, device=DEVICE, dtype=DTYPE)
            for decode in decodes:
                row: Row = {"model": name, "batch": decode.batch, "context": decode.context}
                row["mamba2_states"] = state
                try:
                    row |= decode_row(model, decode, speeds)
                except (ValueError, RuntimeError) as error:
                    row["error"] = str(error).splitlines()[0]
                yield row
            del model


def with_states(spec: ArchSpec, state: str) -> ArchSpec:
    """The architecture with Mamba-2's states in that type."""
    layers = tuple(
        LayerSpec(operator=layer.operator, config={**layer.config, "state_dtype": state})
        if layer.operator == "mamba2" and state != "model"
        else layer
        for layer in spec.layers
    )
    return spec.model_copy(update={"layers": layers})


def decode_row(model: WholeModel, decode: Decode, speeds: dict[str, float]) -> Row:
    """Milliseconds per token, one after another, by CUDA-graph replay, beside the time of moving
    its bytes; raises ValueError for a time that cannot be true."""
    shape = Shape("decode", decode.batch, decode.context, DTYPE)
    found = model.measure(shape, budget_s=BUDGET_S)
    moved = count.step_bytes(model.spec, shape)
    milliseconds = found.timing.sustained_us / 1e3
    peaks = measured_hardware(DEVICE).peaks
    if peaks is not None and milliseconds < 1e3 * moved / peaks.bandwidth_bytes_s:
        raise ValueError(f"measured {milliseconds:.3f} ms, below the floor by the datasheet")
    floors = {kind: 1e3 * moved / speed for kind, speed in speeds.items()}
    return {
        "ms": milliseconds,
        "kernels": found.timing.kernels,
        "backends": dict(found.backends),
        "step_bytes": moved,
        "weight_bytes": found.weight_bytes,
        "state_bytes": found.state_bytes,
        "floor_ms": floors,
        "floor_share": {kind: floor / milliseconds for kind, floor in floors.items()},
        "sm_clock_mhz": found.reading.sm_clock_mhz,
        "throttled": found.reading.throttled,
    }


def show(result: Row) -> None:
    """One line per figure: what was found, what is wanted, and the share of each floor."""
    speeds = ", ".join(f"{kind} {speed / 1e12:.2f}" for kind, speed in result["bytes_s"].items())
    print(f"{result['provenance']['hardware']['name']}; TB/s: {speeds}")
    titles = ("released", "found", "at most", "goal", "of read floor", "of copy floor")
    print(f"{'':44}" + "".join(f"{title:>14}" for title in titles))
    found = {(one.model, one.batch, one.context): one.wanted for one in DECODES}
    for row in result["decode"]:
        wanted = found[row["model"], row["batch"], row["context"]]
        name = f"{row['model']} b{row['batch']} {row['context']}, ms"
        fp32 = row["mamba2_states"] == "float32"
        print(line(name + (" (fp32 Mamba-2)" if fp32 else ""), row, "ms", wanted))
    print(line(f"decode graph of {FRESH_MODEL}, s", result["fresh"], "graph_s", GRAPH_S))
    print(line(f"peak memory / parameters at {FRESH_CONTEXT}", result["fresh"], "memory", MEMORY))
    if "ms_per_token" in result["fresh"]:
        session = f"{FRESH_MODEL} b1 {FRESH_CONTEXT} as a session, ms"
        print(f"{session:44}{'':14}{result['fresh']['ms_per_token']:>14.3f}")
    ran = {tuple(sorted(row["backends"].items())) for row in result["decode"] if "ms" in row}
    for used in sorted(ran):
        print("ran:", ", ".join(f"{part} {backend}" for part, backend in used))


def line(name: str, row: Row, key: str, wanted: Wanted) -> str:
    if "error" in row:
        return f"{name:44}  {row['error']}"
    value, share = row[key], row.get("floor_share", {})
    cells = (
        "" if wanted.released is None else f"{wanted.released:.2f}",
        f"{value:.3f}",
        held(value, wanted.most),
        "" if wanted.goal is None else held(value, wanted.goal),
        *(f"{share[kind]:.0%}" if kind in share else "" for kind in ("read", "copy")),
    )
    return f"{name:44}" + "".join(f"{cell:>14}" for cell in cells)


def held(value: float, limit: float) -> str:
    return f"{limit:.2f} {'met' if value <= limit else 'missed'}"


if __name__ == "__main__":
    main()
