"""What every operator's module shares: `Mixer` (prefill and decode) and `State`.

Legend: B rows, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from archsearch import operators
from archsearch.operators.backends import Request
from archsearch.operators.backends import choose
from archsearch.operators.base import OperatorConfig
from archsearch.operators.base import Phase
from archsearch.operators.base import StateDtype
from archsearch.operators.sequence import Rows
from archsearch.operators.sequence import SequenceInfo

INIT_STD = 0.02


class State:
    """Decode state of one layer: tensors whose first dimension is the row, updated in place.

    `shared` holds tensors that all rows read (rotary tables, for example).
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], shared: Mapping[str, Tensor] | None = None
    ) -> None:
        self.tensors = dict(tensors)
        self.shared = dict(shared or {})

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def update(self, name: str, value: Tensor, active: Tensor | None = None) -> None:
        """Overwrite tensor `name` [B, ...] in the rows where `active` [B] is true."""
        target = self.tensors[name]
        value = value.to(target.dtype)
        if active is not None:
            value = torch.where(active.view(-1, *[1] * (target.dim() - 1)), value, target)
        target.copy_(value)

    def reset(self, rows: Tensor | None = None) -> None:
        """Forget everything, or only the rows whose indices are given."""
        for tensor in self.tensors.values():
            if rows is None:
                tensor.zero_()
            else:
                tensor.index_fill_(0, rows, 0)

    def reorder(self, index: Tensor) -> None:
        """Replace row i by the former row `index[i]`; `index` has one entry per row."""
        for tensor in self.tensors.values():
            tensor.copy_(tensor.index_select(0, index))

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows, shared tables not counted."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


class Mixer(nn.Module):
    """Base of every operator's module.

    A subclass writes `mix` (rows of tokens), `mix_step` (one token per row), `init_state`,
    `refuses` where a backend cannot serve every request, and names in `READS` the matrices
    applied to hidden features and in `WRITES` those whose output is added to the residual
    stream (weight normalisation treats them differently).
    """

    operator: ClassVar[str]
    READS: ClassVar[tuple[str, ...]] = ()
    WRITES: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: OperatorConfig) -> None:
        super().__init__()
        self.config = config

    def mix(self, x: Tensor, rows: Rows, state: State | None) -> Tensor:
        """Mix x[B,T,H], whose padding (if any) is on the right and zero, into y[B,T,H]."""
        raise NotImplementedError

    def mix_step(self, x: Tensor, state: State, position: Tensor, active: Tensor) -> Tensor:
        """Mix one token x[B,H] at `position`[B] into y[B,H]; only `active`[B] rows of the
        state may change. No host synchronisation on CUDA."""
        raise NotImplementedError

    def init_state(
        self, batch: int, max_len: int, dtype: torch.dtype, device: torch.device | str
    ) -> State:
        """Allocate the decode state of `batch` empty rows that may grow to `max_len` tokens."""
        return State({})

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the weights: every Linear N(0, 0.02) with zero bias; subclasses add the rest."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INIT_STD, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, x: Tensor, *, state: State | None = None, seq: SequenceInfo | None = None
    ) -> Tensor:
        """Mix x[B,T,H] into y[B,T,H]: training and prefill.

        `seq` tells padding, packed segments and continued prompts; outputs at padding are
        zero. With a state the rows start from it and leave it at their last real token.
        Raises ValueError for a state together with packed segments.
        """
        if seq is None:
            return self.mix(x, Rows(), state)
        if state is not None and seq.is_packed:
            raise ValueError("a decode state holds one segment per row; got packed segments")
        y = self.mix(seq.to_rows(x), seq.rows, state)
        return seq.from_rows(y)

    def step(
        self,
        h: Tensor,
        state: State,
        position: Tensor,
        active: Tensor,
        norm: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Decode one token of the whole layer: h[B,H] + mix(norm(h)); rows that are not
        `active`[B] are returned, and their state left, as they were."""
        y = self.mix_step(norm(h), state, position, active)
        return torch.where(active[:, None], h + y, h)

    @property
    def backends(self) -> tuple[str, ...]:
        """Its implementations, in order of preference, as the operator table lists them."""
        return operators.get(self.operator).backends

    def backend(self, x: Tensor, phase: Phase | None = None) -> str:
        """The implementation that serves this input; without a `phase`, "train" where
        gradients are recorded and "prefill" elsewhere."""
        if phase is None:
            phase = "train" if torch.is_grad_enabled() else "prefill"
        request = Request(self.operator, phase, x.device.type, x.dtype)
        return choose(self.backends, request, self.refuses)

    def refuses(self, backend: str, request: Request) -> str:
        """Why `backend`, though installed, cannot serve the request; "" if it can."""
        return ""


def state_dtype(choice: StateDtype, dtype: torch.dtype) -> torch.dtype:
    """The torch dtype of a recurrent state in a model whose weights have `dtype`."""
    return torch.float32 if choice == "float32" else dtype
