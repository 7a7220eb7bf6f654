"""Mamba: projection, short convolution, selective scan, gate, projection.

Legend: B rows, T tokens, H hidden size, D inner width, K state width, R rank of the time step.
"""

from __future__ import annotations

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
from archsearch.operators.mamba import kernel
from archsearch.operators.mamba.chunked import scan_chunked
from archsearch.operators.mamba.config import MambaConfig
from archsearch.operators.mamba.reference import scan
from archsearch.operators.mamba.reference import scan_step
from archsearch.operators.sequence import Rows

# a raw time step whose softplus is 0
NEVER = -1e4


class Mamba(Mixer):
    """The official layer: in_proj makes x and the gate z; x_proj makes dt, B and C from x."""

    operator = "mamba"
    READS = ("in_proj", "x_proj", "dt_proj")
    WRITES = ("out_proj",)

    def __init__(self, config: MambaConfig) -> None:
        super().__init__(config)
        inner = config.d_inner
        self.d_state, self.dt_rank = config.d_state, config.dt_rank
        self.state_dtype = config.state_dtype
        self.in_proj = nn.Linear(config.hidden_size, 2 * inner, bias=False)
        self.conv1d = ShortConv(inner, config.d_conv, bias=config.conv_bias)
        self.x_proj = nn.Linear(inner, config.dt_rank + 2 * config.d_state, bias=False)
        self.dt_proj = nn.Linear(config.dt_rank, inner, bias=True)
        self.A_log = nn.Parameter(torch.empty(inner, config.d_state))
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        """As the official code: A is 1..K in every channel, dt log-uniform, D one."""
        super().init_weights(generator)
        self.conv1d.init_weights(generator)
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound, generator=generator)
        init_dt_bias(self.dt_proj.bias, generator)
        with torch.no_grad():
            entries = torch.arange(1, self.d_state + 1, device=self.A_log.device)
            self.A_log.copy_(entries.float().log().expand_as(self.A_log))
            self.D.fill_(1)

    def init_state(
        self, batch: int, max_len: int, dtype: torch.dtype, device: torch.device | str
    ) -> State:
        """The last inputs of the convolution and the state ssm[B,D,K]."""
        ssm = torch.zeros(
            batch,
            *self.A_log.shape,
            dtype=state_dtype(self.state_dtype, dtype),
            device=device,
        )
        return State(
            {"conv": self.conv1d.new_state(batch, dtype, device), "ssm": ssm},
            {"rows": row_numbers(batch, device)},
        )

    def mix(self, x: Tensor, rows: Rows, state: State | None) -> Tensor:
        """See `Mixer.mix`."""
        backend = self.backend(x)
        if backend == "mamba_ssm":
            return self.mix_time_last(x, rows, state)
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = self.conv1d(u, rows, state, activation="silu")
        dt, b, c = self.select(u)
        dt = self.time_steps(dt)
        mask = rows.mask(x)
        if mask is not None:
            # a step of length zero neither forgets nor adds
            dt = dt.masked_fill(~mask[..., None], 0)
        run = scan if backend == "reference" else scan_chunked
        before = None if state is None or rows.starts is None else state["ssm"]
        y, after = run(u, dt, self.decay_rate(), b, c, before)
        if state is not None:
            state.update("ssm", after)
        return self.finish(y, u, z)

    def mix_time_last(self, x: Tensor, rows: Rows, state: State | None) -> Tensor:
        """`mix` by mamba-ssm's scan: the matrix products write features x tokens, as it reads
        them, so that nothing is transposed in between."""
        batch = len(x)
        u, z = _rows(self.in_proj.weight @ x.flatten(0, 1).t(), batch).chunk(2, dim=1)
        u = self.conv1d(u.transpose(1, 2), rows, state, activation="silu").transpose(1, 2)
        selected = self.x_proj.weight @ u.transpose(0, 1).flatten(1)
        low, b, c = selected.split([self.dt_rank, self.d_state, self.d_state])
        dt = _rows(self.dt_proj.weight @ low, batch)
        mask = rows.mask(x)
        if mask is not None:
            dt = dt.masked_fill(~mask[:, None], NEVER)
        before = None if state is None or rows.starts is None else state["ssm"]
        y, after = kernel.scan(u, z, dt, _rows(b, batch), _rows(c, batch), self.channels(), before)
        if state is not None:
            state.update("ssm", after)
        return self.out_proj(y.transpose(0, 1).flatten(1).t()).unflatten(0, x.shape[:2])

    def mix_step(self, x: Tensor, state: State, position: Tensor, active: Tensor) -> Tensor:
        """See `Mixer.mix_step`."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        slots = active_slots(active, state.shared["rows"])
        u = self.conv1d.step(u, state, active, activation="silu", slots=slots)
        dt, b, c = self.select(u)
        if self.backend(x, "decode") == "mamba_ssm":
            y = kernel.step_(state["ssm"], u, z, dt, b, c, self.channels(), slots)
            return self.out_proj(y)
        y, after = scan_step(state["ssm"], u, self.time_steps(dt), self.decay_rate(), b, c)
        state.update("ssm", after, active)
        return self.finish(y, u, z)

    def refuses(self, backend: str, request: Request) -> str:
        """See `Mixer.refuses`."""
        return kernel.refuses(request, self.d_state) if backend == "mamba_ssm" else ""

    def select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw time steps [...,D] and the maps B and C [...,K] that u[...,D] asks for."""
        low, b, c = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return F.linear(low, self.dt_proj.weight), b, c

    def time_steps(self, dt: Tensor) -> Tensor:
        """Time steps [...,D] in fp32 from raw ones."""
        return F.softplus(dt.float() + self.dt_proj.bias.float())

    def channels(self) -> kernel.Channels:
        """What mamba-ssm's kernels need of each channel."""
        return kernel.Channels(self.decay_rate(), self.D, self.dt_proj.bias)

    def decay_rate(self) -> Tensor:
        """A[D,K], negative, in fp32."""
        return -self.A_log.float().exp()

    def finish(self, y: Tensor, u: Tensor, z: Tensor) -> Tensor:
        """Add the skip D u, gate by z, and project back to the hidden size."""
        return self.out_proj(torch.addcmul(y, u, self.D) * F.silu(z))


def _rows(x: Tensor, batch: int) -> Tensor:
    """x[C,B*T] as [B,C,T], a view."""
    return x.unflatten(1, (batch, -1)).transpose(0, 1)
