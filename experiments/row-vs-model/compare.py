"""Why is a whole model slower than the sum of its rows? Each kernel's time in both.

    python experiments/row-vs-model/compare.py OUT [--cases m2@1536 gd@2304 d@2560 a@2048]

For every case the operator's decode step (batch 1) is replayed in CUDA graphs, each under torch's
profiler: exactly as a row is measured; the same layers four times over (more kernels, no more
memory); more distinct layers; the operator and an FFN in turn, in a small and in a large graph;
and a model of such pairs. OUT/result.json and the printed table give the mean duration of every
kernel and the whole, per layer or pair. Needs a GPU; about 8 s per case.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from archsearch import cudagraph
from archsearch import operators
from archsearch import timing
from archsearch.latency.cases import Case
from archsearch.latency.cases import layer_case
from archsearch.latency.shelf import Shelf
from archsearch.latency.stack import all_of
from archsearch.latency.stack import make_slots
from archsearch.latency.stack import prepare
from archsearch.latency.whole import CALLS
from archsearch.model import build
from archsearch.operators import Shape
from archsearch.space import parse

SHAPE = Shape("decode", 1, 1024, "bfloat16")
CASES = ("m2@1536", "gd@2304", "ret@2304", "d@2560", "a@2048")
LAYERS, FEW, REPLAYS = 16, 4, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", nargs="*", default=CASES)
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    results = {case: examine(*case.split("@")) for case in settings.cases}
    (settings.out / "result.json").write_text(json.dumps(results, indent=1) + "\n")


def examine(code: str, width: str) -> dict[str, Any]:
    """The graphs of one case, from the simplest to the model."""
    mixer, ffn = slots(code, int(width)), slots("f", int(width))
    pairs = [call for pair in zip(mixer, ffn, strict=True) for call in pair]
    row = prepare(case_of(code, int(width)), "cuda")
    spec = parse(f"({code} f)x{LAYERS} @{width}")
    model = build(spec, device="cuda", dtype=torch.bfloat16)
    graphs = {
        "row": (row.call, row.count),
        "row x4": (all_of([row.call] * 4), 4 * row.count),
        f"{LAYERS} {code}": (all_of(mixer), LAYERS),
        f"{LAYERS} f": (all_of(ffn), LAYERS),
        f"{FEW} ({code} f)": (all_of(pairs[: 2 * FEW]), FEW),
        f"{LAYERS} ({code} f)": (all_of(pairs), LAYERS),
        "model": (CALLS["decode"](model, SHAPE), LAYERS),
    }
    found = {name: profiled(call, count) for name, (call, count) in graphs.items()}
    show(f"{code} @{width}", found)
    return found


def case_of(code: str, width: int) -> Case:
    operator = operators.get(code)
    return layer_case(operator.name, operator.configure(width), SHAPE)


def slots(code: str, width: int) -> list[Callable[[], object]]:
    """Decode steps of distinct layers, as rows time them."""
    return [slot.call for slot in make_slots(case_of(code, width), Shelf("cuda"), LAYERS)]


@torch.inference_mode()
def profiled(call: Callable[[], object], count: int) -> dict[str, Any]:
    """Microseconds of one of `count` layers, plainly timed, and of its kernels (copies and fills
    among them) under the profiler."""
    timed = timing.measure(call, device="cuda").per(count)
    graph = cudagraph.record(call, device="cuda").graph
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(REPLAYS):
            graph.replay()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if event.device_type.name == "CUDA":
            kernels[event.name].append(event.device_time)
    return {
        "layer_us": timed.p50_us,
        "kernels_us": sum(map(sum, kernels.values())) / REPLAYS / count,
        "kernels": timed.kernels or 0,
        "by_kernel": {
            name: {"count": len(times) / REPLAYS / count, "mean_us": sum(times) / len(times)}
            for name, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))
        },
    }


def show(title: str, found: dict[str, dict[str, Any]]) -> None:
    """A column per graph: each kernel's mean microseconds, those of the row first."""
    print(f"\n{title:48}" + "".join(f"{name:>12}" for name in found))
    for key in ("layer_us", "kernels_us", "kernels"):
        print(f"{key:48}" + "".join(f"{result[key]:12.2f}" for result in found.values()))
    for kernel in dict.fromkeys(name for result in found.values() for name in result["by_kernel"]):
        cells = [result["by_kernel"].get(kernel, {}).get("mean_us") for result in found.values()]
        row = "".join(f"{'' if cell is None else f'{cell:.2f}':>12}" for cell in cells)
        # names of elementwise kernels differ at their end alone
        short = kernel if len(kernel) < 48 else f"{kernel[:22]}..{kernel[-22:]}"
        print(f"{short:48}{row}")


if __name__ == "__main__":
    main()
