"""The training loop: one for proxies and for real runs. Legend: B rows, T tokens predicted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from archsearch.model import HybridLM
from archsearch.model import normalize_weights_
from archsearch.train.data import TokenData
from archsearch.train.optim import lr_at
from archsearch.train.optim import make_optimizer
from archsearch.train.recipe import Recipe

CURVE_POINTS = 200

# a run is lost when it stays this far above the loss of a uniform guess for so many steps
_HOPELESS_RATIO = 1.5
_HOPELESS_STEPS = 25

Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run came to. A diverged run has an `error` and no held-out numbers.

    `curve`: (step, mean training loss since the point before), at most 200 points, steps
    counted from 1; `held_out_loss` in nats per token; `tokens` and `tokens_per_s` count
    training alone, `seconds` the evaluation as well.
    """

    status: Literal["ok", "diverged"]
    error: str | None
    curve: Curve
    held_out_loss: float | None
    bits_per_byte: float | None
    perplexity: float | None
    tokens: int
    tokens_per_s: float
    seconds: float


def train(
    model: HybridLM,
    data: TokenData,
    recipe: Recipe,
    *,
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainResult:
    """Train `model` in place on batches drawn from `seed`, then evaluate it on held-out text.

    `on_step(step, loss)` is called after every step, counted from 1; what it raises passes
    through. On one CPU the same seed gives the same curve bit by bit. Raises ValueError if
    the corpus is too small or the model's vocabulary does not hold its tokens.
    """
    data.check(recipe.seq_len)
    if model.spec.vocab_size < data.vocab_size:
        raise ValueError(
            f"vocab_size must be at least {data.vocab_size} for tokenizer {data.tokenizer!r};"
            f" got {model.spec.vocab_size}"
        )
    begin = time.perf_counter()
    losses: list[float] = []
    error = _run(model, data, recipe, seed, losses, on_step)
    trained = time.perf_counter() - begin
    loss = None if error else evaluate(model, data, recipe)
    if loss is not None and not math.isfinite(loss):
        error, loss = "the held-out loss is not finite", None
    tokens = len(losses) * recipe.batch_size * recipe.seq_len
    return TrainResult(
        status="diverged" if error else "ok",
        error=error,
        curve=thin(losses),
        held_out_loss=loss,
        bits_per_byte=None if loss is None else bits_per_byte(loss, data),
        perplexity=None if loss is None else perplexity(loss),
        tokens=tokens,
        tokens_per_s=tokens / trained,
        seconds=time.perf_counter() - begin,
    )


def _run(
    model: HybridLM,
    data: TokenData,
    recipe: Recipe,
    seed: int,
    losses: list[float],
    on_step: Callable[[int, float], None] | None,
) -> str | None:
    """All steps, each loss appended to `losses`; returns why the run diverged, if it did."""
    optimizer = make_optimizer(model, recipe)
    limit = _HOPELESS_RATIO * math.log(data.vocab_size)
    model.train()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, recipe)
        ids = data.batch(step, batch_size=recipe.batch_size, seq_len=recipe.seq_len, seed=seed)
        optimizer.zero_grad(set_to_none=True)
        loss = _loss(model, ids, recipe)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip or math.inf)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            return f"the loss is not finite at step {step + 1}"
        if not math.isfinite(norm.item()):
            return f"the gradient norm is not finite at step {step + 1}"
        if (
            min(losses[-_HOPELESS_STEPS:]) > limit
            and step >= recipe.warmup_steps + _HOPELESS_STEPS
        ):
            return (
                f"the loss stayed above {limit:.2f} for {_HOPELESS_STEPS} steps until step"
                f" {step + 1}; a uniform guess has {math.log(data.vocab_size):.2f}"
            )
        optimizer.step()
        if recipe.weight_norm:
            normalize_weights_(model)
        if on_step is not None:
            on_step(step + 1, losses[-1])
    return None


def _loss(model: HybridLM, ids: Tensor, recipe: Recipe) -> Tensor:
    """Mean cross-entropy over ids[B,T+1], under autocast where the recipe says so."""
    device = next(model.parameters()).device
    reduced = recipe.dtype == "bfloat16"
    with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
        return model.loss(ids.to(device))


@torch.no_grad()
def evaluate(model: HybridLM, data: TokenData, recipe: Recipe) -> float:
    """Mean loss in nats per token over the fixed held-out windows of the recipe."""
    windows = data.held_out_windows(recipe.seq_len, recipe.eval_tokens)
    was_training = model.training
    model.eval()
    total = 0.0
    for ids in windows.split(recipe.batch_size):
        total += _loss(model, ids, recipe).item() * len(ids)
    model.train(was_training)
    return total / len(windows)


def bits_per_byte(loss: float, data: TokenData) -> float:
    """Nats per token as bits per byte of text, which compares across tokenizers."""
    return loss / math.log(2) / data.bytes_per_token


def perplexity(loss: float) -> float:
    """exp of nats per token; infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf


def thin(losses: Sequence[float]) -> Curve:
    """At most 200 points: the mean of equal stretches, each at its last step."""
    size = max(math.ceil(len(losses) / CURVE_POINTS), 1)
    points = []
    for begin in range(0, len(losses), size):
        stretch = losses[begin : begin + size]
        points.append((begin + len(stretch), sum(stretch) / len(stretch)))
    return tuple(points)
