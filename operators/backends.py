"""The one place where an implementation is chosen for an operator.

An operator lists its backends in order of preference; the first one that can serve the
request wins, and one that cannot says why. `override` forces one, for tests and for users who
compare; `recorded` tells which ones really ran.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec

import torch

from archsearch.operators.base import Phase
from archsearch.operators.fused.table import STEPS

# what to install for each; "" where torch alone is enough
PACKAGES = {
    "fla": "flash-linear-attention",
    "mamba_ssm": "mamba-ssm",
    "causal_conv1d": "causal-conv1d",
    "flash_attn": "flash-attn",
    "triton": "triton",
    "sdpa": "",
    "torch": "",
    "reference": "",
}
KNOWN = tuple(PACKAGES)
# whose kernels Triton's interpreter runs on a CPU
INTERPRETED = ("fla", "mamba_ssm", "triton")


@dataclass(frozen=True, slots=True)
class Request:
    """What a backend is asked to serve; `device` is a type ("cpu", "cuda"). In phase "train"
    gradients are needed."""

    operator: str
    phase: Phase
    device: str
    dtype: torch.dtype

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.operator} in {self.phase} on {self.device} in {kind}"


# (backend, request) -> why it cannot serve it, "" if it can; a clause that follows "since"
Refuses = Callable[[str, Request], str]

_forced: ContextVar[dict[str, str] | None] = ContextVar("forced_backends", default=None)
_used: ContextVar[dict[str, str] | None] = ContextVar("used_backends", default=None)


def _never(backend: str, request: Request) -> str:
    return ""


def choose(offered: tuple[str, ...], request: Request, refuses: Refuses = _never) -> str:
    """Return the first of the `offered` backends that serves the request, or the forced one.

    Raises ValueError if the forced one does not exist or cannot serve it.
    """
    chosen = _forced_choice(offered, request, refuses) or next(
        backend for backend in offered if not why_not(backend, request, refuses)
    )
    used = _used.get()
    if used is not None:
        used[request.operator] = chosen
    return chosen


def explain(
    offered: tuple[str, ...], request: Request, refuses: Refuses = _never
) -> dict[str, str]:
    """For every offered backend why it cannot serve the request; "" where it can."""
    return {backend: why_not(backend, request, refuses) for backend in offered}


def why_not(backend: str, request: Request, refuses: Refuses = _never) -> str:
    """Why `backend` cannot serve the request; "" if it can."""
    return _lacks(backend, request.device) or refuses(backend, request)


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


@contextmanager
def recorded() -> Iterator[Mapping[str, str]]:
    """Collect {operator: backend that ran} of the calls within."""
    used: dict[str, str] = {}
    token = _used.set(used)
    try:
        yield used
    finally:
        _used.reset(token)


def label(used: Mapping[str, str], operator: str) -> str:
    """One name for what ran in a layer of `operator`: its own backend, then those of its parts
    that are no plain PyTorch, as in "fla+causal_conv1d"."""
    own = used.get(operator, "torch")
    parts = {backend for name, backend in used.items() if name != operator} - {"torch", own}
    return "+".join([own, *sorted(parts)])


def forced(operator: str) -> str:
    """The backend that `override` asks for; "" where it asks for none."""
    wanted = _forced.get() or {}
    return wanted.get(operator, wanted.get("*", ""))


def _forced_choice(offered: tuple[str, ...], request: Request, refuses: Refuses) -> str:
    wanted = forced(request.operator)
    if wanted not in offered:
        # a fused step serves decode alone: a prompt before it goes its own way
        fused = wanted == "triton" and request.operator in STEPS
        if request.operator in (_forced.get() or {}) and not fused:
            raise ValueError(
                f"operator {request.operator!r} has no backend {wanted!r}; it has {list(offered)}"
            )
        return ""
    reason = why_not(wanted, request, refuses)
    if reason:
        raise ValueError(f"backend {wanted!r} cannot serve {request}, since {reason}")
    return wanted


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache(maxsize=64)
def _lacks(backend: str, device: str) -> str:
    """What the machine or the installation lacks for `backend`."""
    package = PACKAGES[backend]
    if not package:
        return ""
    if device != "cuda" and not (interpreting() and backend in INTERPRETED):
        return "it needs a CUDA GPU"
    if find_spec(backend) is None:
        return f"{package} is not installed"
    # what Triton's autotuners find is kept on disk, as its kernels are: read by the import
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    try:
        import_module(backend)
    except Exception as error:
        return f"importing {backend} fails ({type(error).__name__}: {error})"
    return ""


@lru_cache(maxsize=1)
def triton_version() -> tuple[int, ...]:
    """Triton's version as numbers; empty where it is not installed."""
    if find_spec("triton") is None:
        return ()
    text = str(import_module("triton").__version__).split("+")[0]
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())


@lru_cache(maxsize=1)
def is_hopper() -> bool:
    """Whether the current GPU is a Hopper (compute capability 9)."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
