"""Which blocks suit products of which shapes: each alone, by every setting worth trying.

    python experiments/fused-decode/shapes.py OUT [--batches 1 8 …] [--widths 2048] [--part 1/2]

The products are those of a mixer and an FFN at every width of the shipped grid. Writes
OUT/shapes-*.jsonl, a line per product, with microseconds by setting; what a rule in
`operators/fused/blocks.py` gains or loses is to be read from these. Every time is of a chain of
calls in one CUDA graph, over more weights than the L2 holds. Needs a GPU.

Legend: N rows of a weight, K columns of it, H hidden size.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from candidates import candidates
from torch import Tensor

from archsearch import timing
from archsearch.latency.ceilings import measure_ceilings
from archsearch.latency.plan import GRIDS
from archsearch.latency.provenance import provenance
from archsearch.latency.stack import all_of
from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.fused import blocks
from archsearch.operators.fused import products

DTYPE = torch.bfloat16
# in turn: more than the L2 holds several times, or of small ones at least twice
WEIGHT_BYTES = 300e6
MOST_WEIGHTS = 64
BUDGET_S = 0.008


class Product(NamedTuple):
    """weight [N,K] times rows, and what stands around it."""

    epilogue: str
    rows: int
    width: int

    @property
    def num_weights(self) -> int:
        """Gate and up stand beside each other."""
        return 2 if self.epilogue == "swiglu" else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--batches", nargs="*", type=int, default=(1, 8, 32, 128))
    parser.add_argument("--widths", nargs="*", type=int, default=GRIDS["shipped"].widths)
    parser.add_argument("--part", default="1/1")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, given.part.split("/"))
    asked = [(batch, one) for batch in given.batches for one in shapes(given.widths)]
    with (given.out / f"shapes-{part}.jsonl").open("w") as file, torch.inference_mode():
        head = {"provenance": provenance("cuda"), "ceilings": measure_ceilings("cuda").to_dict()}
        file.write(json.dumps(head) + "\n")
        for batch, one in asked[part - 1 :: parts]:
            found = {str(list(astuple(block))): us for block, us in times(one, batch)}
            line = {"batch": batch, **one._asdict(), "us": found}
            file.write(json.dumps(line) + "\n")
            file.flush()


def shapes(widths: Sequence[int]) -> list[Product]:
    """Of every width: projections of a mixer, what it writes back (of one and of two widths),
    and both products of an FFN."""
    found = []
    for width in widths:
        found += [
            Product("store", 4 * width, width),
            Product("residual", width, width),
            Product("residual", width, 2 * width),
            Product("swiglu", 3 * width, width),
            Product("residual", width, 3 * width),
        ]
    return found


def times(one: Product, batch: int) -> Iterator[tuple[blocks.Blocks, float]]:
    """(setting, microseconds), the one by rule first; what does not launch is left out."""
    size = one.num_weights * one.rows * one.width * DTYPE.itemsize
    count = min(max(2, int(WEIGHT_BYTES / size) + 1), MOST_WEIGHTS)
    weights = [random(one.num_weights, one.rows, one.width) for _ in range(count)]
    call = CALLS[one.epilogue](batch, one)
    asked = (one.epilogue, batch, one.num_weights * one.rows, one.width, DTYPE)
    calls = all_of([partial(call, weight) for weight in weights])
    for setting in (blocks.by_rule(*asked), *candidates(*asked)):
        token = blocks.forced.set({"*": setting})
        try:
            found = timing.measure(
                calls, device="cuda", warmup=1, budget_s=BUDGET_S, min_repeats=5, rest_s=0
            )
            yield setting, found.per(count).p50_us
        except Exception as error:
            print(one, batch, setting, str(error).splitlines()[0][:80], flush=True)
        finally:
            blocks.forced.reset(token)


def random(*size: int) -> Tensor:
    return torch.randn(size, device="cuda", dtype=DTYPE).mul_(0.02)


def store(batch: int, one: Product) -> Callable[[Tensor], object]:
    x, norm = random(batch, one.width), usual_norm(one.width)
    return lambda weight: products.project(x, (weight[0],), norm=norm)


def swiglu(batch: int, one: Product) -> Callable[[Tensor], object]:
    x, norm = random(batch, one.width), usual_norm(one.width)
    return lambda weight: products.feed_forward(x, weight[0], weight[1], norm)


def residual(batch: int, one: Product) -> Callable[[Tensor], object]:
    x, h = random(batch, one.width), random(batch, one.rows)
    active = torch.ones(batch, dtype=torch.bool, device="cuda")
    return lambda weight: products.write_back(x, weight[0], h, active)


CALLS = {"store": store, "swiglu": swiglu, "residual": residual}


def usual_norm(width: int) -> products.Norm:
    return products.Norm.of(RMSNorm(width, 1e-6).to("cuda", DTYPE))


if __name__ == "__main__":
    main()
