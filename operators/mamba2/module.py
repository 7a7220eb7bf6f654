"""Mamba-2: one projection, short convolution, state-space scan, gated norm, projection.

Legend: B rows, T tokens, H hidden size, D inner width, N heads, G groups, P head width,
K state width.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from archsearch.operators.backends import Request
from archsearch.operators.common.conv import ShortConv
from archsearch.operators.common.conv import active_slots
from archsearch.operators.common.conv import row_numbers
from archsearch.operators.common.time_step import init_dt_bias
from archsearch.operators.layer import Mixer
from archsearch.operators.layer import State
from archsearch.operators.layer import state_dtype
from archsearch.operators.mamba2 import kernel
from archsearch.operators.mamba2.chunked import ssd_chunked
from archsearch.operators.mamba2.config import Mamba2Config
from archsearch.operators.mamba2.reference import ssd
from archsearch.operators.mamba2.reference import ssd_step
from archsearch.operators.sequence import Rows

A_RANGE = (1.0, 16.0)
# a raw time step whose softplus is 0
NEVER = -1e4


class GatedRMSNorm(nn.Module):
    """RMS norm of y * silu(z) within each of `groups` equal parts, then times `weight`[D]."""

    def __init__(self, width: int, groups: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate y[..., D] by z[..., D], then normalise; fp32 inside."""
        gated = (y.float() * F.silu(z.float())).unflatten(-1, (self.groups, -1))
        gated = F.rms_norm(gated, gated.shape[-1:], None, self.eps).flatten(-2)
        return gated.to(y.dtype) * self.weight


class Mamba2(Mixer):
    """The official layer: in_proj makes z, x, B, C and dt, in this order."""

    operator = "mamba2"
    READS = ("in_proj",)
    WRITES = ("out_proj",)
    config: Mamba2Config

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__(config)
        inner, heads, channels = config.d_inner, config.num_heads, config.conv_channels
        self.num_heads, self.head_dim = heads, config.head_dim
        self.num_groups, self.d_state = config.num_groups, config.d_state
        self.chunk_size, self.state_dtype = config.chunk_size, config.state_dtype
        self.in_proj = nn.Linear(config.hidden_size, inner + channels + heads, bias=False)
        self.conv1d = ShortConv(channels, config.d_conv, bias=config.conv_bias)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.norm = GatedRMSNorm(inner, config.num_groups, config.norm_eps)
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        """As the official code: A uniform in 1..16, dt log-uniform, D one."""
        super().init_weights(generator)
        self.conv1d.init_weights(generator)
        init_dt_bias(self.dt_bias, generator)
        with torch.no_grad():
            self.A_log.uniform_(*A_RANGE, generator=generator).log_()
            self.D.fill_(1)
            self.norm.weight.fill_(1)

    def init_state(
        self, batch: int, max_len: int, dtype: torch.dtype, device: torch.device | str
    ) -> State:
        """The last inputs of the convolution and the state ssm[B,N,P,K]."""
        size = (batch, self.num_heads, self.head_dim, self.d_state)
        ssm = torch.zeros(size, dtype=state_dtype(self.state_dtype, dtype), device=device)
        return State(
            {"conv": self.conv1d.new_state(batch, dtype, device), "ssm": ssm},
            {"rows": row_numbers(batch, device)},
        )

    def mix(self, x: Tensor, rows: Rows, state: State | None) -> Tensor:
        """See `Mixer.mix`."""
        z, xbc, dt = self.project(x)
        u, b, c = self.split(self.conv1d(xbc, rows, state, activation="silu"))
        mask = rows.mask(x)
        if mask is not None:
            # a step of length zero neither forgets nor adds
            dt = dt.masked_fill(~mask[..., None], NEVER)
        before = None if state is None or rows.starts is None else state["ssm"]
        # not x: under autocast the projection has the dtype that the scan computes in
        backend = self.backend(xbc)
        if backend == "mamba_ssm":
            y, after = kernel.ssd(u, dt, b, c, self.heads(), before, chunk=self.chunk_size)
        else:
            run = ssd if backend == "reference" else partial(ssd_chunked, chunk=self.chunk_size)
            y, after = run(u, self.time_steps(dt), self.decay_rate(), b, c, before)
            y = torch.addcmul(y, u, self.D[:, None])
        if state is not None:
            state.update("ssm", after)
        return self.finish(y, z)

    def mix_step(self, x: Tensor, state: State, position: Tensor, active: Tensor) -> Tensor:
        """See `Mixer.mix_step`."""
        z, xbc, dt = self.project(x)
        slots = active_slots(active, state.shared["rows"])
        xbc = self.conv1d.step(xbc, state, active, activation="silu", slots=slots)
        u, b, c = self.split(xbc)
        if self.backend(xbc, "decode") == "mamba_ssm":
            y = kernel.step_(state["ssm"], u, dt, b, c, self.heads(), slots)
        else:
            y, after = ssd_step(state["ssm"], u, self.time_steps(dt), self.decay_rate(), b, c)
            state.update("ssm", after, active)
            y = torch.addcmul(y, u, self.D[:, None])
        return self.finish(y, z)

    def refuses(self, backend: str, request: Request) -> str:
        """See `Mixer.refuses`."""
        return kernel.refuses(request, self.config) if backend == "mamba_ssm" else ""

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gate z[...,D], the convolution's input, and raw time steps dt[...,N]."""
        inner, channels = self.num_heads * self.head_dim, self.conv1d.weight.shape[0]
        z, xbc, dt = self.in_proj(x).split([inner, channels, self.num_heads], dim=-1)
        return z, xbc, dt

    def split(self, xbc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs [...,N,P] and the maps B and C [...,G,K] from the convolution's output."""
        inner, maps = self.num_heads * self.head_dim, self.num_groups * self.d_state
        u, b, c = xbc.split([inner, maps, maps], dim=-1)
        return (
            u.unflatten(-1, (self.num_heads, self.head_dim)),
            b.unflatten(-1, (self.num_groups, self.d_state)),
            c.unflatten(-1, (self.num_groups, self.d_state)),
        )

    def heads(self) -> kernel.Heads:
        """What mamba-ssm's kernels need of each head."""
        return kernel.Heads(self.decay_rate(), self.D, self.dt_bias)

    def time_steps(self, dt: Tensor) -> Tensor:
        """Time steps [...,N] in fp32 from what the projection gives."""
        return F.softplus(dt.float() + self.dt_bias.float())

    def decay_rate(self) -> Tensor:
        """A[N], negative, in fp32."""
        return -self.A_log.float().exp()

    def finish(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate y[...,N,P] by z and normalise, and project back to the hidden size."""
        return self.out_proj(self.norm(y.flatten(-2), z))
