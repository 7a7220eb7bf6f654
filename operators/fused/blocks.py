"""How a product is cut into programs: found by `experiments/fused-decode` where it was tuned,
otherwise by rule.

Legend: B rows of the batch, N rows of the weights, K columns of them.
"""

# torch's stubs do not know of `shared_memory_per_block_optin`
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

FOLDER = Path(__file__).parent.parent / "tuned"
# what one program of several rows holds
ROWS_HELD = 128
LEAST_ROWS = 16
# shares of the columns
MOST_SPLITS = 8
# multiprocessors of an H100 or H200
PROCESSORS = 132
# of a width that nothing divides
MOST_COLUMNS = 1024


@dataclass(frozen=True, slots=True)
class Blocks:
    """A program's share: m rows of the batch, n of the weights, k columns at a time; with how
    many warps and stages of loads. The columns of a "residual" product of several rows may be
    split over programs, whose parts a kernel more adds up, and those of "parts", which the next
    kernel does."""

    m: int
    n: int
    k: int
    warps: int
    stages: int = 1
    splits: int = 1


# settings by key ("*": of every product) that go before all others, for tuning and tests
forced: ContextVar[Mapping[str, Blocks] | None] = ContextVar("forced_blocks", default=None)


def blocks_for(epilogue: str, batch: int, rows: int, width: int, dtype: torch.dtype) -> Blocks:
    """The setting for `rows` rows of weights of `width` columns times `batch` inputs."""
    name, wanted = key(epilogue, batch, rows, width), forced.get() or {}
    setting = wanted.get(name) or wanted.get("*")
    # they were found for 16-bit weights
    if setting is None and dtype != torch.float32 and torch.cuda.is_available():
        setting = _tuned(torch.cuda.get_device_capability()).get(name)
    return setting or by_rule(epilogue, batch, rows, width, dtype)


def key(epilogue: str, batch: int, rows: int, width: int) -> str:
    """What a tuned setting is kept under: settings for 32 rows serve 17 to 32."""
    return f"{epilogue}:{power_of_2(batch)}:{rows}:{width}"


def by_rule(epilogue: str, batch: int, rows: int, width: int, dtype: torch.dtype) -> Blocks:
    """A setting that works everywhere; `experiments/fused-decode` tells what it loses."""
    if batch == 1:
        return _for_one(epilogue, width)
    m = min(max(LEAST_ROWS, power_of_2(batch)), ROWS_HELD)
    if dtype == torch.float32:
        return Blocks(m, 16, min(max(16, power_of_2(width)), 32), warps=4, stages=2)
    return _for_several(epilogue, m, rows, width)


def _for_one(epilogue: str, width: int) -> Blocks:
    """One row: which tile (rows, columns, warps) suits a width goes by what divides it."""
    if epilogue == "residual":
        tiles = {2048: (4, 2048, 8), 1024: (8, 1024, 8), 512: (8, 512, 4), 256: (2, 1024, 4)}
    else:
        odd = (8, 256, 4) if epilogue == "swiglu" else (16, 128, 4)
        tiles = {1024: (4, 1024, 4), 512: (4, 512, 4), 256: odd}
        # a program of one tile only would have no other on its way
        tiles = {columns: tile for columns, tile in tiles.items() if columns < width}
    fitting = (tile for columns, tile in tiles.items() if width % columns == 0)
    rows, columns, warps = next(fitting, (8, MOST_COLUMNS, 8))
    return Blocks(1, rows, min(columns, power_of_2(width)), warps)


def _for_several(epilogue: str, m: int, rows: int, width: int) -> Blocks:
    """m rows at a time: as many programs as run at once, with as many loads under way as fit."""
    pair = 2 if epilogue == "swiglu" else 1
    n, k = 64, 128 if m <= 32 else 64
    programs = -(-rows // (pair * n))
    shared = epilogue in ("residual", "parts")
    # where the weights are few, halves of the batch each read them
    if m == ROWS_HELD and (4 if shared else 2) * programs <= PROCESSORS:
        m, programs = m // 2, 2 * programs
    if pair == 2:
        k, stages = (k, 4 if m <= 32 else 5) if programs <= PROCESSORS else (64, 4)
    elif programs <= PROCESSORS:
        stages = 5 if m <= 32 else 8
    else:
        # two of them on a multiprocessor, or fewer with more rows of weights
        n, stages = (n, 3) if m <= 32 else (2 * n, 6)
    k = min(max(16, power_of_2(width)), k)
    splits = 1
    if shared:
        # two tiles each at least, and none empty
        splits = max(min(PROCESSORS // programs, width // (2 * k), MOST_SPLITS), 1)
        tiles = -(-width // k)
        splits = -(-tiles // -(-tiles // splits))
    held = 2 * k * (m + pair * n)
    return Blocks(m, n, k, 4, max(min(stages, _shared_memory() // held - 1), 1), splits)


@lru_cache(maxsize=1)
def _shared_memory() -> int:
    """Bytes that a program may have; those of a Hopper GPU where there is none to ask."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties().shared_memory_per_block_optin)
    return 232448


def power_of_2(size: int) -> int:
    """The least power of two that is not below `size`; 0 where that is not positive."""
    return 1 << (size - 1).bit_length() if size > 0 else 0


@lru_cache(maxsize=4)
def _tuned(capability: tuple[int, int]) -> dict[str, Blocks]:
    file = FOLDER / f"products_sm{capability[0]}{capability[1]}.json"
    with suppress(FileNotFoundError):
        kept = json.loads(file.read_text())["blocks"]
        return {name: Blocks(*values) for name, values in kept.items()}
    return {}
