"""How much time lies between the kernels of a CUDA graph, and what its last kernel does to that.

    python experiments/launch-gaps/measure.py OUT [--cases m2@1280 m2@1536 d@2560 a@2048]

For every case a decode step (batch 1) of 16 mixers, of 16 FFNs, of both in turn and of a model of
both is replayed as a CUDA graph that ends as it is, and as one that ends in a dependent launch
(`cudagraph.record(fast_end=...)`). OUT/result.json and the printed table give microseconds, and
how far the parts' sum is from the pairs and from the model. Needs a GPU; 3 s per case.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from archsearch import cudagraph
from archsearch import operators
from archsearch.latency.cases import layer_case
from archsearch.latency.shelf import Shelf
from archsearch.latency.stack import all_of
from archsearch.latency.stack import make_slots
from archsearch.latency.whole import decode_call
from archsearch.model import build
from archsearch.operators import Shape
from archsearch.space import parse

SHAPE = Shape("decode", 1, 1024, "bfloat16")
CASES = ("m2@1280", "m2@1536", "d@2560", "a@2048")
LAYERS, REPLAYS = 16, 50
Result = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", nargs="*", default=CASES)
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    results = {case: examine(*case.split("@")) for case in settings.cases}
    (settings.out / "result.json").write_text(json.dumps(results, indent=1) + "\n")
    show(results)


def examine(code: str, width: str) -> Result:
    """Microseconds of each graph of one case, by its end."""
    mixers, ffns = slots(code, int(width)), slots("f", int(width))
    pairs = [call for pair in zip(mixers, ffns, strict=True) for call in pair]
    model = build(parse(f"({code} f)x{LAYERS} @{width}"), device="cuda", dtype=torch.bfloat16)
    hidden = torch.randn(1, int(width), device="cuda", dtype=torch.bfloat16)
    calls = {
        "mixers": all_of(mixers),
        "ffns": all_of(ffns),
        "pairs": all_of(pairs),
        "head": lambda: model.head(hidden),
        "model": decode_call(model, SHAPE),
    }
    found = {}
    for end, fast in (("as it is", False), ("dependent", True)):
        times = {name: replay_us(call, fast_end=fast) for name, call in calls.items()}
        layers = times["mixers"] + times["ffns"]
        times["kernels"] = recording(calls["model"], fast_end=fast).kernels or 0
        times["sum / pairs"] = layers / times["pairs"]
        times["sum / model"] = (layers + times["head"]) / times["model"]
        found[end] = times
    return found


def slots(code: str, width: int) -> list[Callable[[], object]]:
    """Decode steps of distinct layers, as rows time them."""
    operator = operators.get(code)
    case = layer_case(operator.name, operator.configure(width), SHAPE)
    return [slot.call for slot in make_slots(case, Shelf("cuda"), LAYERS)]


@torch.inference_mode()
def recording(call: Callable[[], object], *, fast_end: bool) -> cudagraph.Recording:
    return cudagraph.record(call, fast_end=fast_end)


def replay_us(call: Callable[[], object], *, fast_end: bool) -> float:
    """Microseconds of one replay among many that are queued."""
    graph = recording(call, fast_end=fast_end)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        graph.replay()
    begin.record()
    for _ in range(REPLAYS):
        graph.replay()
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end) / REPLAYS


def show(results: dict[str, Result]) -> None:
    columns = list(next(iter(results.values()))["dependent"])
    print(f"{'':8} {'end':10}" + "".join(f"{name:>13}" for name in columns))
    for case, found in results.items():
        for end, times in found.items():
            cells = "".join(f"{times[name]:13.{3 if '/' in name else 1}f}" for name in columns)
            print(f"{case:8} {end:10}{cells}")


if __name__ == "__main__":
    main()
