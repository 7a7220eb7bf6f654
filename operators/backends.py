"""The one place where an implementation is chosen for an operator.

An operator lists its backends in order of preference; the first one that can serve the
request wins. `override` forces one, for tests and for users who compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

KNOWN = ("reference", "torch", "sdpa")

_forced: ContextVar[dict[str, str] | None] = ContextVar("forced_backends", default=None)


def choose(
    operator: str, offered: tuple[str, ...], phase: str, device: str, dtype: torch.dtype
) -> str:
    """Return the backend that serves `operator` for (phase, device type, dtype)."""
    # every backend so far is plain PyTorch and serves all phases, devices and dtypes
    forced = _forced.get()
    if forced:
        wanted = forced.get(operator, forced.get("*"))
        if wanted in offered:
            return wanted
        if wanted is not None and operator in forced:
            raise ValueError(
                f"operator {operator!r} has no backend {wanted!r}; it has {list(offered)}"
            )
    return offered[0]


@contextmanager
def override(backend: str, operator: str = "*") -> Iterator[None]:
    """Force `backend` for one operator, or ("*") for every operator that offers it."""
    if backend not in KNOWN:
        raise ValueError(f"backend must be one of {list(KNOWN)}; got {backend!r}")
    token = _forced.set({**(_forced.get() or {}), operator: backend})
    try:
        yield
    finally:
        _forced.reset(token)
