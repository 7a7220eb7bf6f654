"""Mamba-3: one projection, norms on B and C, the trapezoidal scan, gate, projection.

Legend: B rows, T tokens, H hidden size, D inner width, N heads, G groups, P head width,
K state width, S angles.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from archsearch.operators.backends import Request
from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.common.time_step import init_dt_bias
from archsearch.operators.layer import Mixer
from archsearch.operators.layer import State
from archsearch.operators.layer import state_dtype
from archsearch.operators.mamba3 import chunked
from archsearch.operators.mamba3 import kernel
from archsearch.operators.mamba3 import reference
from archsearch.operators.mamba3.config import Mamba3Config
from archsearch.operators.mamba3.reference import Carried
from archsearch.operators.mamba3.reference import Tokens
from archsearch.operators.mamba3.reference import turn
from archsearch.operators.sequence import Rows

SCANS = {"mamba_ssm": kernel.scan, "torch": chunked.scan, "reference": reference.scan}


class Mamba3(Mixer):
    """The official layer without MIMO: in_proj makes z, x, B, C, dt, A, the trapezoid weights
    and the angles, in this order."""

    operator = "mamba3"
    READS = ("in_proj",)
    WRITES = ("out_proj",)
    config: Mamba3Config

    def __init__(self, config: Mamba3Config) -> None:
        super().__init__(config)
        inner, heads = config.d_inner, config.num_heads
        self.in_proj = nn.Linear(config.hidden_size, sum(config.splits), bias=False)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        # the middle dimension is the rank of the official layer's MIMO form
        self.B_bias = nn.Parameter(torch.empty(heads, 1, config.d_state))
        self.C_bias = nn.Parameter(torch.empty(heads, 1, config.d_state))
        self.B_norm = RMSNorm(config.d_state, config.norm_eps)
        self.C_norm = RMSNorm(config.d_state, config.norm_eps)
        self.D = nn.Parameter(torch.empty(heads))
        self.norm = HeadNorm(inner, config.head_dim, config.norm_eps) if config.out_norm else None
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        """As the official code: dt log-uniform; biases of B and C, D and the norms one."""
        super().init_weights(generator)
        init_dt_bias(self.dt_bias, generator)
        for parameter in (self.B_bias, self.C_bias, self.D):
            nn.init.ones_(parameter)
        self.B_norm.reset()
        self.C_norm.reset()
        if self.norm is not None:
            nn.init.ones_(self.norm.weight)

    def init_state(
        self, batch: int, max_len: int, dtype: torch.dtype, device: torch.device | str
    ) -> State:
        """The state ssm[B,N,P,K], each head's angles, and the last token's k and v."""
        heads, width, d_state = self.config.num_heads, self.config.head_dim, self.config.d_state
        sizes = {
            "ssm": ((heads, width, d_state), state_dtype(self.config.state_dtype, dtype)),
            "angle": ((heads, self.config.num_angles), torch.float32),
            "k": ((heads, d_state), dtype),
            "v": ((heads, width), dtype),
        }
        return State(
            {
                name: torch.zeros(batch, *size, dtype=kind, device=device)
                for name, (size, kind) in sizes.items()
            }
        )

    def mix(self, x: Tensor, rows: Rows, state: State | None) -> Tensor:
        """See `Mixer.mix`."""
        z, tokens = self.project(x, rows.mask(x))
        past = None if state is None else carried(state)
        # not x: under autocast the projection has the dtype that the scan computes in
        run = SCANS[self.backend(tokens.v)]
        y, ssm, angle = run(tokens, past, chunk=self.config.chunk_size)
        if state is not None:
            k = turn(_last(tokens.b, rows), tokens.b_bias, angle)
            some = None if rows.lengths is None else rows.lengths > 0
            for name, value in (("k", k), ("v", _last(tokens.v, rows))):
                state.update(name, value, some)
            state.update("ssm", ssm)
            state.update("angle", angle)
        return self.finish(y, z)

    def mix_step(self, x: Tensor, state: State, position: Tensor, active: Tensor) -> Tensor:
        """See `Mixer.mix_step`."""
        z, tokens = self.project(x, active)
        past = carried(state)
        if self.backend(tokens.v, "decode") == "mamba_ssm":
            y, k = kernel.step_(tokens, past)
            after = {"k": k, "v": tokens.v}
        else:
            y, new = reference.step(tokens, past)
            after = new._asdict()
        for name, value in after.items():
            state.update(name, value, active)
        return self.finish(y, z)

    def project(self, x: Tensor, real: Tensor | None) -> tuple[Tensor, Tokens]:
        """z[...,N,P] and what the scan needs of x[...,H]; tokens that are not `real`[...] get
        time steps of length zero, which neither forget, nor add, nor turn."""
        config = self.config
        heads, groups = config.num_heads, config.num_groups
        z, v, b, c, dt, a, trap, angle = self.in_proj(x).split(config.splits, dim=-1)
        z, v = (t.unflatten(-1, (heads, -1)) for t in (z, v))
        b, c = (t.unflatten(-1, (groups, -1)) for t in (b, c))
        dt = F.softplus(dt.float() + self.dt_bias.float())
        if real is not None:
            dt = dt.masked_fill(~real[..., None], 0)
        rate = F.softplus(a.float()).clamp(min=config.a_floor)
        tokens = Tokens(
            # under autocast the norms' fp32 weights would widen what the scan computes in
            c=self.C_norm(c).to(v.dtype),
            b=self.B_norm(b).to(v.dtype),
            v=v,
            dt=dt,
            log_decay=-rate * dt,
            trap=trap,
            angle=angle,
            gate=None if config.out_norm else z,
            c_bias=self.C_bias[:, 0],
            b_bias=self.B_bias[:, 0],
            skip=self.D,
        )
        return z, tokens

    def finish(self, y: Tensor, z: Tensor) -> Tensor:
        """Normalise y[...,N,P] and gate it by z where the scan has not, and project back."""
        if self.norm is not None:
            y = self.norm(y, z)
        return self.out_proj(y.flatten(-2))

    def refuses(self, backend: str, request: Request) -> str:
        """See `Mixer.refuses`."""
        return kernel.refuses(request, self.config) if backend == "mamba_ssm" else ""


class HeadNorm(nn.Module):
    """RMS norm of each head's y, times `weight`[D] and silu(z)."""

    def __init__(self, width: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.head_dim, self.eps = head_dim, eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """Normalise y[...,N,P], then gate it by z[...,N,P]; fp32 inside."""
        normed = F.rms_norm(y.float(), (self.head_dim,), None, self.eps)
        weight = self.weight.float().unflatten(0, (-1, self.head_dim))
        return (normed * weight * F.silu(z.float())).to(y.dtype)


def carried(state: State) -> Carried:
    """The state as the scan takes it."""
    return Carried(*(state[name] for name in Carried._fields))


def _last(x: Tensor, rows: Rows) -> Tensor:
    """Each row's last real token of x[B,T,...]."""
    if rows.lengths is None:
        return x[:, -1]
    index = (rows.lengths - 1).clamp(min=0)
    return x[torch.arange(len(x), device=x.device), index]
