"""What the rows of embedding and head time. Legend: B rows, T tokens, H hidden size."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from archsearch.latency.cases import ANY_CONTEXT
from archsearch.latency.cases import EMBEDDING
from archsearch.latency.cases import Case
from archsearch.model import HybridLM
from archsearch.model import build
from archsearch.model.fused_head import step_logits
from archsearch.space import ArchSpec


def build_part(case: Case, device: str) -> HybridLM:
    """A model without layers, whose embedding or head is timed."""
    spec = ArchSpec.create(hidden_size=case.hidden_size, layers=(), **json.loads(case.config))
    return build(spec, device=device, dtype=getattr(torch, case.dtype))


def part_weights(model: HybridLM, case: Case) -> nn.Module:
    """What holds the weights that `case` times."""
    return model.embed if case.operator == EMBEDDING else model.head


def part_call(model: HybridLM, case: Case) -> Callable[[], object]:
    """The call to time. Embedding: the model's own step or prefill without layers and head.
    Head: alone (in training with the loss)."""
    return _embedding(model, case) if case.operator == EMBEDDING else _head(model, case)


def _embedding(model: HybridLM, case: Case) -> Callable[[], object]:
    tokens = () if case.phase == "decode" else (case.context,)
    ids = torch.arange(case.batch * max(case.context, 1)).remainder(model.spec.vocab_size)
    ids = ids.view(case.batch, *tokens).to(model.embed.weight.device)
    if case.phase == "train":
        gradient = torch.ones_like(model.embed(ids))
        weight = model.embed.weight
        return lambda: torch.autograd.grad(model.embed(ids), weight, gradient)
    model.add_module("head", nn.Identity())
    # without layers a state holds no tokens: it never fills up
    state = model.init_state(case.batch, 1 << 40)

    def step() -> Tensor:
        return model.step(ids, state)

    def prefill() -> Tensor:
        state.position.zero_()
        state.longest = 0
        return model.prefill(ids, state)

    return step if case.phase == "decode" else prefill


def _head(model: HybridLM, case: Case) -> Callable[[], object]:
    weight = model.head.proj.weight
    tokens = () if case.context == ANY_CONTEXT else (case.context,)
    size = (case.batch, *tokens, case.hidden_size)
    generator = torch.Generator(weight.device).manual_seed(0)
    h = torch.randn(size, generator=generator, device=weight.device).to(weight.dtype)
    if case.phase == "decode":
        return lambda: step_logits(model.head, h)
    if case.phase == "prefill":
        return lambda: model.head(h)
    h = h.detach().requires_grad_()
    targets = torch.zeros(case.batch * case.context, dtype=torch.long, device=h.device)
    inputs = [h, *model.head.parameters()]

    def call() -> object:
        loss = F.cross_entropy(model.head(h).flatten(0, 1), targets)
        return torch.autograd.grad(loss, inputs)

    return call
