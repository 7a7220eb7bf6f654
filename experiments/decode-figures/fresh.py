"""What a process that has just begun needs to decode: time for the graph, and memory.

    python experiments/decode-figures/fresh.py MODEL CONTEXT [--backend triton|torch]

Builds the model in bf16, records the decode graph of a session of one row, reads a prompt of
CONTEXT tokens and goes on from it. The last line of stdout is one JSON document. Needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import nullcontext
from typing import Any

import torch

from archsearch.generate import Session
from archsearch.model import build
from archsearch.operators import backends
from archsearch.operators.common.tuning import autotuners
from archsearch.space import load

DEVICE = "cuda"
NEW_TOKENS = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("context", type=int)
    parser.add_argument("--backend", choices=("triton", "torch"))
    given = parser.parse_args()
    with asked_for(given.backend):
        print(json.dumps(measure(given.model, given.context)))


@contextmanager
def asked_for(backend: str | None) -> Iterator[None]:
    """Every operator by this backend; None leaves the choice as it is."""
    # attention has none of the name "torch", and would choose freely
    attention = backends.override("sdpa", "attention") if backend == "torch" else nullcontext()
    with backends.override(backend) if backend else nullcontext(), attention:
        yield


def measure(name: str, context: int) -> dict[str, Any]:
    """Seconds of each stage, and the most bytes that were held at once up to its end."""
    stages: dict[str, dict[str, float]] = {}
    started = time.perf_counter()

    def done(stage: str) -> None:
        nonlocal started
        torch.cuda.synchronize(DEVICE)
        peak = torch.cuda.max_memory_allocated(DEVICE)
        stages[stage] = {"seconds": time.perf_counter() - started, "peak_bytes": peak}
        started = time.perf_counter()

    model = build(load(name), device=DEVICE, dtype=torch.bfloat16)
    done("build")
    with backends.recorded() as decode:
        session = Session(model, batch_size=1, max_len=context + NEW_TOKENS)
        session.prepare()
    done("graph")
    ids = torch.randint(
        model.spec.vocab_size, (1, context), generator=torch.Generator().manual_seed(0)
    )
    with backends.recorded() as prefill:
        session.prompt(ids)
    done("prompt")
    generation = session.generate(NEW_TOKENS)
    done("decode")
    return {
        "model": name,
        "context": context,
        "parameter_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "state_bytes": session.state.num_bytes,
        "stages": stages,
        # drawing the token, and the host's look at it every few tokens, included
        "ms_per_token": 1e3 * generation.decode_s / NEW_TOKENS,
        "backends": {"decode": dict(decode), "prefill": dict(prefill)},
        "tuned_s": tuned_s(),
    }


def tuned_s() -> dict[str, float]:
    """Seconds by kernel that an autotuner timed in this process: it takes memory to do so."""
    # each is an attribute from its first timing on
    return {
        name: tuner.bench_time
        for package in ("fla", "mamba_ssm")
        for name, tuner in autotuners(package)
        if hasattr(tuner, "bench_time")
    }


if __name__ == "__main__":
    main()
