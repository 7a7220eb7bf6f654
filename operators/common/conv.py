"""Causal depthwise convolution over time, with the decode state that carries it on.

Legend: B rows, T tokens, C channels, K kernel width. The state [B,C,K-1] holds the last
K-1 inputs, oldest first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from archsearch.operators.layer import State
from archsearch.operators.sequence import Rows


class ShortConv(nn.Module):
    """Depthwise convolution of K taps over the present and the K-1 tokens before it."""

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

    def forward(self, x: Tensor, rows: Rows, state: State | None, name: str = "conv") -> Tensor:
        """Convolve x[B,T,C]; carries on from and updates tensor `name` of the state."""
        before = self.kernel - 1
        if state is None:
            return _convolve(x, self.weight, self.bias)
        x = torch.cat([state[name].transpose(1, 2).to(x.dtype), x], dim=1)
        state.update(name, _last(x, rows, before).transpose(1, 2))
        return _convolve(x, self.weight, self.bias)[:, before:]

    def step(self, x: Tensor, state: State, active: Tensor, name: str = "conv") -> Tensor:
        """Convolve one token x[B,C] and shift it into tensor `name` of the state."""
        window = torch.cat([state[name].to(x.dtype), x[:, :, None]], dim=2)
        state.update(name, window[:, :, 1:], active)
        y = (window * self.weight[:, 0]).sum(-1)
        return y if self.bias is None else y + self.bias


def _last(x: Tensor, rows: Rows, count: int) -> Tensor:
    """The `count` inputs before each row's end; x[B,count+T,C] begins with the old state."""
    if rows.lengths is None:
        return x[:, x.shape[1] - count :]
    index = rows.lengths[:, None] + torch.arange(count, device=x.device)
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


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
