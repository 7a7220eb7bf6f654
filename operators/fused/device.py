"""What all kernels of the fused step share: programmatic dependent launch, and small formulas.

Dependent launch lets a kernel start while those before it in the stream still run. Each of our
kernels therefore keeps to one order: (1) fetch what no kernel of this decode step writes, that is
weights, and what the kernel itself keeps from one step to the next; (2) `wait`, which returns
when the kernels before are complete and their writes visible; (3) let the next one start; (4)
read inputs, compute, and only now write. Why this is safe:

- every program waits before it ends, so that a complete kernel means that all before it are
  complete, however early it started;
- between one decode step and the next stand several kernels of torch, each of which waits for all
  before it: what an earlier step wrote is there, and so is the position;
- nothing is written before the wait: memory that the allocator hands from one step of the chain
  to a later one is not overwritten while somebody still reads it. A counter of the kernel's own,
  by which its programs tell one another that they have read what one of them will overwrite, may
  count earlier: it is never handed on.

Kernels that move little (a norm, convolutions, a sum of shares) do (3) before (2), so that the
kernel behind them fetches weights or states while the product before them still runs. Where all
do, nothing is gained (measured).

What (1) reads and a kernel of an earlier step wrote is loaded past the L1 (`.cg`): nobody promises
that a kernel which starts early finds its multiprocessor's L1 empty.

A kernel that is no graph's (`early` is 0) waits before (1): the kernel before it may be anything,
one that has just written the weights, for example. In a graph the first kernel is in order with
all that came before, and nothing in a decode step writes weights.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents
from triton.language.extra.cuda import gdc_wait

from archsearch.operators.backends import interpreting
from archsearch.operators.backends import is_hopper

SWITCH = "ARCHSEARCH_DEPENDENT"


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Kernels are launched where `tensor` is; on a CPU Triton's interpreter runs them."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def launch_options() -> dict[str, bool]:
    """Keywords of every launch: whether kernels are launched dependently, as they are on a Hopper
    GPU unless ARCHSEARCH_DEPENDENT=0."""
    dependent = not interpreting() and is_hopper() and os.environ.get(SWITCH) != "0"
    return {"DEPENDENT": True, "launch_pdl": True} if dependent else {"DEPENDENT": False}


def early() -> int:
    """1 where kernels may fetch weights before the kernels ahead are complete."""
    return int(torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


@triton.jit
def wait_if_alone(early, DEPENDENT: tl.constexpr):
    """Wait ahead of (1) where the kernel before may be anybody's."""
    # the first is known when the kernel is compiled, the second when it runs
    if DEPENDENT:  # noqa: SIM102
        if early == 0:
            gdc_wait()


@triton.jit
def wait(DEPENDENT: tl.constexpr):
    """Steps (2) and (3)."""
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def all_asked_for(early, DEPENDENT: tl.constexpr):
    """Behind loads that are to be on their way together: the compiler moves what needs the first
    of them ahead of the others, which then come a round trip later. It stays behind a branch,
    of which it knows only when it runs that nothing is left to wait for."""
    wait_if_alone(early, DEPENDENT)


@triton.jit
def let_next_start(DEPENDENT: tl.constexpr):
    """Step (3) of a kernel that moves little, ahead of all others."""
    if DEPENDENT:
        gdc_launch_dependents()


@triton.jit
def wait_only(DEPENDENT: tl.constexpr):
    """Step (2) of such a kernel."""
    if DEPENDENT:
        gdc_wait()


@triton.jit
def silu(x):
    """x * sigmoid(x) in fp32."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    """log(1 + exp(x)) in fp32, exact for very negative x too."""
    grown = tl.exp(tl.minimum(x, 20.0))
    total = 1.0 + grown
    # what 1 + grown rounds off comes back by the quotient
    exact = tl.log(total) * (grown / tl.where(total == 1.0, 1.0, total - 1.0))
    return tl.where(x > 20.0, x, tl.where(total == 1.0, grown, exact))


@triton.jit
def tanh(x):
    """The hyperbolic tangent in fp32, exact for small x too."""
    grown = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - grown) / (1.0 + grown)
    square = x * x
    near = x * (1.0 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315))))
    return tl.where(square < 0.01, near, tl.where(x < 0.0, -far, far))


@triton.jit
def rounded(x, LIKE: tl.constexpr):
    """x as the dtype LIKE holds it, in fp32: where the plain step rounds, so does this one."""
    return x.to(LIKE).to(tl.float32)


@triton.jit
def appended(tensors, tensor):
    """A tuple with one tensor more."""
    return tensors + (tensor,)  # noqa: RUF005
