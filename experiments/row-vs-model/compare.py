"""Why is a whole model slower than the sum of its rows? Each kernel's time in both.

    python experiments/row-vs-model/compare.py OUT [--cases m2@1536 gd@2304 d@2560 a@2048]

For every case the operator's decode step (batch 1) is replayed in CUDA graphs of equal layers
(as a row is measured), of the operator and an FFN in turn, and in a model of such pairs, each
under torch's profiler. OUT/result.json and the printed table give the mean duration of every
kernel, the gaps between kernels, and the whole. Needs a GPU; about 5 s per case.
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
from archsearch.latency.cases import layer_case
from archsearch.latency.shelf import Shelf
from archsearch.latency.stack import make_slots
from archsearch.latency.whole import CALLS
from archsearch.model import build
from archsearch.operators import Shape
from archsearch.space import parse

SHAPE = Shape("decode", 1, 1024, "bfloat16")
CASES = ("m2@1536", "gd@2304", "ret@2304", "d@2560", "a@2048")
LAYERS, REPLAYS = 16, 10


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
    spec = parse(f"({code} f)x{LAYERS} @{width}")
    model = build(spec, device="cuda", dtype=torch.bfloat16)
    graphs = {
        f"{LAYERS} {code}": in_turn(mixer),
        f"{LAYERS} f": in_turn(ffn),
        f"{LAYERS} ({code} f)": in_turn(pairs),
        "model": CALLS["decode"](model, SHAPE),
    }
    found = {name: profiled(call) for name, call in graphs.items()}
    show(f"{code} @{width}", found)
    return found


def slots(code: str, width: int) -> list[Callable[[], object]]:
    """Decode steps of distinct layers, as rows time them."""
    operator = operators.get(code)
    case = layer_case(operator.name, operator.configure(width), SHAPE)
    return [slot.call for slot in make_slots(case, Shelf("cuda"), LAYERS)]


def in_turn(calls: list[Callable[[], object]]) -> Callable[[], object]:
    def run() -> None:
        for call in calls:
            call()

    return run


@torch.inference_mode()
def profiled(call: Callable[[], object]) -> dict[str, Any]:
    """Microseconds of one replay, plainly timed, and of its kernels under the profiler."""
    graph = cudagraph.record(call, device="cuda", warmup=3, times=1).graph
    plain = elapsed_us(graph)
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
        "replay_us": plain,
        "kernels_us": sum(map(sum, kernels.values())) / REPLAYS,
        "by_kernel": {
            name: {"count": len(times) / REPLAYS, "mean_us": sum(times) / len(times)}
            for name, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))
        },
    }


def elapsed_us(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(20):
        graph.replay()
    begin.record()
    for _ in range(50):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * begin.elapsed_time(end) / 50


def show(title: str, found: dict[str, dict[str, Any]]) -> None:
    """A column per graph: each kernel's mean microseconds."""
    print(f"\n{title:40}" + "".join(f"{name:>14}" for name in found))
    for key in ("replay_us", "kernels_us"):
        print(f"{key:40}" + "".join(f"{result[key]:14.1f}" for result in found.values()))
    for kernel in found["model"]["by_kernel"]:
        cells = [result["by_kernel"].get(kernel, {}).get("mean_us") for result in found.values()]
        row = "".join(f"{'' if cell is None else f'{cell:.2f}':>14}" for cell in cells)
        print(f"{kernel[:39]:40}{row}")


if __name__ == "__main__":
    main()
