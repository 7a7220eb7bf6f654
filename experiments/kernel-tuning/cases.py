"""What is tuned: for every operator its kernels, called with the shapes and dtypes of the
default layer of width 2048 (16-bit activations, gates and states in fp32).

Legend: B rows, T tokens, N heads, K key width, V value width.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Stage = tuple[str, Callable[[], Any]]

WIDTH, TOKENS = 2048, 4096
# below a width of 1024 heads are half as wide, and kernels have other settings
NARROW = 896
BF16, FP32 = torch.bfloat16, torch.float32


def rand(*size: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(size, dtype=dtype, device="cuda")


def write_strength(*size: int) -> Tensor:
    return rand(*size, dtype=FP32).sigmoid()


def log_decay(*size: int) -> Tensor:
    # about as mild as a trained gate: -0.05 on average, never below RWKV-7's bound
    return -0.1 * rand(*size, dtype=FP32).sigmoid()


def chunked(
    op: Callable[..., Any], inputs: dict[str, Tensor], size: tuple[int, ...]
) -> list[Stage]:
    """The stages of a chunked form: alone, with its gradients, and with a state."""

    def train() -> None:
        leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
        o, _ = op(**leaves)
        o.backward(torch.randn_like(o))

    @torch.no_grad()
    def prefill() -> None:
        state = torch.zeros(1, *size, dtype=FP32, device="cuda")
        op(**inputs, initial_state=state, output_final_state=True)

    @torch.no_grad()
    def forward() -> None:
        op(**inputs)

    return [("prefill", prefill), ("forward", forward), ("train", train)]


@torch.no_grad()
def decode(op: Callable[..., Any], inputs: dict[str, Tensor], size: tuple[int, ...]) -> None:
    """One token from a state."""
    state = torch.zeros(1, *size, dtype=FP32, device="cuda")
    one = {name: value[:, :1].contiguous() for name, value in inputs.items()}
    op(**one, initial_state=state, output_final_state=True)


def heads(num: int, keys: int, values: int, tokens: int = TOKENS) -> dict[str, Tensor]:
    return {
        "q": rand(1, tokens, num, keys),
        "k": rand(1, tokens, num, keys),
        "v": rand(1, tokens, num, values),
    }


def deltanet() -> Iterator[Stage]:
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.delta_rule import fused_recurrent_delta_rule

    inputs = {**heads(16, 128, 128), "beta": write_strength(1, TOKENS, 16)}
    normed = partial(chunk_delta_rule, use_qk_l2norm_in_kernel=True)
    yield from chunked(normed, inputs, (16, 128, 128))
    step = partial(fused_recurrent_delta_rule, use_qk_l2norm_in_kernel=True)
    yield "decode", partial(decode, step, inputs, (16, 128, 128))
    yield from layer("deltanet")


def gated_deltanet() -> Iterator[Stage]:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule

    gates = {"beta": write_strength(1, TOKENS, 12), "g": log_decay(1, TOKENS, 12)}
    inputs = {**heads(12, 128, 256), **gates}
    normed = partial(chunk_gated_delta_rule, use_qk_l2norm_in_kernel=True)
    yield from chunked(normed, inputs, (12, 128, 256))
    step = partial(fused_recurrent_gated_delta_rule, use_qk_l2norm_in_kernel=True)
    yield "decode", partial(decode, step, inputs, (12, 128, 256))
    yield from layer("gated_deltanet")


def gla() -> Iterator[Stage]:
    from fla.ops.gla import chunk_gla
    from fla.ops.gla import fused_recurrent_gla

    inputs, decay = heads(16, 64, 128), log_decay(1, TOKENS, 16, 64)
    yield from chunked(chunk_gla, {**inputs, "g": decay}, (16, 64, 128))
    yield "decode", partial(decode, fused_recurrent_gla, {**inputs, "gk": decay}, (16, 64, 128))
    yield from layer("gla")


def retention() -> Iterator[Stage]:
    from fla.ops.simple_gla import chunk_simple_gla
    from fla.ops.simple_gla import fused_recurrent_simple_gla

    inputs, size = heads(16, 128, 256), (16, 128, 256)
    gamma = log_decay(16)
    yield from chunked(partial(chunk_simple_gla, g_gamma=gamma), inputs, size)
    gated = {**inputs, "g": log_decay(1, TOKENS, 16)}
    yield "padded", chunked(chunk_simple_gla, gated, size)[0][1]
    step = partial(fused_recurrent_simple_gla, g_gamma=gamma)
    yield "decode", partial(decode, step, inputs, size)
    yield from layer("retention")


def rwkv7() -> Iterator[Stage]:
    from fla.ops.rwkv7 import chunk_rwkv7
    from fla.ops.rwkv7 import fused_mul_recurrent_rwkv7

    size = (1, TOKENS, 32, 64)
    kk = F.normalize(rand(*size, dtype=FP32), dim=-1).to(BF16)
    rate = write_strength(*size).to(BF16)
    inputs = {"r": rand(*size), "w": log_decay(*size), "k": rand(*size), "v": rand(*size)}
    op = partial(
        chunk_rwkv7, scale=1.0, safe_gate=True, lower_bound=-0.6065306597126334, chunk_size=64
    )
    yield from chunked(op, {**inputs, "a": -kk, "b": kk * rate}, (32, 64, 64))
    step = partial(fused_mul_recurrent_rwkv7, scale=1.0)
    yield "decode", partial(decode, step, {**inputs, "kk": kk, "a": rate}, (32, 64, 64))
    yield from layer("rwkv7")


def kda() -> Iterator[Stage]:
    from fla.ops.kda import chunk_kda
    from fla.ops.kda import fused_recurrent_kda

    gates = {"beta": write_strength(1, TOKENS, 16), "g": log_decay(1, TOKENS, 16, 128)}
    inputs = {**heads(16, 128, 128), **gates}
    normed = partial(chunk_kda, use_qk_l2norm_in_kernel=True)
    yield from chunked(normed, inputs, (16, 128, 128))
    step = partial(fused_recurrent_kda, use_qk_l2norm_in_kernel=True)
    yield "decode", partial(decode, step, inputs, (16, 128, 128))
    yield from layer("kda")


def gated_deltaproduct() -> Iterator[Stage]:
    from fla.ops.gated_delta_product import chunk_gated_delta_product
    from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule

    steps, num, keys, values = 2, 12, 128, 256
    written = heads(num, keys, values, steps * TOKENS)
    inputs = {
        **written,
        "q": written["q"][:, :TOKENS].contiguous(),
        "beta": write_strength(1, steps * TOKENS, num),
        "g": log_decay(1, TOKENS, num),
    }
    normed = partial(
        chunk_gated_delta_product, num_householder=steps, use_qk_l2norm_in_kernel=True
    )
    yield from chunked(normed, inputs, (num, keys, values))
    step = partial(fused_recurrent_gated_delta_rule, use_qk_l2norm_in_kernel=True)
    yield "decode", partial(decode, step, inputs, (num, keys, values))
    yield from layer("gated_deltaproduct")


def mamba2() -> Iterator[Stage]:
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    num, width, state_width = 64, 64, 128
    a, skip, bias = -write_strength(num), rand(num), rand(num, dtype=FP32)
    inputs = {
        "x": rand(1, TOKENS, num, width),
        "dt": 0.1 * write_strength(1, TOKENS, num),
        "B": rand(1, TOKENS, 1, state_width),
        "C": rand(1, TOKENS, 1, state_width),
    }

    def scan(
        initial_state: Tensor | None = None, output_final_state: bool = False, **given: Tensor
    ) -> Any:
        result = mamba_chunk_scan_combined(
            **given,
            A=a,
            chunk_size=chunk,
            initial_states=initial_state,
            return_final_states=output_final_state,
        )
        return result if output_final_state else (result, None)

    @torch.no_grad()
    def step() -> None:
        selective_state_update(
            rand(1, num, width, state_width),
            rand(1, num, width),
            rand(1, num, 1).expand(-1, -1, width),
            a[:, None, None].expand(-1, width, state_width),
            rand(1, 1, state_width),
            rand(1, 1, state_width),
            skip[:, None].expand(-1, width),
            dt_bias=bias[:, None].expand(-1, width),
            dt_softplus=True,
        )

    for chunk in (64, 256):
        for stage, work in chunked(scan, inputs, (num, width, state_width)):
            yield f"{stage}{chunk}", work
    yield "decode", step
    yield from layer("mamba2")


def layer(name: str) -> Iterator[Stage]:
    """The layer itself, through whatever backend serves it: exactly what a model calls."""
    from archsearch import operators

    if name not in operators.names():
        return
    for width in (WIDTH, NARROW):
        yield from layer_of_width(name, width)


def layer_of_width(name: str, width: int) -> Iterator[Stage]:
    from archsearch import operators

    operator = operators.get(name)
    mixer = operator.build(operator.configure(width)).to("cuda", BF16)
    mixer.init_weights(torch.Generator("cuda").manual_seed(0))
    x = rand(2, TOKENS // 2, width)

    @torch.no_grad()
    def serve() -> None:
        state = mixer.init_state(2, TOKENS, BF16, "cuda")
        mixer(x, state=state)
        position = torch.full((2,), TOKENS // 2, device="cuda")
        active = torch.ones(2, dtype=torch.bool, device="cuda")
        mixer.mix_step(x[:, 0], state, position, active)
        mixer(x)

    def train() -> None:
        leaf = x.detach().requires_grad_()
        mixer(leaf).sum().backward()

    yield f"layer{width}", serve
    yield f"layer{width} train", train


CASES: dict[str, Callable[[], Iterator[Stage]]] = {
    "rwkv7": rwkv7,
    "kda": kda,
    "gla": gla,
    "gated_deltaproduct": gated_deltaproduct,
    "mamba2": mamba2,
    "deltanet": deltanet,
    "gated_deltanet": gated_deltanet,
    "retention": retention,
    **{name: partial(layer, name) for name in ("mamba", "mamba3", "mla")},
}
