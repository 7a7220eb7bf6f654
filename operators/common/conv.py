"""Causal depthwise convolution over time, with the decode state that carries it on.

Legend: B rows, T tokens, C channels, K kernel width. The state [B,C,K-1] holds the last
K-1 inputs, oldest first.
"""

from __future__ import annotations

from typing import Any
from typing import Literal

import torch
from torch import Tensor
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from archsearch.operators.backends import Request
from archsearch.operators.backends import choose
from archsearch.operators.base import Phase
from archsearch.operators.layer import State
from archsearch.operators.sequence import Rows

Activation = Literal["silu"]
FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class ShortConv(nn.Module):
    """Depthwise convolution of K taps over the present and the K-1 tokens before it."""

    operator = "short_conv"
    backends = ("causal_conv1d", "torch")

    def __init__(self, channels: int, kernel: int, *, bias: bool) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def init_weights(self, generator: torch.Generator) -> None:
        """Uniform within 1/sqrt(K), as torch initialises a depthwise Conv1d."""
        bound = self.kernel**-0.5
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    def new_state(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """An empty state [B,C,K-1]."""
        return torch.zeros(
            batch, self.weight.shape[0], self.kernel - 1, dtype=dtype, device=device
        )

    def forward(
        self,
        x: Tensor,
        rows: Rows,
        state: State | None,
        name: str = "conv",
        *,
        activation: Activation | None = None,
    ) -> Tensor:
        """Convolve x[B,T,C], then apply the activation; leaves its last inputs in tensor
        `name` of the state, and begins from those of `rows` that continue a prompt."""
        past = None
        if state is not None and rows.starts is not None:
            past = state[name].transpose(1, 2).to(x.dtype)
        y = RUNS[self.backend(x)](x, self.weight, self.bias, past, activation)
        if state is not None:
            state.update(name, _last(past, x, rows, self.kernel - 1).transpose(1, 2))
        return y

    def step(
        self,
        x: Tensor,
        state: State,
        active: Tensor,
        name: str = "conv",
        *,
        activation: Activation | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Convolve one token x[B,C], shift it into tensor `name` of the state in the rows that
        are `active`[B] (`slots`: `active_slots` of it, where at hand), and apply the
        activation."""
        if self.backend(x, "decode") == "causal_conv1d":
            if slots is None:
                slots = active_slots(active)
            return _fused_step(x, self.weight, self.bias, state[name], slots, activation)
        window = torch.cat([state[name].to(x.dtype), x[:, :, None]], dim=2)
        state.update(name, window[:, :, 1:], active)
        y = (window * self.weight[:, 0]).sum(-1)
        return _activate(y if self.bias is None else y + self.bias, activation)

    def backend(self, x: Tensor, phase: Phase | None = None) -> str:
        """The implementation that serves this input, as `Mixer.backend`."""
        if phase is None:
            phase = "train" if torch.is_grad_enabled() else "prefill"
        request = Request(self.operator, phase, x.device.type, x.dtype)
        return choose(self.backends, request, self.refuses)

    def refuses(self, backend: str, request: Request) -> str:
        """See `Mixer.refuses`."""
        if backend != "causal_conv1d":
            return ""
        if not 2 <= self.kernel <= 4:
            return f"it has 2, 3 or 4 taps, not {self.kernel}"
        if request.dtype not in FUSED_DTYPES:
            return "it computes in float32, float16 and bfloat16 only"
        return ""


def row_numbers(batch: int, device: torch.device | str) -> Tensor:
    """0, 1, ... as int32 [B]."""
    return torch.arange(batch, dtype=torch.int32, device=device)


def active_slots(active: Tensor, rows: Tensor | None = None) -> Tensor:
    """Where each row's state lies, int32 [B]; -1 where it must not change, as kernels read it.
    `rows`: their numbers, where at hand."""
    return torch.where(
        active, row_numbers(len(active), active.device) if rows is None else rows, -1
    )


def _last(past: Tensor | None, x: Tensor, rows: Rows, count: int) -> Tensor:
    """The `count` inputs before each row's end, of past[B,count,C] (None: zero) and x[B,T,C]."""
    length = x.shape[1]
    if rows.lengths is None and length >= count:
        return x[:, length - count :]
    if past is None:
        past = x.new_zeros(len(x), count, x.shape[2])
    if rows.lengths is None:
        return torch.cat([past[:, length:], x], dim=1)
    index = rows.lengths[:, None] - count + torch.arange(count, device=x.device)
    size = (-1, -1, x.shape[2])
    new = x.gather(1, index.clamp(min=0)[:, :, None].expand(size))
    old = past.gather(1, (index + count).clamp(max=count - 1)[:, :, None].expand(size))
    return torch.where(index[:, :, None] < 0, old, new)


def _activate(y: Tensor, activation: Activation | None) -> Tensor:
    return y if activation is None else F.silu(y)


def _fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    activation: Activation | None,
) -> Tensor:
    """causal-conv1d, without a copy where channels or tokens lie side by side in memory."""
    from causal_conv1d import causal_conv1d_fn

    x = x.transpose(1, 2)
    options: dict[str, Any] = {"activation": activation}
    dropped = 0
    if x.shape[1] % 8 == 0 and x.shape[2] > 1 and x.stride(2) != 1:
        # read 16 bytes at a time
        if x.stride(1) != 1 or any(n % 8 for n in (x.stride(0), x.stride(2), x.storage_offset())):
            x = x.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)
        if past is not None:
            options["initial_states"] = past.contiguous().transpose(1, 2)
    elif past is not None:
        x, dropped = torch.cat([past.transpose(1, 2), x], dim=2), past.shape[1]
    elif x.stride(2) != 1:
        x = x.clone(memory_format=torch.contiguous_format)
    y: Tensor = causal_conv1d_fn(x, weight[:, 0], bias, **options)
    return y[:, :, dropped:].transpose(1, 2)


def _fused_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    slots: Tensor,
    activation: Activation | None,
) -> Tensor:
    from causal_conv1d import causal_conv1d_update

    y: Tensor = causal_conv1d_update(
        x.to(state.dtype),
        state,
        weight[:, 0],
        bias,
        activation,
        conv_state_indices=slots,
    )
    return y.to(x.dtype)


def _plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    activation: Activation | None,
) -> Tensor:
    if past is None:
        return _activate(_convolve(x, weight, bias), activation)
    longer = torch.cat([past, x], dim=1)
    return _activate(_convolve(longer, weight, bias)[:, past.shape[1] :], activation)


RUNS = {"causal_conv1d": _fused, "torch": _plain}


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve x[B,T,C] with weight[C,1,K]; zeros lie before the first token."""
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available():
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        # autocast would change the kernel's dtype on the way forth and not on the way back
        with torch.autocast("cpu", enabled=False):
            return _DepthwiseConv.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    length, taps = x.shape[1], weight[:, 0].unbind(-1)
    x = F.pad(x, (0, 0, len(taps) - 1, 0))
    y = x[:, :length] * taps[0]
    for k, tap in enumerate(taps[1:], start=1):
        y = torch.addcmul(y, x[:, k : k + length], tap)
    return y if bias is None else y + bias


class _DepthwiseConv(Function):
    """oneDNN's channels-last kernel both ways, and a weight gradient that stays in the cache:
    several times as fast on a CPU as the same sums over whole tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _slide(x, weight, bias)[:, : x.shape[1]]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        kernel, length = weight.shape[-1], x.shape[1]
        dx = _slide(dy, weight.flip(-1), None)[:, kernel - 1 :]
        d_taps = x.new_zeros(kernel, x.shape[2], dtype=torch.float32)
        for row in range(len(x)):
            for k in range(kernel):
                late = min(kernel - 1 - k, length)
                d_taps[k] += (dy[row, late:] * x[row, : length - late]).sum(0)
        d_weight = d_taps.t()[:, None].to(weight.dtype)
        return dx, d_weight, dy.sum((0, 1)) if ctx.has_bias else None


def _slide(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """All overlaps of x[B,T,C], zeros around it, with weight[C,1,K]: [B,T+K-1,C]."""
    image = x.transpose(1, 2)[:, :, None]
    padding = (0, weight.shape[-1] - 1)
    y = F.conv2d(image, weight[:, :, None], bias, padding=padding, groups=x.shape[2])
    return y[:, :, 0].transpose(1, 2)
