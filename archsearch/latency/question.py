"""What a comparison of models asks of each of them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from typing import Literal

from archsearch.operators.base import DTYPE_BYTES

Part = Literal["latency", "prefill", "throughput"]
# the largest batch comes last: it is what may break
PARTS: tuple[Part, ...] = ("latency", "prefill", "throughput")
# the fields of a question that a part depends on
FIELDS: dict[Part, tuple[str, ...]] = {
    "latency": ("tokens", "dtype"),
    "prefill": ("input_tokens", "dtype"),
    "throughput": ("input_tokens", "output_tokens", "max_batch", "dtype"),
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of every model: `tokens` decoded at batch 1, and the throughput of
    `output_tokens` behind `input_tokens` at the largest batch (None: what fits)."""

    tokens: int = 8192
    input_tokens: int = 32768
    output_tokens: int = 1024
    dtype: str = "bfloat16"
    max_batch: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype must be one of {list(DTYPE_BYTES)}; got {self.dtype!r}")
        if self.tokens < 2:
            raise ValueError(f"tokens must be at least 2; got {self.tokens}")
        for name in ("input_tokens", "output_tokens", "max_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive; got {value}")

    @property
    def contexts(self) -> tuple[int, ...]:
        """Where the step of the `tokens` is measured: begin, middle, end."""
        return tuple(sorted({1, self.tokens // 2, self.tokens - 1}))

    @property
    def middle(self) -> int:
        """Tokens behind the one in the middle of the output."""
        return self.input_tokens + self.output_tokens // 2

    def of(self, part: Part) -> dict[str, Any]:
        """What a part depends on."""
        return {"part": part, **{field: getattr(self, field) for field in FIELDS[part]}}


def explain(question: Question) -> dict[str, str]:
    """How each figure is computed, in a sentence."""
    limit = "" if question.max_batch is None else f" (at most {question.max_batch})"
    steps = ", ".join(f"{context:,}" for context in question.contexts)
    return {
        "latency": f"{question.tokens:,} tokens decoded at batch 1: the mean step by the trapezoid"
        f" rule, measured behind {steps} tokens with room for {question.tokens:,}.",
        "throughput": f"Behind {question.input_tokens:,} input tokens, at the largest batch that"
        f" fits{limit} with {question.output_tokens:,} output tokens: batch over the step in the"
        " middle of the output. +prefill: with the time of all prompts, that of one times the"
        " batch. Times are of steady work, one call after another.",
        "floor": "Bytes of weights, states and key/value caches over the read bandwidth that this"
        " run measured, as a share of the time.",
        "NF": "How many times as fast Nemotron-Flash is by the figure before: the 1B or the 3B, as"
        " the paper pairs them.",
    }
