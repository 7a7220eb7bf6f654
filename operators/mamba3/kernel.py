"""Adapters to the Triton kernels of mamba-ssm (forward, backward, one step).

Legend: B rows, T tokens, N heads, G groups, P head width, K state width, S angles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from archsearch.operators.backends import Request
from archsearch.operators.mamba3.config import Mamba3Config
from archsearch.operators.mamba3.reference import Carried
from archsearch.operators.mamba3.reference import Tokens


def scan(tokens: Tokens, past: Carried | None, *, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    raise NotImplementedError


def step_(now: Tokens, past: Carried) -> tuple[Tensor, Tensor]:
    raise NotImplementedError


def refuses(request: Request, config: Mamba3Config) -> str:
    return "not yet"
