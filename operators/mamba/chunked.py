"""The selective scan a few tokens at a time, with a backward pass that recomputes.

All decays and gains of a chunk are made at once; what remains of each step is one fused
multiply-add. Only the states between chunks are kept for the backward pass: all states of a
layer would be K times as large as its inner activations.

Legend: B rows, T tokens, D inner width, K state width, L chunk length. Inside a chunk time
comes first, so that each step is one contiguous block [B,D,K].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

CHUNK = 16


def scan_chunked(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same as `reference.scan`."""
    if state is None:
        state = x.new_zeros(len(x), *a.shape, dtype=torch.float32)
    steps = (t.float().transpose(0, 1).contiguous() for t in (x, dt, b, c))
    y, final = _Scan.apply(*steps, a.float(), state.float())  # type: ignore[no-untyped-call]
    return y.transpose(0, 1).to(x.dtype), final


class _Scan(Function):
    """(x[T,B,D], dt[T,B,D], b[T,B,K], c[T,B,K], a[D,K], state[B,D,K]) -> (y[T,B,D], state)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, a: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        y = torch.empty_like(x)
        starts = [state]
        for begin in range(0, len(x), CHUNK):
            part = slice(begin, begin + CHUNK)
            _, states = _states(x[part], dt[part], b[part], a, starts[-1])
            torch.matmul(states, c[part][..., None], out=y[part][..., None])
            # a copy: the chunk's other states must not stay in memory with it
            starts.append(states[-1].clone())
        ctx.save_for_backward(x, dt, b, c, a, torch.stack(starts[:-1]))
        return y, starts[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_state: Tensor) -> tuple[Tensor, ...]:
        x, dt, b, c, a, starts = ctx.saved_tensors
        dx, d_dt, db, dc = (torch.empty_like(t) for t in (x, dt, b, c))
        da = torch.zeros_like(a)
        carry = d_state  # gradient of the state after the part, then of the one before
        for index in reversed(range(len(starts))):
            part = slice(index * CHUNK, (index + 1) * CHUNK)
            before, steps = starts[index], dt[part]
            decay, states = _states(x[part], steps, b[part], a, before)
            grads = dy[part][..., None] * c[part][:, :, None]
            grads[-1].add_(carry)
            for t in range(len(grads) - 1, 0, -1):
                grads[t - 1].addcmul_(grads[t], decay[t])
            dc[part] = (dy[part][:, :, None] @ states).squeeze(2)
            carry = grads[0] * decay[0]
            # decay becomes the gradient of dt A
            decay.mul_(grads)
            decay[1:].mul_(states[:-1])
            decay[0].mul_(before)
            da += (decay * steps[..., None]).sum((0, 1))
            gained = (grads @ b[part][..., None]).squeeze(-1)
            dx[part] = gained * steps
            d_dt[part] = (decay * a).sum(-1).addcmul_(gained, x[part])
            db[part] = ((x[part] * steps)[:, :, None] @ grads).squeeze(2)
        return dx, d_dt, db, dc, da, carry


def _states(x: Tensor, dt: Tensor, b: Tensor, a: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Decays and states [L,B,D,K] of a chunk that begins from state `before`[B,D,K]."""
    decay = (dt[..., None] * a).exp_()
    states = (dt * x)[..., None] * b[:, :, None]
    states[0].addcmul_(decay[0], before)
    for t in range(1, len(states)):
        states[t].addcmul_(decay[t], states[t - 1])
    return decay, states
