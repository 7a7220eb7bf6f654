"""What a row times: one layer among others, as it runs in a model.

Legend: B rows, T tokens, H hidden size.
"""

from __future__ import annotations

import json
import math
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
from archsearch.latency.cases import EMBEDDING
from archsearch.latency.cases import PARTS
from archsearch.latency.cases import Case
from archsearch.latency.cases import config_key
from archsearch.latency.cases import part_cost
from archsearch.latency.parts import part_call
from archsearch.latency.parts import part_weights
from archsearch.latency.shelf import Shelf
from archsearch.model import Layer
from archsearch.operators import Cost
from archsearch.operators import backends
from archsearch.operators.layer import State

# distinct layers of the measured operator on a CPU: more where a layer is quick
STACK = {"decode": 6, "prefill": 3, "train": 2}
# on a GPU at least and at most so many, within that as many as exceed the L2 so many times
GPU_STACK = {"decode": (2, 32), "prefill": (2, 4), "train": (2, 3)}
L2_TIMES = 4
# or, of decode steps, as have the bytes of a model: reads from 2 GB take up to 8 % longer than
# from 200 MB, which no L2 holds either (experiments/distinct-layers)
DECODE_BYTES = 4 * 10**9
# what of a GPU's memory layers and their states may take: the rest is for activations
ROOM = 0.85
# what runs between them on a CPU: the first mixer that is another operator, and an FFN
COMPANY = ("mamba2", "gated_deltanet")

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


def prepare(case: Case, device: str, shelf: Shelf | None = None) -> Work:
    """Build what `case` times and run a first part of it; raises whatever the operator raises,
    and ValueError where the device's memory is too small.

    On a CPU a sample is one layer, the layers taking turns, behind layers of other operators
    that run untimed: a stack of equal layers alone finds its code and weights in the caches
    and is up to twice as fast as the same layers in a hybrid. On a GPU it is the whole stack.
    """
    shelf = shelf or Shelf(device)
    cost = cost_of(case)
    slots = make_slots(case, shelf, _num_distinct(case, cost, device))
    calls = [slot.call for slot in slots]
    num_bytes = sum(slot.num_bytes for slot in slots)
    with backends.recorded() as used, torch.inference_mode(case.phase != "train"):
        calls[0]()
    backend = backends.label(used, case.operator)
    if device.startswith("cuda"):
        return Work(all_of(calls), len(calls), len(calls), num_bytes, backend, cost)
    before = None if case.phase == "train" else _in_turn(_company(case))
    return Work(_in_turn(calls), 1, len(calls), num_bytes, backend, cost, before)


def cost_of(case: Case) -> Cost:
    """What one layer of `case` costs."""
    settings = json.loads(case.config)
    if case.operator in PARTS:
        return part_cost(case, settings["vocab_size"])
    operator = operators.get(case.operator)
    return operator.cost(operator.configure(case.hidden_size, **settings), case.shape)


def stack_size(
    one_bytes: int, limits: tuple[int, int], wanted_bytes: int, l2_bytes: int, memory_bytes: int
) -> int:
    """How many layers that touch `one_bytes` each, states included, are measured on a GPU:
    enough to have `wanted_bytes`, so that none is left in a cache when its turn comes again.
    Raises ValueError where they do not fit."""
    low, high = limits
    one_bytes = max(one_bytes, 1)
    count = min(max(math.ceil(wanted_bytes / one_bytes), low), high)
    fit = int(ROOM * memory_bytes / one_bytes)
    # a single one that is larger than the L2 by itself is as good
    if fit < 1 or (fit < low and one_bytes < 2 * l2_bytes):
        raise ValueError(
            f"it needs {one_bytes / 1e9:.0f} GB of GPU memory for one layer and its state;"
            f" the GPU has {memory_bytes / 1e9:.0f} GB"
        )
    return min(count, fit)


@dataclass(frozen=True)
class Slot:
    """One layer with what it works on."""

    call: Call
    num_bytes: int


def make_slots(case: Case, shelf: Shelf, count: int) -> list[Slot]:
    """The distinct layers of `case`, each with its own weights, state and call."""
    if case.operator in PARTS:
        models = shelf.parts(case, count)
        return [
            Slot(part_call(model, case), _weight_bytes(part_weights(model, case)))
            for model in models
        ]
    device, dtype = shelf.device, getattr(torch, case.dtype)
    generator = torch.Generator(device).manual_seed(0)
    # a decode step writes the token at position `context`
    room = case.context + 1 if case.phase == "decode" else case.context
    tokens = () if case.phase == "decode" else (case.context,)
    size = (case.batch, *tokens, case.hidden_size)
    # one input for all: in a model a layer reads what the one before has just written, and
    # positions that all layers before it have read, not memory that has gone cold
    h = torch.randn(size, generator=generator, device=device).to(dtype)
    position = torch.full((case.batch,), case.context, device=device)
    active = torch.ones(case.batch, dtype=torch.bool, device=device)
    slots = []
    for layer in shelf.layers(case, count):
        if case.phase == "train":
            slots.append(Slot(_train(layer, h), _weight_bytes(layer)))
            continue
        state = layer.mixer.init_state(case.batch, room, dtype, device)
        fill([state], generator)
        if case.phase == "decode":
            call = _decode(layer, state, h, position, active)
        else:
            call = _prefill(layer, state, h)
        slots.append(Slot(call, _weight_bytes(layer) + state.num_bytes))
    return slots


def fill(states: Iterable[State], generator: torch.Generator) -> None:
    """Give the states values as if they had seen tokens: no zeros, nothing denormal."""
    for state in states:
        for tensor in state.tensors.values():
            if tensor.is_floating_point() and tensor.device.type == generator.device.type:
                tensor.normal_(std=0.1, generator=generator)
            else:
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))


def _num_distinct(case: Case, cost: Cost, device: str) -> int:
    if not device.startswith("cuda"):
        return 1 if case.operator in PARTS else STACK[case.phase]
    if case.operator == EMBEDDING:
        return 1
    found = torch.cuda.get_device_properties(device)
    one_bytes, wanted_bytes = cost.bytes, L2_TIMES * found.L2_cache_size
    if case.phase == "decode":
        # a state that is read and written is there once
        one_bytes = cost.parameters * case.shape.element_bytes + cost.state_bytes
        wanted_bytes = max(wanted_bytes, DECODE_BYTES)
    limits = GPU_STACK[case.phase]
    if case.operator in PARTS:
        limits = (1, limits[1])
    return stack_size(one_bytes, limits, wanted_bytes, found.L2_cache_size, found.total_memory)


def _decode(layer: Layer, state: State, h: Tensor, position: Tensor, active: Tensor) -> Call:
    return lambda: layer.step(h, state, position, active)


def _prefill(layer: Layer, state: State, h: Tensor) -> Call:
    return lambda: layer(h, state=state)


def _train(layer: Layer, h: Tensor) -> Call:
    inputs = [h.requires_grad_(), *layer.parameters()]
    gradient = torch.ones_like(h)
    return lambda: torch.autograd.grad(layer(h), inputs, gradient, allow_unused=True)


def _company(case: Case) -> list[Call]:
    """Calls that each run one mixer and one FFN (for an FFN, the mixer alone)."""
    mixer = next(name for name in COMPANY if name != case.operator)
    names = (mixer,) if case.operator == "ffn" else (mixer, "ffn")
    columns = [
        _company_calls(name, case.hidden_size, case.phase, case.batch, case.context, case.dtype)
        for name in names
    ]
    return [all_of(calls) for calls in zip(*columns, strict=True)]


@lru_cache(maxsize=8)
def _company_calls(
    name: str, width: int, phase: operators.Phase, batch: int, context: int, dtype: str
) -> list[Call]:
    config = config_key(operators.get(name).configure(width))
    # the rows of parts and constant operators name no context; these two have any
    case = Case(name, config, width, phase, batch, max(context, 1), dtype)
    return [slot.call for slot in make_slots(case, Shelf("cpu"), STACK[phase])]


def _in_turn(calls: Sequence[Call]) -> Call:
    turn = cycle(calls)
    return lambda: next(turn)()


def all_of(calls: Sequence[Call]) -> Call:
    """One call that makes all of these."""

    def run() -> None:
        for call in calls:
            call()

    return run


def _weight_bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
