"""Which operators have a fused decode step (`operators/<op>/step.py`), and for which of them it
runs unless another backend is asked for. Imports no torch."""

from __future__ import annotations

STEPS = (
    "attention",
    "deltanet",
    "ffn",
    "gated_deltanet",
    "gated_deltaproduct",
    "gla",
    "kda",
    "mamba",
    "mamba2",
    "mamba3",
    "mla",
    "retention",
    "rwkv7",
    "sliding_window",
)
# the part of a model beside its layers that has one too
HEAD = "head"
# those whose step has passed its tests on a GPU and was measured to be faster
PREFERRED = (*STEPS, HEAD)

# rows of a batch beyond which the plain step was measured to be faster
MOST_ROWS = {"mamba": 32}


def decode_backends(operator: str, backends: tuple[str, ...], rows: int = 1) -> tuple[str, ...]:
    """The `backends` of an operator's decode step of `rows` rows in order of preference, the
    fused one among them where there is one."""
    if operator not in STEPS:
        return backends
    preferred = operator in PREFERRED and rows <= MOST_ROWS.get(operator, rows)
    return ("triton", *backends) if preferred else (*backends, "triton")
