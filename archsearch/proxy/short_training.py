"""Short training: the proxy that trains a candidate for a moment and looks at held-out text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from archsearch.model import build
from archsearch.space import ArchSpec
from archsearch.train.data import TokenData
from archsearch.train.loop import Curve
from archsearch.train.loop import train
from archsearch.train.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Score:
    """How a candidate did. Only status "ok" has a loss; otherwise `error` says in one line why.

    `loss` is held-out nats per token; `seconds` and `tokens_per_s` are those of `TrainResult`.
    """

    status: Literal["ok", "diverged", "failed"]
    error: str | None = None
    loss: float | None = None
    bits_per_byte: float | None = None
    perplexity: float | None = None
    curve: Curve = ()
    tokens_per_s: float | None = None
    seconds: float | None = None


def score(
    spec: ArchSpec,
    data: TokenData,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, float], None] | None = None,
) -> Score:
    """Build `spec` with weights from `seed`, train it by `recipe` and free it.

    A candidate that runs out of memory or whose operators raise RuntimeError is a recorded
    failure. A corpus or vocabulary that does not fit is the user's error: ValueError.
    """
    try:
        model = build(spec, seed=seed, device=device)
        result = train(model, data, recipe, seed=seed, on_step=on_step)
    except (MemoryError, RuntimeError) as error:
        return Score(status="failed", error=_line(error))
    return Score(
        status=result.status,
        error=result.error,
        loss=result.held_out_loss,
        bits_per_byte=result.bits_per_byte,
        perplexity=result.perplexity,
        curve=result.curve,
        tokens_per_s=result.tokens_per_s,
        seconds=result.seconds,
    )


def _line(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
