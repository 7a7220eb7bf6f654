"""What a row times: one layer among others, as it runs in a model.

Legend: B rows, T tokens, H hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle

import torch
from torch import Tensor
from torch import nn

from archsearch import operators
from archsearch.latency.cases import PARTS
from archsearch.latency.cases import Case
from archsearch.latency.cases import config_key
from archsearch.latency.cases import part_cost
from archsearch.latency.parts import make_part
from archsearch.model import Layer
from archsearch.operators import Cost
from archsearch.operators.layer import State
from archsearch.operators.sequence import SequenceInfo

# distinct layers of the measured operator: more where a layer is quick
STACK = {"decode": 6, "prefill": 3, "train": 2}
# what runs between them on a CPU: the first mixer that is another operator, and an FFN
COMPANY = ("mamba2", "gated_deltanet")
NORM_EPS = 1e-6

Call = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """One timed call that runs `count` of the `distinct` layers, whose weights and states have
    `num_bytes`; `before` runs untimed ahead of it."""

    call: Call
    count: int
    distinct: int
    num_bytes: int
    backend: str
    cost: Cost
    before: Call | None = None


def prepare(case: Case, device: str) -> Work:
    """Build what `case` times; raises whatever the operator raises.

    On a CPU a sample is one layer, the layers taking turns, behind layers of other operators
    that run untimed: a stack of equal layers alone finds its code and weights in the caches
    and is up to twice as fast as the same layers in a hybrid. On a GPU it is the whole stack.
    """
    if case.operator in PARTS:
        call, module = make_part(case, device)
        vocabulary = json.loads(case.config)["vocab_size"]
        calls, backend, cost = [call], "torch", part_cost(case, vocabulary)
        num_bytes = _weight_bytes([module])
    else:
        slots = make_slots(case, device)
        calls = [slot.call for slot in slots]
        operator = operators.get(case.operator)
        config = operator.configure(case.hidden_size, **json.loads(case.config))
        backend, cost = slots[0].backend, operator.cost(config, case.shape)
        num_bytes = sum(slot.num_bytes for slot in slots)
    if device.startswith("cuda"):
        return Work(_all_of(calls), len(calls), len(calls), num_bytes, backend, cost)
    before = None if case.phase == "train" else _in_turn(_company(case))
    return Work(_in_turn(calls), 1, len(calls), num_bytes, backend, cost, before)


@dataclass(frozen=True)
class Slot:
    """One layer with what it works on."""

    call: Call
    num_bytes: int
    backend: str


def make_slots(case: Case, device: str) -> list[Slot]:
    """The distinct layers of `case`, each with its own weights, state and call."""
    operator = operators.get(case.operator)
    config = operator.configure(case.hidden_size, **json.loads(case.config))
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(0)
    # a decode step writes the token at position `context`
    room = case.context + 1 if case.phase == "decode" else case.context
    tokens = () if case.phase == "decode" else (case.context,)
    slots = []
    for _ in range(STACK[case.phase]):
        with torch.random.fork_rng(devices=[]):
            # torch's own layers draw weights when they are made, which init_weights replaces
            layer = Layer(operator.build(config), NORM_EPS)
        layer.init_weights(generator)
        layer.to(device=device, dtype=dtype)
        h = torch.randn(case.batch, *tokens, case.hidden_size, generator=generator)
        h = h.to(device=device, dtype=dtype)
        state = layer.mixer.init_state(case.batch, room, dtype, device)
        fill([state], generator)
        call = _MAKERS[case.phase](layer, state, h, case)
        size = _weight_bytes([layer]) + (0 if case.phase == "train" else state.num_bytes)
        slots.append(Slot(call, size, layer.mixer.backend(h, case.phase)))
    return slots


def fill(states: Iterable[State], generator: torch.Generator) -> None:
    """Give the states values as if they had seen tokens: no zeros, nothing denormal."""
    for state in states:
        for tensor in state.tensors.values():
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))


def _decode(layer: Layer, state: State, h: Tensor, case: Case) -> Call:
    position = torch.full((case.batch,), case.context, device=h.device)
    active = torch.ones(case.batch, dtype=torch.bool, device=h.device)
    return lambda: layer.step(h, state, position, active)


def _prefill(layer: Layer, state: State, h: Tensor, case: Case) -> Call:
    seq = SequenceInfo.padded([case.context] * case.batch, case.context, device=h.device)
    return lambda: layer(h, state=state, seq=seq)


def _train(layer: Layer, state: State, h: Tensor, case: Case) -> Call:
    del state, case
    inputs = [h.requires_grad_(), *layer.parameters()]
    gradient = torch.ones_like(h)
    return lambda: torch.autograd.grad(layer(h), inputs, gradient, allow_unused=True)


_MAKERS = {"decode": _decode, "prefill": _prefill, "train": _train}


def _company(case: Case) -> list[Call]:
    """Calls that each run one mixer and one FFN (for an FFN, the mixer alone)."""
    mixer = next(name for name in COMPANY if name != case.operator)
    names = (mixer,) if case.operator == "ffn" else (mixer, "ffn")
    columns = [
        _company_calls(name, case.hidden_size, case.phase, case.batch, case.context, case.dtype)
        for name in names
    ]
    return [_all_of(calls) for calls in zip(*columns, strict=True)]


@lru_cache(maxsize=8)
def _company_calls(
    name: str, width: int, phase: operators.Phase, batch: int, context: int, dtype: str
) -> list[Call]:
    config = config_key(operators.get(name).configure(width))
    # the rows of parts and constant operators name no context; these two have any
    case = Case(name, config, width, phase, batch, max(context, 1), dtype)
    return [slot.call for slot in make_slots(case, "cpu")]


def _in_turn(calls: Sequence[Call]) -> Call:
    turn = cycle(calls)
    return lambda: next(turn)()


def _all_of(calls: Sequence[Call]) -> Call:
    def run() -> None:
        for call in calls:
            call()

    return run


def _weight_bytes(modules: Iterable[nn.Module]) -> int:
    return sum(p.numel() * p.element_size() for m in modules for p in m.parameters())
