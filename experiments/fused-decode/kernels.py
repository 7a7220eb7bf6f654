"""What each kernel of a decode step takes, and what it adds to the step, by the profiler.

    python experiments/fused-decode/kernels.py MODEL:BATCH:CONTEXT …

Every model in bf16 by our own kernels, first in order, then in dependent launches; kernels of one
name, grid and size are one line. "adds" is from the end of the kernel before: with dependent
launches a kernel's own time holds its waiting. Needs a GPU.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile

from archsearch import cudagraph
from archsearch.latency.whole import decode_call
from archsearch.model import HybridLM
from archsearch.model import build
from archsearch.operators import Shape
from archsearch.operators import backends
from archsearch.operators.fused.device import SWITCH
from archsearch.space import load

REPLAYS = 5


def main() -> None:
    for asked in sys.argv[1:]:
        name, batch, context = asked.split(":")
        shape = Shape("decode", int(batch), int(context), "bfloat16")
        model = build(load(name), device="cuda", dtype=torch.bfloat16)
        for switch in ("0", "1"):
            os.environ[SWITCH] = switch
            print(f"{asked}, {'dependent launches' if switch == '1' else 'in order'}")
            show(events(model, shape))
        del model
        torch.cuda.empty_cache()


def events(model: HybridLM, shape: Shape) -> list[dict[str, Any]]:
    """Kernels of some replays of a step, in order."""
    with backends.override("triton"):
        recording = cudagraph.record(decode_call(model, shape))
    recording.replay()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        for _ in range(REPLAYS):
            recording.replay()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        watched.export_chrome_trace(str(path))
        found = json.loads(path.read_text())["traceEvents"]
    kernels = [event for event in found if event.get("cat") == "kernel"]
    return sorted(kernels, key=lambda event: event["ts"])


def show(kernels: list[dict[str, Any]]) -> None:
    """One line per kind: how many in a step, its own microseconds, and what it adds."""
    count = len(kernels) // REPLAYS
    kinds: dict[tuple[Any, ...], list[tuple[float, float]]] = defaultdict(list)
    # the first replay after recording is slower, and the first kernel of each follows nothing
    for number, (before, event) in enumerate(pairwise(kernels), 1):
        if number > count and number % count:
            said = event["args"]
            kind = (event["name"][:40], *said["grid"], said["block"][0], said["shared memory"])
            end = event["ts"] + event["dur"]
            kinds[kind].append((event["dur"], end - before["ts"] - before["dur"]))
    for kind, times in kinds.items():
        own, added = (sum(each) / len(times) for each in zip(*times, strict=True))
        print(f"{len(times) / (REPLAYS - 1):6.1f} × {own:7.2f} us, adds {added:7.2f}  {kind}")


if __name__ == "__main__":
    main()
