"""How fast is a decode step of our own kernels, whole models, beside the plain one?

    python experiments/fused-decode/bench.py OUT [--models nemotron-flash-1b …] [--batches 1 32]
        [--context 1024] [--tune] [--knobs] [--no-plain]

For every model and batch: the plain step, the fused one without and with dependent launches, as
CUDA-graph replays of the whole model in bf16; first, that both give the same logits. With --tune
every product's blocks are then searched in place (the model's own step is timed), and the winners
of all models go to OUT/products_sm90.json, which belongs in operators/tuned/. With --knobs the
constants of the kernels between the products are tried, and only printed. Needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
import triton
from candidates import candidates

from archsearch import cudagraph
from archsearch import timing
from archsearch.files import write_text
from archsearch.latency.ceilings import measure_ceilings
from archsearch.latency.provenance import provenance
from archsearch.latency.whole import decode_call
from archsearch.model import HybridLM
from archsearch.model import build
from archsearch.operators import Shape
from archsearch.operators import backends
from archsearch.operators.fused import attend
from archsearch.operators.fused import blocks
from archsearch.operators.fused import delta
from archsearch.operators.fused import heads
from archsearch.operators.fused import products
from archsearch.operators.fused import ssd
from archsearch.operators.fused.device import SWITCH
from archsearch.space import count
from archsearch.space import load

MODELS = ("nemotron-flash-1b", "nemotron-flash-3b", "qwen3-0.6b")
WARMUP, REPLAYS = 2, 20
BUDGET_S = 0.1
TUNING_BUDGET_S = 0.02
# products of a smaller share of all weights are left as they are
SMALL = 0.015
# a setting must gain so much to be kept: what repeats of one setting differ by
GAIN = 0.998
# relative error of bf16 logits beyond which a speed says nothing
WRONG = 0.1
# constants of the kernels between the products, and what else they might be
KNOBS = (
    (heads, "ENTRIES", (2048, 8192)),
    (heads, "LEAST_COLUMNS", (8, 32)),
    (heads, "PROCESSORS", (66, 264)),
    (delta, "STAGES", (1, 2, 4)),
    (ssd, "LEAST_ROWS", (4, 16)),
    (ssd, "ENTRIES", (2048, 8192)),
    (ssd, "PROCESSORS", (66, 264)),
    (attend, "PROCESSORS", (66, 264, 528)),
    (attend, "MOST_SPLITS", (16, 64)),
    (attend, "TILE", (32, 128)),
    (attend, "STAGES", (1, 2)),
)

Settings = dict[str, blocks.Blocks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--batches", nargs="*", type=int, default=(1, 32))
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--knobs", action="store_true")
    parser.add_argument("--no-plain", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    ceilings = measure_ceilings("cuda")
    print(f"one large read: {ceilings.read_bytes_s / 1e12:.2f} TB/s")
    results: list[dict[str, Any]] = []
    tuned: Settings = {}
    for name in given.models:
        model = build(load(name), device="cuda", dtype=torch.bfloat16)
        for batch in given.batches:
            shape = Shape("decode", batch, given.context, "bfloat16")
            floor_ms = 1e3 * count.step_bytes(model.spec, shape) / ceilings.read_bytes_s
            for kind, row in compare(model, shape, plain=not given.no_plain):
                results.append({"model": name, "batch": batch, "kind": kind, **row})
                show(results[-1], floor_ms)
            if given.tune:
                found, row = tune(model, shape)
                tuned |= found
                results.append({"model": name, "batch": batch, "kind": "tuned", **row})
                show(results[-1], floor_ms)
                write(given.out / "products_sm90.json", tuned)
            if given.knobs:
                turn_knobs(model, shape)
            (given.out / "result.json").write_text(json.dumps(results, indent=1) + "\n")
        del model
        torch.cuda.empty_cache()


def compare(model: HybridLM, shape: Shape, *, plain: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, measured) of each kind of step; raises ValueError where the logits differ."""
    with backends.override("torch"):
        expected = decode_call(model, shape)().clone()
    with fused():
        found = decode_call(model, shape)()
    error = float((found - expected).norm() / expected.norm())
    print(f"logits differ by {error:.1e}")
    if not error < WRONG:
        raise ValueError(f"fused logits are off by {error:.1e}")
    if plain:
        yield "plain", measured(model, shape)
    with fused():
        check_replays(model, shape)
        with independent():
            yield "independent", measured(model, shape)
        yield "fused", measured(model, shape)


def check_replays(model: HybridLM, shape: Shape) -> None:
    """Raise ValueError where steps launched one by one and replays of a graph, from one state,
    end in other logits: every kernel adds up in one order, so that only a race can do that."""
    call, replayed = decode_call(model, shape), decode_call(model, shape)
    kept: list[torch.Tensor] = []
    recording = cudagraph.record(lambda: kept.append(replayed()), warmup=WARMUP)
    for _ in range(REPLAYS):
        recording.replay()
    for _ in range(WARMUP + REPLAYS - 1):
        call()
    single, last = call(), kept[-1]
    if not torch.equal(single, last):
        error = float((last - single).norm() / single.norm())
        raise ValueError(f"replays differ from single steps by {error:.1e}: a race?")
    print(f"{REPLAYS} replays equal single steps")


def measured(model: HybridLM, shape: Shape, budget_s: float = BUDGET_S) -> dict[str, Any]:
    """Milliseconds per step by CUDA-graph replay, and what it launches."""
    with backends.recorded() as used:
        found = timing.measure(
            decode_call(model, shape), device="cuda", budget_s=budget_s, min_repeats=20
        )
    return {
        "ms": found.p50_us / 1e3,
        "p90_ms": found.p90_us / 1e3,
        "kernels": found.kernels,
        "backends": dict(used),
    }


@contextmanager
def fused() -> Iterator[None]:
    """Every layer and the head by our kernels."""
    with backends.override("triton"):
        yield


@contextmanager
def independent() -> Iterator[None]:
    """Kernels that start when the one before is over."""
    os.environ[SWITCH] = "0"
    try:
        yield
    finally:
        del os.environ[SWITCH]


def tune(model: HybridLM, shape: Shape) -> tuple[Settings, dict[str, Any]]:
    """The best blocks of each product of this model's step, one after another, the largest
    first, each timed in the whole step."""
    best: Settings = {}
    with fused():
        met = products_of(model, shape)
        row = measured(model, shape)
        total = sum(size for size, _ in met.values())
        for name, (size, asked) in sorted(met.items(), key=lambda item: -item[1][0]):
            if size < SMALL * total:
                continue
            start = row["ms"]
            for setting in candidates(*asked):
                token = blocks.forced.set({**best, name: setting})
                try:
                    tried = measured(model, shape, TUNING_BUDGET_S)
                except Exception as error:
                    # too much shared memory, for example
                    print(f"  {name} {astuple(setting)}: {str(error).splitlines()[0][:80]}")
                    continue
                finally:
                    blocks.forced.reset(token)
                print(f"  {name} {astuple(setting)}: {tried['ms']:.4f}", flush=True)
                if tried["ms"] < GAIN * row["ms"]:
                    best[name], row = setting, tried
            print(f"{name} ({size / 1e6:.0f} MB): {start:.4f} -> {row['ms']:.4f} ms", flush=True)
    return best, row


def products_of(model: HybridLM, shape: Shape) -> dict[str, tuple[int, tuple[Any, ...]]]:
    """{key: (bytes in all layers, what its blocks were asked by)} of a step's products."""
    met: dict[str, tuple[int, tuple[Any, ...]]] = {}
    real = products.blocks_for

    def watch(*asked: Any) -> blocks.Blocks:
        epilogue, batch, rows, width, dtype = asked
        name = blocks.key(epilogue, batch, rows, width)
        before = met.get(name, (0, ()))[0]
        met[name] = before + rows * width * dtype.itemsize, asked
        return real(*asked)

    products.blocks_for = watch
    try:
        decode_call(model, shape)()
    finally:
        products.blocks_for = real
    return met


def turn_knobs(model: HybridLM, shape: Shape) -> None:
    """Print the time of a step with each of the constants changed by itself."""
    with fused():
        print(f"as it is: {measured(model, shape)['ms']:.4f} ms")
        for module, name, values in KNOBS:
            usual = getattr(module, name)
            for value in values:
                setattr(module, name, value)
                try:
                    told = f"{measured(model, shape, TUNING_BUDGET_S)['ms']:.4f} ms"
                except Exception as error:
                    told = str(error).splitlines()[0]
                finally:
                    setattr(module, name, usual)
                place = module.__name__.rsplit(".", 1)[-1]
                print(f"{place}.{name} = {value} instead of {usual}: {told}", flush=True)


def write(path: Path, tuned: Settings) -> None:
    meta = provenance("cuda")
    head = {
        "gpu": meta["hardware"]["name"],
        "triton": triton.__version__,
        "torch": str(torch.__version__),
        "commit": meta["git_commit"],
        "date": meta["measured"][:10],
    }
    lines = [f'  "{name}": {json.dumps(astuple(one))}' for name, one in sorted(tuned.items())]
    blocks_text = ",\n".join(lines)
    write_text(path, f'{{\n "head": {json.dumps(head)},\n "blocks": {{\n{blocks_text}\n }}\n}}\n')


def show(row: dict[str, Any], floor_ms: float) -> None:
    print(
        f"{row['model']:20s} batch {row['batch']:3d} {row['kind']:12s} {row['ms']:.3f} ms"
        f"  (p90 {row['p90_ms']:.3f}), {row['kernels'] or 0:.0f} kernels,"
        f" floor {floor_ms:.3f} ms: {floor_ms / row['ms']:.0%}",
        flush=True,
    )


if __name__ == "__main__":
    main()
