"""Blocks worth trying for a product."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from archsearch.operators.fused.blocks import Blocks
from archsearch.operators.fused.blocks import by_rule
from archsearch.operators.fused.blocks import power_of_2

# (rows, columns, warps) for one input
ONE = (
    (2, 1024, 4),
    (4, 512, 4),
    (4, 1024, 4),
    (4, 1024, 8),
    (8, 512, 4),
    (8, 512, 8),
    (8, 1024, 8),
    (16, 512, 8),
    (2, 2048, 4),
    (2, 2048, 8),
    (4, 2048, 8),
    (16, 256, 4),
    (16, 1024, 8),
    (32, 256, 8),
)
# (rows, columns, warps, stages, columns ahead) for several
SEVERAL = (
    (16, 128, 2, 4, 0),
    (16, 128, 1, 4, 512),
    (16, 64, 2, 6, 512),
    (16, 256, 2, 3, 512),
    (16, 256, 4, 3, 512),
    (16, 256, 4, 4, 512),
    (16, 128, 4, 4, 4096),
    (16, 128, 4, 6, 0),
    (32, 128, 4, 4, 0),
    (32, 128, 2, 4, 512),
    (32, 64, 2, 6, 512),
    (32, 256, 4, 3, 512),
    (32, 128, 4, 5, 1024),
    (64, 128, 4, 3, 512),
    (64, 64, 4, 4, 512),
    (128, 64, 4, 4, 512),
)
# (rows, columns, warps, stages, columns ahead, shares) for several that are added to the stream
SPLIT = (
    (32, 128, 4, 4, 512, 2),
    (64, 128, 4, 3, 512, 2),
    (64, 128, 4, 3, 512, 4),
    (64, 64, 4, 4, 0, 4),
    (128, 64, 4, 4, 512, 8),
)
MOST_SHARED = 200 * 1024


def candidates(
    epilogue: str, batch: int, rows: int, width: int, dtype: torch.dtype
) -> Iterator[Blocks]:
    """Settings of a product (see `blocks_for`), without the one that it has by rule."""
    usual = by_rule(epilogue, batch, rows, width, dtype)
    widest = power_of_2(width)
    if batch == 1:
        # before the projection back, few bytes are moved
        aheads = (0, 2048) if epilogue == "residual" else (0,)
        tried = (
            Blocks(1, n, k, warps, ahead=min(ahead, power_of_2(width - k)))
            for n, k, warps in ONE
            for ahead in aheads
            if k <= widest
        )
    else:
        pairs = 2 if epilogue == "swiglu" else 1
        tried = (
            Blocks(usual.m, n, k, *more)
            for n, k, *more in SEVERAL + (SPLIT if epilogue == "residual" else ())
            if k <= widest and 2 * (pairs * n + usual.m) * k * more[1] <= MOST_SHARED
        )
    yield from dict.fromkeys(one for one in tried if one != usual)
