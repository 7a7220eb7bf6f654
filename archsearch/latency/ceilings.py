"""What a GPU reaches today: measured at the start of a session, since rows are held against it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from dataclasses import dataclass

import torch

from archsearch import timing

WARM_S = 1.0
MATMUL = 8192
# one read of so many bytes, or of a quarter of the memory
READ_BYTES = 4 << 30
COLUMNS = 8192
# kernels of the smaller of two graphs that differ by nothing else, and how often both are timed
MANY = 100
PAIRS = 7


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes per second of one large read, FLOPs per second of a large bf16 product, both at full
    clocks, and what replaying a graph costs beyond its kernels."""

    read_bytes_s: float
    matmul_flops_s: float
    replay_us: float

    def to_dict(self) -> dict[str, float]:
        """Plain values, for provenance."""
        return asdict(self)


def measure_ceilings(device: str) -> Ceilings:
    """Warm the GPU up until its clocks are, then measure what it reaches. Raises ValueError for
    a GPU that is too full, or that cannot replay CUDA graphs."""
    try:
        with torch.inference_mode():
            product = _matmul(device)
            _keep_busy(product, device)
            flops = 2.0 * MATMUL**3 / (1e-6 * _median_us(product, device))
            return Ceilings(_read_bytes_s(device), flops, _replay_us(device))
    except torch.OutOfMemoryError:
        need = _read_size(device) / 1e9
        raise ValueError(f"measuring needs {need:.0f} GB of free GPU memory") from None
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"this GPU cannot replay CUDA graphs: {reason}") from error
    finally:
        torch.cuda.empty_cache()


def _keep_busy(product: Callable[[], object], device: str) -> None:
    until = time.perf_counter() + WARM_S
    while time.perf_counter() < until:
        product()
        torch.cuda.synchronize(device)


def _matmul(device: str) -> Callable[[], object]:
    a, b = (torch.randn(MATMUL, MATMUL, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def _read_bytes_s(device: str) -> float:
    """The better of a matrix-vector product and a sum over the same bytes."""
    rows = _read_size(device) // (2 * COLUMNS)
    matrix = torch.ones(rows, COLUMNS, dtype=torch.bfloat16, device=device)
    vector = torch.ones(COLUMNS, dtype=torch.bfloat16, device=device)
    out = torch.empty(rows, dtype=torch.bfloat16, device=device)
    floats = matrix.view(torch.float32).flatten()
    quickest = min(
        _median_us(lambda: torch.mv(matrix, vector, out=out), device),
        _median_us(lambda: floats.sum(), device),
    )
    return float(1e6 * matrix.numel() * matrix.element_size() / quickest)


def _read_size(device: str) -> int:
    return min(READ_BYTES, int(torch.cuda.get_device_properties(device).total_memory) // 4)


def _replay_us(device: str) -> float:
    """What a replay costs once: that of a graph of many kernels, less what as many more add. A
    difference of large numbers: the median of several."""
    small = torch.zeros(1024, device=device)

    def once() -> float:
        some, twice = (
            count * _median_us(lambda: small.add_(1), device, inner=count, budget_s=0.01)
            for count in (MANY, 2 * MANY)
        )
        return 2 * some - twice

    return max(0.0, statistics.median(once() for _ in range(PAIRS)))


def _median_us(
    fn: Callable[[], object], device: str, inner: int = 1, budget_s: float = 0.1
) -> float:
    return timing.measure(fn, device=device, inner=inner, budget_s=budget_s).p50_us
