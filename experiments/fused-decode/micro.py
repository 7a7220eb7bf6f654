"""Single kernels of a decode step: in how many shares attention reads its cache, and products of
32 rows beside the library's and beside bulk tensor copies.

    python experiments/fused-decode/micro.py attend product

Every time is of a chain of calls in one CUDA graph. Needs a Hopper GPU.

Legend: M rows of the batch, N rows of a weight, K columns of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from itertools import product

import torch
import triton
import triton.language as tl
from torch.nn import functional as F
from triton.language.extra.cuda import gdc_launch_dependents
from triton.language.extra.cuda import gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from archsearch import timing
from archsearch.latency.stack import Call
from archsearch.latency.stack import all_of
from archsearch.operators.fused import attend
from archsearch.operators.fused import blocks
from archsearch.operators.fused import products
from archsearch.operators.layer import State

HEADS, WIDTH = 16, 128
ROWS = 32
# more than the L2 holds, in turn
WEIGHT_BYTES = 200e6
SHOWN = 6
# (rows, columns, stages, warps) of a program with bulk tensor copies
COPIED = ((64, 64, 4, 4), (64, 128, 3, 4), (64, 128, 5, 4), (64, 256, 3, 4), (128, 128, 3, 4))
# (rows, columns, warps, stages, shares) of one of ours
OURS = (
    (32, 128, 4, 6, 1),
    (32, 256, 4, 3, 1),
    (64, 128, 4, 3, 1),
    (64, 128, 4, 6, 1),
    (64, 256, 4, 3, 1),
    (128, 128, 4, 3, 1),
    (64, 128, 4, 3, 4),
    (128, 128, 8, 3, 8),
)


def main() -> None:
    parts = {"attend": time_attention, "product": time_products}
    with torch.inference_mode():
        for name in sys.argv[1:] or parts:
            parts[name]()


def time_attention() -> None:
    for groups, slots in product((4, 8), (1281, 8449)):
        inputs = torch.randn(1, (HEADS + 2 * groups) * WIDTH, device="cuda").bfloat16()
        cache = torch.randn(2, 1, slots, groups, WIDTH, device="cuda").bfloat16()
        table = torch.randn(slots, WIDTH // 2, device="cuda")
        position = torch.full((1,), slots - 1, device="cuda")
        active = torch.ones(1, dtype=torch.bool, device="cuda")
        found = []
        for tile, shares in product((32, 64, 128), (8, 16, 32)):
            attend.TILE, attend.MOST_SPLITS = tile, shares
            attend.LEAST_SLOTS, attend.PROCESSORS = 1, 1 << 20
            state = State({"keys": cache[0], "values": cache[1]}, {"cos": table, "sin": table})
            call = partial(attend.attend_step, inputs, state, position, active)
            us = mean_us([partial(call, num_heads=HEADS, norms=None)] * 20)
            found.append((us, f"tile {tile}, {shares} shares"))
        show(f"attention, {groups} key/value heads, {slots} slots", found)


def time_products() -> None:
    for n, k in ((12288, 2048), (2048, 6144)):
        count = max(2, int(WEIGHT_BYTES / (n * k * 2)) + 1)
        weights = [0.02 * torch.randn(n, k, device="cuda").bfloat16() for _ in range(count)]
        x = torch.randn(ROWS, k, device="cuda").bfloat16()
        h = torch.randn(ROWS, n, device="cuda").bfloat16()
        active = torch.ones(ROWS, dtype=torch.bool, device="cuda")
        library = [partial(F.linear, x, weight) for weight in weights]
        ours = [partial(products.write_back, x, weight, h, active) for weight in weights]
        found = [(mean_us(library), "the library")]
        for settings in COPIED:
            found.append((mean_us(copied(x, weights, *settings)), f"copied {settings}"))
        for settings in OURS:
            rows, columns, warps, stages, shares = settings
            one = blocks.Blocks(ROWS, rows, columns, warps, stages, shares)
            token = blocks.forced.set({"*": one})
            us = mean_us(ours)
            blocks.forced.reset(token)
            found.append((us, f"ours {settings}"))
        show(f"{ROWS} rows times {n} x {k}", found)


def copied(
    x: torch.Tensor, weights: list[torch.Tensor], rows: int, columns: int, stages: int, warps: int
) -> list[Call]:
    """The product with each weight, read by bulk tensor copies."""
    given = TensorDescriptor.from_tensor(x, [ROWS, columns])
    n, k = weights[0].shape
    out = x.new_empty(ROWS, n)
    options = {"num_warps": warps, "launch_pdl": True}

    def times(weight: TensorDescriptor) -> object:
        sizes = (n, k, rows, columns, ROWS, stages)
        return copy_kernel[(n // rows,)](given, weight, out, *sizes, **options)

    read = [TensorDescriptor.from_tensor(weight, [rows, columns]) for weight in weights]
    return [partial(times, weight) for weight in read]


@triton.jit
def copy_kernel(
    x,
    weight,
    out,
    N,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    M: tl.constexpr,
    STAGES: tl.constexpr,
):
    """BLOCK_N rows of the weight times all rows of the batch."""
    begin = tl.program_id(0) * BLOCK_N
    gdc_wait()
    gdc_launch_dependents()
    acc = tl.zeros([BLOCK_N, M], tl.float32)
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        acc = tl.dot(weight.load([begin, k]), x.load([0, k]).T, acc)
    m, n = tl.arange(0, M), begin + tl.arange(0, BLOCK_N)
    tl.store(out + m[:, None] * N + n[None, :], tl.trans(acc).to(out.dtype.element_ty))


def mean_us(calls: Sequence[Call]) -> float:
    """Microseconds of a call among these, one after another."""
    found = timing.measure(
        all_of(calls), device="cuda", warmup=1, budget_s=0.03, min_repeats=10, rest_s=0
    )
    return found.per(len(calls)).p50_us


def show(title: str, found: list[tuple[float, str]]) -> None:
    told = [f"{us:.2f} us: {what}" for us, what in sorted(found)[:SHOWN]]
    print("\n  ".join([title, *told]), flush=True)


if __name__ == "__main__":
    main()
