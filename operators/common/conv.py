"""Causal depthwise convolution over time, with the decode state that carries it on.

Legend: B rows, T tokens, C channels, K kernel width. The state [B,C,K-1] holds the last
K-1 inputs, oldest first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
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
            x = F.pad(x, (0, 0, before, 0))
        else:
            x = torch.cat([state[name].transpose(1, 2).to(x.dtype), x], dim=1)
            state.update(name, _last(x, rows, before).transpose(1, 2))
        length = x.shape[1] - before
        taps = self.weight[:, 0].unbind(-1)
        y = x[:, :length] * taps[0]
        for k in range(1, self.kernel):
            y = torch.addcmul(y, x[:, k : k + length], taps[k])
        return y if self.bias is None else y + self.bias

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
