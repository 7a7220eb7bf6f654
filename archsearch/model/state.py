"""Everything that a model remembers between decode steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from archsearch.operators.layer import State


class DecodeState:
    """One `State` per layer and the number of tokens that each row has seen.

    `position`[B] counts meta tokens too, as does `capacity`. Allocated once; prefill and
    step update it in place.
    """

    def __init__(self, layers: Sequence[State], batch: int, capacity: int, device: str) -> None:
        self.layers = list(layers)
        self.capacity = capacity
        self.position = torch.zeros(batch, dtype=torch.long, device=device)
        self.all_rows = torch.ones(batch, dtype=torch.bool, device=device)
        # the longest row, known on the host so that bounds are checked without a wait
        self.longest = 0

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.position)

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers' states."""
        return sum(layer.num_bytes for layer in self.layers)

    def reserve(self, count: int, active: Tensor | None = None) -> None:
        """Raise ValueError, with nothing changed, if `count` more tokens do not fit a row
        (an `active`[B] one, where that is given)."""
        if self.longest + count > self.capacity:
            # the host's count is an upper bound: rows may have been idle; only now ask exactly
            used = self.position if active is None else self.position * active
            self.check_room(used, torch.full_like(used, count))

    def check_room(self, used: Tensor, count: Tensor) -> None:
        """Raise ValueError if any of rows that hold `used`[R] tokens has no room for `count`[R]
        more."""
        worst = int((used + count).argmax())
        held, new = int(used[worst]), int(count[worst])
        if held + new > self.capacity:
            raise ValueError(
                f"the decode state holds {self.capacity} tokens per row, meta tokens included;"
                f" {held} are used and {new} more do not fit"
            )

    def move(self, count: Tensor, rows: Tensor | None = None) -> None:
        """Note that all rows, or those with the given indices, have `count`[R] more tokens."""
        if rows is None:
            self.position += count
        else:
            self.position.index_add_(0, rows, count)
        self.longest = int(self.position.max())

    def reset(self, rows: Tensor | None = None) -> None:
        """Make all rows, or those with the given indices, fresh."""
        for layer in self.layers:
            layer.reset(rows)
        if rows is None:
            self.position.zero_()
        else:
            self.position.index_fill_(0, rows, 0)
        self.longest = int(self.position.max())

    def reorder(self, index: Tensor) -> None:
        """Replace row i by the former row `index[i]`."""
        for layer in self.layers:
            layer.reorder(index)
        self.position.copy_(self.position.index_select(0, index))


def take_rows(state: State, rows: Tensor) -> State:
    """A copy of the rows with the given indices."""
    parts = {name: tensor.index_select(0, rows) for name, tensor in state.tensors.items()}
    return State(parts, state.shared)


def put_rows(state: State, rows: Tensor, part: State) -> None:
    """Overwrite the rows with the given indices by those of `part`."""
    for name, tensor in state.tensors.items():
        tensor.index_copy_(0, rows, part[name])
