"""Adapters to flash-linear-attention: the chunked form both ways, and one token.

Legend: B rows, T tokens, N heads, D head width.
"""

from __future__ import annotations

from torch import Tensor

from archsearch.operators.backends import Request
from archsearch.operators.common.fla import launch_in_place
from archsearch.operators.common.fla import prepared
from archsearch.operators.common.fla import refuses_chunks
from archsearch.operators.common.fla import refuses_narrow
from archsearch.operators.rwkv7.config import RWKV7Config

OPS = "fla.ops.rwkv7"
# no log-decay lies below, which lets upstream use tensor cores in whole chunks
LOWEST = -0.6065306597126334
CHUNK = 64
MAX_WIDTH = 256


def chunk(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The same as `chunked.chunk_rwkv7`, in the dtype of r, k and v; the final state, in fp32,
    is given only where there is an initial one."""
    state = None if initial_state is None else initial_state.float()
    # under autocast some of them come in fp32
    k, v, a, b = (x.to(r.dtype) for x in (k, v, a, b))
    o, final = prepared(OPS).chunk_rwkv7(
        r,
        w,
        k,
        v,
        a,
        b,
        scale=1.0,
        initial_state=state,
        output_final_state=state is not None,
        safe_gate=True,
        lower_bound=LOWEST,
        chunk_size=CHUNK,
    )
    return o, final


def step_(
    state: Tensor, r: Tensor, w: Tensor, k: Tensor, v: Tensor, *, kk: Tensor, rate: Tensor
) -> Tensor:
    """Output of one token as `reference.rwkv7_step` with a = -kk and b = kk * rate, fp32 inside;
    the state moves on in place, and stays where w, k and kk are 0."""
    kernel = prepared("fla.ops.rwkv7.fused_recurrent").fused_recurrent_rwkv7_fwd_kernel
    inputs = {"r": r, "w": w, "k": k, "kk": kk, "a": rate, "scale": 1.0, "IS_DECODE": True}
    return launch_in_place(kernel, state, inputs, v)


def refuses(request: Request, config: RWKV7Config) -> str:
    """Why the kernels cannot serve the request; "" if they can."""
    if request.phase != "decode" and config.head_dim > MAX_WIDTH:
        return f"its heads are at most {MAX_WIDTH} wide; here {config.head_dim}"
    return refuses_chunks(request) or refuses_narrow(request, config.head_dim)
