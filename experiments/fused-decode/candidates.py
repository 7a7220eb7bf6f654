"""Blocks worth trying for a product."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from archsearch.operators.fused.blocks import ROWS_HELD
from archsearch.operators.fused.blocks import Blocks
from archsearch.operators.fused.blocks import by_rule
from archsearch.operators.fused.blocks import power_of_2

# (rows, columns, warps) for one input
ONE = (
    (4, 512, 4),
    (8, 512, 4),
    (8, 512, 8),
    (16, 512, 4),
    (16, 512, 8),
    (2, 1024, 4),
    (4, 1024, 4),
    (4, 1024, 8),
    (8, 1024, 4),
    (8, 1024, 8),
    (16, 1024, 8),
    (2, 2048, 4),
    (2, 2048, 8),
    (4, 2048, 8),
    (8, 256, 4),
    (16, 256, 4),
    (32, 256, 8),
    (16, 128, 4),
    (32, 128, 4),
)
# (rows, columns, warps, stages) for several
SEVERAL = (
    (16, 128, 4, 6),
    (16, 256, 4, 4),
    (32, 64, 4, 8),
    (32, 128, 4, 4),
    (32, 128, 4, 6),
    (32, 256, 4, 3),
    (64, 64, 4, 3),
    (64, 64, 4, 4),
    (64, 64, 4, 5),
    (64, 64, 4, 8),
    (64, 128, 4, 3),
    (64, 128, 4, 4),
    (64, 128, 4, 5),
    (64, 256, 4, 3),
    (128, 64, 4, 4),
    (128, 64, 4, 6),
    (128, 64, 8, 4),
    (128, 64, 8, 6),
    (128, 128, 4, 3),
    (128, 128, 8, 3),
)
# those of them that are tried in shares where they are added up
SPLIT = (
    (32, 128, 4, 4),
    (64, 64, 4, 4),
    (64, 64, 4, 8),
    (64, 128, 4, 3),
    (64, 128, 4, 5),
    (128, 64, 4, 4),
    (128, 64, 8, 6),
    (128, 128, 8, 3),
)
SHARES = (2, 3, 4, 8)
MOST_SHARED = 200 * 1024
MOST_TILES = 24


def candidates(
    epilogue: str, batch: int, rows: int, width: int, dtype: torch.dtype
) -> Iterator[Blocks]:
    """Settings of a product (see `blocks_for`), without the one that it has by rule."""
    usual = by_rule(epilogue, batch, rows, width, dtype)
    widest = power_of_2(width)
    tried: list[Blocks] = []
    if batch == 1:
        for n, k, warps in ONE:
            # masked columns are read in vain, and every tile is code of its own
            if k <= widest and -(-width // k) <= MOST_TILES and (width % k == 0 or k == usual.k):
                tried.append(Blocks(1, n, k, warps))
    else:
        pairs = 2 if epilogue == "swiglu" else 1
        # more programs could share many rows of the batch
        for m in (ROWS_HELD, ROWS_HELD // 2) if batch > ROWS_HELD // 2 else (usual.m,):
            for n, k, warps, stages in SEVERAL:
                if k > widest or 2 * (pairs * n + m) * k * stages > MOST_SHARED:
                    continue
                tried.append(Blocks(m, n, k, warps, stages))
                if epilogue == "residual" and (n, k, warps, stages) in SPLIT:
                    tried += (Blocks(m, n, k, warps, stages, splits) for splits in SHARES)
    yield from dict.fromkeys(one for one in tried if one != usual)
