"""The decode step at the largest batch that a GPU's memory holds."""

from __future__ import annotations

from archsearch.latency.whole import GIB
from archsearch.latency.whole import DoesNotFit
from archsearch.latency.whole import Measurement
from archsearch.latency.whole import WholeModel
from archsearch.operators import Shape
from archsearch.space import ArchSpec
from archsearch.space import count

# left to rotary tables, workspaces and the allocator: so much, and this share of what is free
SPARE_BYTES, SPARE_SHARE = 1 * GIB, 0.02
# memory of the calls before a recording is not that of the recording
POOLS = 2
# many rows are a multiple of what tensor cores take at once
ALIGNED, ALIGNED_FROM = 8, 64
# the first retry is with a sixteenth less, later ones with more
FIRST_CUT, LAST_CUT = 16, 2
# on a CPU the time ends before the memory does
CPU_ROWS = 8
# how other parts than torch's allocator say that the memory is full
FULL = ("out of memory", "ALLOC_FAILED")


def measure_largest_batch(
    model: WholeModel, *, context: int, capacity: int, limit: int | None, budget_s: float
) -> tuple[Measurement, int]:
    """One decode step behind `context` tokens, with room for `capacity` per row, of as many rows
    as fit (at most `limit`), and how many batches were tried.

    Raises DoesNotFit, a ValueError, where there is no room for a single row.
    """
    rows, cut, tries = _first_guess(model, capacity, limit), FIRST_CUT, 0
    while True:
        tries += 1
        try:
            shape = Shape("decode", rows, context, model.dtype)
            return model.measure(shape, budget_s=budget_s, capacity=capacity), tries
        except DoesNotFit:
            if rows == 1:
                raise
        except RuntimeError as error:
            if rows == 1 or not any(sign in str(error) for sign in FULL):
                raise
        rows, cut = fewer_rows(rows, cut), max(cut // 2, LAST_CUT)


def _first_guess(model: WholeModel, capacity: int, limit: int | None) -> int:
    if model.free_bytes() is None:
        return limit or CPU_ROWS
    # kernels are compiled, and what a model keeps is made, before the memory is full
    model.measure(Shape("decode", 1, 1, model.dtype), budget_s=0.0)
    free = model.free_bytes()
    assert free is not None, "a GPU has memory"
    rows = fitting_rows(free, row_bytes(model.spec, capacity, model.dtype))
    return rows if limit is None else min(rows, limit)


def row_bytes(spec: ArchSpec, capacity: int, dtype: str) -> int:
    """What one more row takes: its state, and its logits in the model's dtype, in fp32, and
    scaled."""
    element = Shape(dtype=dtype).element_bytes
    logits = POOLS * spec.vocab_size * (element + 4 + 4)
    return count.state_bytes(spec, capacity, 1, dtype) + logits


def fitting_rows(free_bytes: int, one_bytes: int) -> int:
    """How many rows of `one_bytes` each fit, at least 1: that one is tried."""
    room = free_bytes - SPARE_BYTES - SPARE_SHARE * free_bytes
    return _aligned(max(int(room / one_bytes), 1))


def fewer_rows(rows: int, cut: int) -> int:
    """One part out of `cut` less, at least one row less, at least 1."""
    return _aligned(max(rows - max(rows // cut, 1), 1))


def _aligned(rows: int) -> int:
    return rows - rows % ALIGNED if rows >= ALIGNED_FROM else rows
