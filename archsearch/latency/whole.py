"""Time a whole model: what a prediction is held against. Legend: B rows, T tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from archsearch import timing
from archsearch.latency.stack import fill
from archsearch.model import HybridLM
from archsearch.model import build
from archsearch.operators import Shape
from archsearch.space import ArchSpec


def measure_model(
    spec: ArchSpec, shape: Shape, *, device: str = "cpu", budget_s: float = 1.5
) -> timing.Timing:
    """Time one decode step behind `context` real tokens, one prefill of `context` tokens, or
    forward and backward over them, of a freshly drawn model of `spec`; on a CPU the quietest
    of several measurements."""
    model = build(spec, device=device, dtype=getattr(torch, shape.dtype))
    make = {"decode": decode_call, "prefill": prefill_call, "train": train_call}[shape.phase]
    call = make(model, shape)
    passes = 1 if device.startswith("cuda") else timing.CPU_PASSES
    timings = [
        timing.measure(call, device=device, budget_s=budget_s / passes, min_repeats=10)
        for _ in range(passes)
    ]
    return min(timings, key=lambda measured: measured.p50_us)


def decode_call(model: HybridLM, shape: Shape) -> Callable[[], Tensor]:
    """A call that decodes one token per row, always at the same position."""
    behind = shape.context + model.spec.num_meta_tokens
    state = model.init_state(shape.batch, shape.context + 1)
    fill(state.layers, torch.Generator().manual_seed(0))
    ids = _ids(model, shape.batch)

    @torch.inference_mode()
    def call() -> Tensor:
        state.position.fill_(behind)
        state.longest = behind
        return model.step(ids, state)

    return call


def prefill_call(model: HybridLM, shape: Shape) -> Callable[[], Tensor]:
    """A call that reads prompts of `context` tokens into fresh rows."""
    state = model.init_state(shape.batch, shape.context)
    ids = _ids(model, shape.batch, shape.context)

    @torch.inference_mode()
    def call() -> Tensor:
        state.position.zero_()
        state.longest = 0
        return model.prefill(ids, state)

    return call


def train_call(model: HybridLM, shape: Shape) -> Callable[[], object]:
    """A call of forward, loss and backward over `context` tokens per row."""
    ids = _ids(model, shape.batch, shape.context + 1)
    parameters = list(model.parameters())
    return lambda: torch.autograd.grad(model.loss(ids), parameters, allow_unused=True)


def _ids(model: HybridLM, *size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.spec.vocab_size, size, generator=generator)
    return ids.to(model.embed.weight.device)
