"""Fused decode steps against the plain ones: on a CPU in Triton's interpreter (fp32), on a GPU in
every dtype and in a CUDA graph.

Run: pytest tests/operators/fused
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn

from archsearch import operators
from archsearch.model import Layer
from archsearch.model import build
from archsearch.model.fused_head import step_logits
from archsearch.model.head import LMHead
from archsearch.operators import backends
from archsearch.operators.fused import table
from archsearch.operators.layer import State
from archsearch.space import parse

STEPS = 3
REPLAYS = 8
# (rows, columns) of a program in the interpreter, whose time is one of programs
TILE = (32, 128)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """A layer, and the state that its step is tried on: `batch` rows at positions up to `past`,
    with `room` for more."""

    name: str
    width: int = 64
    options: dict[str, Any] = field(default_factory=dict)
    batches: tuple[int, ...] = (1, 3)
    past: int = 0
    room: int = 16
    # as `TILE`, where it is to be another one; then into how many shares columns may be split
    tile: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])


ODD = {"num_heads": 3, "head_dim": 12, "v_head_dim": 20}
# a head is several tiles of a program
WIDE = {"num_heads": 1, "head_dim": 64, "v_head_dim": 72}
CASES = (
    # 40 rows are more than one block of them
    Case("ffn", batches=(1, 17, 40)),
    Case("ffn", 72, {"activation": "relu2", "intermediate_size": 100}),
    Case("ffn", 80, {"intermediate_size": 72}, tile=(32, 32, 2)),
    Case("deltanet", 64, {"head_dim": 32}, batches=(1, 17)),
    Case("deltanet", 48, {**ODD, "conv_size": 2}),
    Case("deltanet", 64, {"num_heads": 3, "head_dim": 16, "v_head_dim": 64, "conv_size": 1}),
    Case("deltanet", 64, {"head_dim": 16, "conv_size": 3}, (1,), tile=(16, 32)),
    Case("gated_deltanet", batches=(3,)),
    Case("gated_deltanet", 64, {"num_heads": 2, "num_v_heads": 4, "head_dim": 16}),
    Case("gated_deltanet", 64, {"num_heads": 1, "head_dim": 16, "use_gate": False}),
    Case("mamba", batches=(1, 17)),
    Case("mamba", 40, {"d_state": 5, "d_conv": 3, "conv_bias": False, "dt_rank": 11}),
    Case("mamba", 24, {"expand": 3, "state_dtype": "float32"}, (3,), tile=(16, 32, 4)),
    Case("gated_deltaproduct", 64, {"num_heads": 2, "head_dim": 16}),
    Case("gated_deltaproduct", 48, {**ODD, "num_v_heads": 6, "num_householder": 3}),
    Case("gated_deltaproduct", 64, {**WIDE, "allow_neg_eigval": False}, (2,)),
    Case(
        "gated_deltaproduct", 64, {"head_dim": 16, "num_householder": 1, "use_gate": False}, (3,)
    ),
    Case("kda", 64, {"head_dim": 32}),
    Case("kda", 48, {**ODD, "conv_size": 2}),
    Case("kda", 64, WIDE, (2,)),
    Case("kda", 64, {"head_dim": 64, "state_dtype": "model"}, (1,)),
    Case("kda", 64, {"num_heads": 1, "head_dim": 16, "v_head_dim": 32}, (1, 5)),
    Case("mamba2", 64, {"head_dim": 32, "d_state": 16}, batches=(1, 17)),
    Case("mamba2", 48, {"head_dim": 12, "d_state": 20, "d_conv": 3, "conv_bias": False}),
    Case("mamba2", 64, {"d_state": 16, "state_dtype": "float32"}, (3,), tile=(16, 32, 4)),
    Case("mamba3", 64, {"head_dim": 32, "d_state": 16}, batches=(1, 17)),
    Case("mamba3", 40, {"head_dim": 80, "d_state": 72}, batches=(1, 2)),
    Case("mamba3", 48, {"head_dim": 12, "d_state": 11, "num_groups": 4, "out_norm": True}),
    Case("mamba3", 32, {"d_state": 6, "rope_fraction": 1.0, "state_dtype": "model"}, (3,)),
    Case("attention", 64, {"head_dim": 16, "num_heads": 4, "num_kv_heads": 2}),
    Case("attention", 64, {"head_dim": 16, "num_heads": 6, "num_kv_heads": 1}, (1, 3), 130, 140),
    Case("attention", 36, {"head_dim": 12, "qkv_bias": True, "qk_norm": True}, (3,), 290, 300),
    Case("sliding_window", 64, {"head_dim": 16, "window": 5}, past=9),
    Case("sliding_window", 64, {"head_dim": 32, "window": 140}, past=290, room=300),
    Case("mla", 64, past=9, batches=(1, 17)),
    Case("mla", 40, {**ODD, "rope_head_dim": 6, "kv_lora_rank": 24, "q_lora_rank": 10}, past=9),
    Case("mla", 48, {"num_heads": 18, "head_dim": 4, "kv_lora_rank": 20}, (1, 2), 290, 300),
    Case("retention", past=9),
    Case("retention", 64, ODD, past=9),
    Case("rwkv7", 64, {"head_dim": 32, "decay_rank": 8}, (1, 3)),
    Case("rwkv7", 48, {"head_dim": 24, "decay_rank": 5, "rate_rank": 12, "gate_rank": 70}),
    Case("rwkv7", 64, {"head_dim": 64, "state_dtype": "model", "gate_rank": 36}, (1, 17)),
    Case("rwkv7", 96, {"head_dim": 96, "norm_eps": 0.01}, (2,)),
    Case("gla"),
    Case("gla", 64, {"head_dim": 20, "num_heads": 2, "k_head_dim": 12, "gate_rank": 5}),
)


@pytest.mark.skipif(not find_spec("triton"), reason="needs triton")
def test_interpreted(in_interpreter: Callable[..., None]) -> None:
    in_interpreter(__file__)


def test_every_step_is_in_the_table() -> None:
    folders = operators.__path__[0]
    assert {case.name for case in CASES} == {*table.STEPS}
    for name in operators.names():
        assert (name in table.STEPS) == bool(find_spec(f"archsearch.operators.{name}.step")), (
            f"{folders}/{name}"
        )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_a_gpu(case: Case, dtype: torch.dtype) -> None:
    for batch in case.batches:
        compare(case, batch, dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", table.STEPS)
@pytest.mark.parametrize("batch", [1, 4, 32])
@torch.inference_mode()
def test_replays_equal_single_steps(name: str, batch: int) -> None:
    """At the width of real models: launched one by one, and dependently in a graph."""
    # what poisons memory would stand between the kernels
    torch.utils.deterministic.fill_uninitialized_memory = False
    layers = [make(Case(name, 1024), torch.bfloat16, "cuda") for _ in range(4)]
    states = [layer.mixer.init_state(batch, 610, torch.bfloat16, "cuda") for layer in layers]
    position = torch.full((batch,), 600, device="cuda")
    active = torch.ones(batch, dtype=torch.bool, device="cuda")
    h = drawn((batch, 1024), 5).to(torch.bfloat16).cuda()

    def step() -> Tensor:
        y = h
        for layer, state in zip(layers, states, strict=True):
            y = layer.step(y, state, position, active)
        position.add_(1)
        return y

    def begin() -> None:
        position.fill_(600)
        for seed, state in enumerate(states):
            for tensor in state.tensors.values():
                tensor.copy_(0.3 * drawn(tuple(tensor.shape), seed))

    with backends.override("triton"):
        begin()
        expected = [step() for _ in range(REPLAYS)]
        kept = [tensor.clone() for state in states for tensor in state.tensors.values()]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = step()
        begin()
        for single in expected:
            graph.replay()
            assert torch.equal(y, single), relative(y, single)
    after = [tensor for state in states for tensor in state.tensors.values()]
    assert all(torch.equal(a, b) for a, b in zip(after, kept, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 5, 32])
@torch.no_grad()
def test_logits_are_as_exact_as_the_plain_ones(batch: int) -> None:
    spec = parse("d f m2 f a f gd f w f ret f gla f @512", vocab_size=1000, head_norm=True)
    ids = torch.randint(0, 1000, (24, batch), generator=torch.Generator().manual_seed(0)).cuda()
    found: dict[str, list[Tensor]] = {}
    for kind, dtype, backend in (
        ("exact", torch.float32, "torch"),
        ("plain", torch.bfloat16, "torch"),
        ("fused", torch.bfloat16, "triton"),
    ):
        # the same weights in each: those that bfloat16 holds
        model = build(spec, dtype=torch.bfloat16).to("cuda", dtype)
        model.tie()
        state = model.init_state(batch, 40)
        with backends.override("torch"):
            model.prefill(ids[:8].t().contiguous(), state)
        with backends.override(backend), backends.recorded() as used:
            found[kind] = [model.step(token, state) for token in ids[8:]]
        assert (used["ffn"] == "triton") == (kind == "fused")
    errors = {
        kind: sum(relative(a, b) for a, b in zip(found[kind], found["exact"], strict=True))
        for kind in ("plain", "fused")
    }
    assert errors["fused"] <= 1.25 * errors["plain"], errors


def compare(case: Case, batch: int, dtype: torch.dtype, device: str) -> None:
    """Several steps, fused and plain, the second of them with idle rows; in a 16-bit type the
    fused ones may be off the exact ones by a little more than the plain ones are."""
    layer = make(case, dtype, device)
    exact = make(case, dtype, device).float()
    states = [start(case, batch, kind, device) for kind in (dtype, dtype, torch.float32)]
    fused, plain, truth = states
    room = torch.arange(batch) % (case.past + 1)
    position = (case.past - room).to(device)
    worst: dict[str, float] = {"fused": 0.0, "plain": 0.0}
    with torch.no_grad():
        for number in range(STEPS):
            h = drawn((batch, case.width), 10 + number).to(dtype).to(device)
            active = torch.ones(batch, dtype=torch.bool, device=device)
            active[::2] = number != 1
            before = {key: tensor.clone() for key, tensor in fused.tensors.items()}
            with (
                backends.override("triton"),
                backends.recorded() as used,
                tiles(batch, case.tile, device),
            ):
                y = layer.step(h, fused, position, active)
            assert used == {case.name: "triton"}
            with backends.override("torch"):
                found = layer.step(h, plain, position, active)
                expected = exact.step(h.float(), truth, position, active)
            idle = ~active
            assert torch.equal(y[idle], h[idle]), f"{case}: an idle row's stream changed"
            for key, tensor in fused.tensors.items():
                assert torch.equal(tensor[idle], before[key][idle]), f"{case}: idle {key} changed"
            outputs = {"fused": (y, fused), "plain": (found, plain)}
            for kind, (out, state) in outputs.items():
                pairs = [(out - h, expected - h.float())]
                pairs += [(state[key], truth[key]) for key in truth.tensors if truth[key].numel()]
                worst[kind] = max(worst[kind], *(relative(a, b) for a, b in pairs))
            position = position + active
    limit = 1e-4 if device == "cuda" else 2e-5
    if dtype != torch.float32:
        limit = max(1.5 * worst["plain"], 1e-3)
    assert worst["fused"] < limit, f"{case}, {batch} rows in {dtype}: {worst}"


def make(case: Case, dtype: torch.dtype, device: str) -> Layer:
    operator = operators.get(case.name)
    layer = Layer(operator.build(operator.configure(case.width, **case.options)), 1e-6)
    layer.init_weights(torch.Generator().manual_seed(0))
    for seed, parameter in enumerate(layer.parameters()):
        # no weight stays what an initial value makes invisible, and none beyond its type
        parameter.data.add_(0.1 * drawn(tuple(parameter.shape), seed))
        parameter.data.copy_(parameter.data.to(dtype))
    return layer.to(dtype).to(device)


def start(case: Case, batch: int, dtype: torch.dtype, device: str) -> State:
    operator = operators.get(case.name)
    mixer = operator.build(operator.configure(case.width, **case.options))
    state = mixer.init_state(batch, case.room, dtype, device)
    for seed, tensor in enumerate(state.tensors.values()):
        tensor.copy_(0.3 * drawn(tuple(tensor.shape), seed).to(torch.bfloat16))
    return state


def drawn(size: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@contextmanager
def tiles(batch: int, tile: tuple[int, ...] | None, device: str) -> Iterator[None]:
    """Programs of a given tile; on a GPU, of the one by rule where none is given."""
    from archsearch.operators.fused import blocks

    if tile is None and device != "cpu":
        yield
        return
    rows, columns, *splits = tile or TILE
    one = blocks.Blocks(1 if batch == 1 else 32, rows, columns, 4, splits=sum(splits) or 1)
    token = blocks.forced.set({"*": one})
    yield
    blocks.forced.reset(token)


def relative(actual: Tensor, expected: Tensor) -> float:
    difference = (actual.float() - expected.float()).norm()
    return float(difference / expected.float().norm().clamp(min=1e-6))


def check_refusals() -> None:
    """What the kernels do not do is said, not done wrongly."""
    h = torch.zeros(1, 64)
    active = torch.ones(1, dtype=torch.bool)

    def refusal(layer: Layer, given: Tensor = h, grad: bool = False) -> str:
        state = layer.mixer.init_state(1, 4, given.dtype, "cpu")
        with backends.override("triton"), torch.set_grad_enabled(grad):
            try:
                layer.step(given, state, torch.zeros(1, dtype=torch.long), active)
            except ValueError as error:
                return str(error)
        return ""

    def ready(name: str = "ffn", **options: Any) -> Layer:
        return make(Case(name, 64, options), torch.float32, "cpu")

    class Adapter(nn.Linear):
        pass

    assert refusal(ready()) == ""
    assert "gradients" in refusal(ready(), grad=True)
    assert "float64" in refusal(ready(), h.double())
    assert "bfloat16 wrongly" in refusal(ready().bfloat16(), h.bfloat16())
    assert "weights are float16" in refusal(ready().half())
    assert "2 groups" in refusal(ready("mamba2", num_groups=2))
    assert "at most 4 taps" in refusal(ready("deltanet", conv_size=5))
    assert "at most 4 taps" in refusal(ready("mamba", d_conv=5))
    assert "rank is at most 512 wide" in refusal(ready("mamba", dt_rank=600))
    assert "at most 256 wide" in refusal(ready("attention", head_dim=512, num_heads=1))
    assert "at most 32768 state" in refusal(ready("mamba3", head_dim=128, d_state=300))
    assert "at most 1024 wide" in refusal(ready("mla", kv_lora_rank=1025))
    assert "at most 256 wide" in refusal(ready("mla", num_heads=1, v_head_dim=257))
    adapted = ready()
    adapted.mixer.up_proj = Adapter(64, 192, bias=False)
    assert "up_proj is a Adapter" in refusal(adapted)
    hooked = ready()
    hooked.mixer.down_proj.register_forward_hook(lambda *_: None)
    assert "down_proj is a Linear" in refusal(hooked)


def check_model() -> None:
    """A whole model, prompt and steps, and the head."""
    spec = parse("d f m2 a ret @64", vocab_size=50, num_meta_tokens=2)
    model = build(spec)
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    found = {}
    with torch.inference_mode():
        for backend in ("torch", "triton"):
            state = model.init_state(2, 12)
            with backends.override("torch"):
                model.prefill(ids[:, :6], state)
            with backends.override(backend), tiles(2, None, "cpu"):
                found[backend] = torch.stack([model.step(ids[:, t], state) for t in (6, 7)])
        torch.testing.assert_close(found["triton"], found["torch"], atol=1e-4, rtol=1e-4)
        check_head(model.head)


def check_head(head: LMHead) -> None:
    for normed in (False, True):
        head.head_norm = normed
        for batch in (1, 2):
            h = drawn((batch, 64), 3)
            with (
                backends.override("triton"),
                backends.recorded() as used,
                tiles(batch, None, "cpu"),
            ):
                y = step_logits(head, h)
            assert used == {"head": "triton"}
            torch.testing.assert_close(y, head(h), atol=1e-5, rtol=1e-4)


def interpret() -> None:
    """Everything that needs no GPU, as if on a small one: fewer programs take less time."""
    from archsearch.operators.fused import attend
    from archsearch.operators.fused import expansion
    from archsearch.operators.fused import heads
    from archsearch.operators.fused import scan
    from archsearch.operators.fused import ssd
    from archsearch.operators.fused import trapezoid

    heads.MOST_HELD = 4096
    for module in (attend, expansion, heads, scan, ssd, trapezoid):
        module.PROCESSORS = 4
    for each in CASES:
        for rows in each.batches:
            compare(each, rows, torch.float32, "cpu")
    check_refusals()
    check_model()


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True, warn_only=True)
    # fresh memory is poisoned
    torch.utils.deterministic.fill_uninitialized_memory = True
    interpret()
