"""What a row times: a stack of distinct layers of one operator, or a part that is no layer.

Legend: B rows, T tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from archsearch import operators
from archsearch.latency.cases import ANY_CONTEXT
from archsearch.latency.cases import EMBEDDING
from archsearch.latency.cases import PARTS
from archsearch.latency.cases import Case
from archsearch.latency.cases import part_cost
from archsearch.model import HybridLM
from archsearch.model import Layer
from archsearch.operators import Cost
from archsearch.operators.layer import State
from archsearch.operators.sequence import SequenceInfo
from archsearch.space import ArchSpec

# distinct layers per timed call: more where a layer is quick
STACK = {"decode": 6, "prefill": 3, "train": 2}
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Work:
    """One timed call: `count` equal parts that hold `num_bytes` of weights and states."""

    call: Callable[[], object]
    count: int
    num_bytes: int
    backend: str
    cost: Cost


def prepare(case: Case, device: str) -> Work:
    """Build what `case` times; raises whatever the operator raises."""
    if case.operator in PARTS:
        return _part(case, device)
    operator = operators.get(case.operator)
    config = operator.configure(case.hidden_size, **json.loads(case.config))
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(0)
    layers = []
    for _ in range(STACK[case.phase]):
        layer = Layer(operator.build(config), NORM_EPS)
        layer.init_weights(generator)
        layers.append(layer.to(device=device, dtype=dtype))
    tokens = () if case.phase == "decode" else (case.context,)
    h = torch.randn(case.batch, *tokens, case.hidden_size, generator=generator)
    h = h.to(device=device, dtype=dtype)
    # a decode step writes the token at position `context`
    room = case.context + 1 if case.phase == "decode" else case.context
    states = []
    if case.phase != "train":
        states = [layer.mixer.init_state(case.batch, room, dtype, device) for layer in layers]
        fill(states, generator)
    make = {"decode": _decode, "prefill": _prefill, "train": _train}[case.phase]
    return Work(
        call=make(layers, states, h, case),
        count=len(layers),
        num_bytes=_num_bytes(layers) + sum(state.num_bytes for state in states),
        backend=layers[0].mixer.backend(h, case.phase),
        cost=operator.cost(config, case.shape),
    )


def fill(states: Iterable[State], generator: torch.Generator) -> None:
    """Give the states values as if they had seen tokens: no zeros, nothing denormal."""
    for state in states:
        for tensor in state.tensors.values():
            values = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(0.1 * values)


def _decode(
    layers: list[Layer], states: list[State], h: Tensor, case: Case
) -> Callable[[], object]:
    position = torch.full((case.batch,), case.context, device=h.device)
    active = torch.ones(case.batch, dtype=torch.bool, device=h.device)
    pairs = list(zip(layers, states, strict=True))

    @torch.inference_mode()
    def call() -> Tensor:
        x = h
        for layer, state in pairs:
            x = layer.step(x, state, position, active)
        return x

    return call


def _prefill(
    layers: list[Layer], states: list[State], h: Tensor, case: Case
) -> Callable[[], object]:
    pairs = list(zip(layers, states, strict=True))
    seq = SequenceInfo.padded([case.context] * case.batch, case.context, device=h.device)

    @torch.inference_mode()
    def call() -> Tensor:
        x = h
        for layer, state in pairs:
            x = layer(x, state=state, seq=seq)
        return x

    return call


def _train(
    layers: list[Layer], states: list[State], h: Tensor, case: Case
) -> Callable[[], object]:
    del states, case
    h.requires_grad_()
    inputs = [h, *(parameter for layer in layers for parameter in layer.parameters())]
    gradient = torch.ones_like(h)

    def call() -> object:
        x = h
        for layer in layers:
            x = layer(x)
        return torch.autograd.grad(x, inputs, gradient, allow_unused=True)

    return call


def _part(case: Case, device: str) -> Work:
    """Embedding: the model's own step or prefill without layers and head. Head: alone."""
    settings = json.loads(case.config)
    spec = ArchSpec.create(hidden_size=case.hidden_size, layers=(), **settings)
    model = HybridLM(spec, device=device, dtype=getattr(torch, case.dtype))
    model.init_weights(seed=0)
    call = _embedding(model, case) if case.operator == EMBEDDING else _head(model, case)
    size = _num_bytes([model.embed])
    return Work(call, 1, size, "torch", part_cost(case, spec.vocab_size))


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

    @torch.inference_mode()
    def step() -> Tensor:
        return model.step(ids, state)

    @torch.inference_mode()
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
        return torch.inference_mode()(lambda: model.head(h))
    h = h.detach().requires_grad_()
    targets = torch.zeros(case.batch * case.context, dtype=torch.long, device=h.device)
    inputs = [h, *model.head.parameters()]

    def call() -> object:
        loss = F.cross_entropy(model.head(h).flatten(0, 1), targets)
        return torch.autograd.grad(loss, inputs)

    return call


def _num_bytes(modules: Iterable[nn.Module]) -> int:
    return sum(p.numel() * p.element_size() for m in modules for p in m.parameters())
