"""The least time that a device needs by its datasheet."""

from __future__ import annotations

from archsearch.hardware import Hardware
from archsearch.operators import Cost


def floor_us(cost: Cost, hardware: Hardware) -> float | None:
    """Microseconds below which no measurement of `cost` can be true: its bytes at the peak
    bandwidth or its FLOPs at the dense bf16 peak, whichever is longer. None without peaks.

    Bytes that stay in the L2 are no traffic: hold it against stacks that exceed it.
    """
    peaks = hardware.peaks
    if peaks is None:
        return None
    memory = cost.bytes / peaks.bandwidth_bytes_s
    compute = cost.flops / peaks.bf16_flops_s
    return 1e6 * max(memory, compute)
