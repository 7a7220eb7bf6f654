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
from archsearch.space import ArchSpec


def make_part(case: Case, device: str) -> tuple[Callable[[], object], nn.Module]:
    """The call to time and the module that holds its weights. Embedding: the model's own step
    or prefill without layers and head. Head: alone (in training with the loss)."""
    settings = json.loads(case.config)
    spec = ArchSpec.create(hidden_size=case.hidden_size, layers=(), **settings)
    model = build(spec, device=device, dtype=getattr(torch, case.dtype))
    if case.operator == EMBEDDING:
        return _embedding(model, case), model.embed
    return _head(model, case), model.head


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
    h = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(weight)
    if case.phase != "train":
        return lambda: model.head(h)
    h = h.detach().requires_grad_()
    targets = torch.zeros(case.batch * case.context, dtype=torch.long, device=h.device)
    inputs = [h, *model.head.parameters()]

    def call() -> object:
        loss = F.cross_entropy(model.head(h).flatten(0, 1), targets)
        return torch.autograd.grad(loss, inputs)

    return call
