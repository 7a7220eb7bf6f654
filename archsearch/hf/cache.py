"""`StateCache`: a `DecodeState` under the interface of transformers' caches.

Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any
from typing import NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from archsearch.hf.inputs import to_the_left
from archsearch.model import DecodeState
from archsearch.model import HybridLM


class StateCache(Cache):  # type: ignore[misc]
    """What a model remembers of each row; made by `generate`, or by `use_cache=True`.

    `room` tokens per row are allocated at first use; it grows when they do not suffice. The
    state of a recurrent layer cannot be taken back to an earlier token: `crop` is refused.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, room: int = 0) -> None:
        super().__init__(layers=[])
        self.room = room
        self.state: DecodeState | None = None
        # columns read, padding included: what generate slices its inputs by
        self.seen = 0

    def read(self, model: HybridLM, tokens: Tensor, real: Tensor | None, every: bool) -> Tensor:
        """Read ids[B,T] or embeddings[B,T,H], of which real[B,T] (None: all) count.

        Returns logits[B,1,V] after each row's last real token, or [B,T,V] after `every` one.
        """
        batch, length = tokens.shape[:2]
        state = self._prepared(model, batch, length)
        if length == 1 and self.seen and not tokens.is_floating_point():
            active = None if real is None else real[:, 0]
            logits = model.step(tokens[:, 0], state, active)[:, None]
        elif real is None:
            logits = model.prefill(tokens, state, every=every)
        else:
            moved, lengths, origin = to_the_left(tokens, real)
            logits = model.prefill(moved, state, lengths=lengths, every=every)
            if every:
                row = torch.arange(batch, device=origin.device)[:, None]
                logits = torch.empty_like(logits).index_put((row, origin), logits)
        self.seen += length
        return logits if logits.dim() == 3 else logits[:, None]

    def _prepared(self, model: HybridLM, batch: int, length: int) -> DecodeState:
        """The state, with room for `length` more tokens."""
        if self.state is not None and self.state.batch != batch:
            raise ValueError(f"the cache has {self.state.batch} rows; got {batch}")
        needed = self.seen + length
        if self.state is None:
            self.room = max(self.room, needed)
            self.state = model.init_state(batch, self.room)
        elif needed > self.room:
            if model.spec.rope.type == "dynamic_ntk":
                raise ValueError(
                    f"the cache has room for {self.room} tokens and cannot grow, since the rotary"
                    " base of dynamic_ntk depends on the room; make it by StateCache(room=...)"
                )
            self.room = max(2 * self.room, needed)
            self.state = _moved(self.state, model.init_state(batch, self.room))
        return self.state

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read so far, padding included and meta tokens not."""
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """How many columns an attention mask has, and that they begin at 0."""
        return self.seen + int(query_length), 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: it grows."""
        return -1

    def has_previous_state(self, *args: Any, **kwargs: Any) -> bool:
        """Whether anything was read."""
        return self.seen > 0

    @property
    def is_initialized(self) -> bool:
        """Whether memory is allocated."""
        return self.state is not None

    @property
    def batch_size(self) -> int:
        """Rows; -1 before first use."""
        return -1 if self.state is None else self.state.batch

    def reset(self) -> None:
        """Make all rows fresh."""
        if self.state is not None:
            self.state.reset()
        self.seen = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace row i by the former row beam_idx[i]."""
        if self.state is not None:
            self.state.reorder(beam_idx.to(self.state.position.device))

    def crop(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        raise ValueError("a recurrent state cannot be cropped to an earlier token")

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: the model's own layers write it."""
        raise ValueError("a StateCache is written by the model alone")

    def batch_repeat_interleave(self, repeats: int) -> NoReturn:
        """Refused."""
        raise ValueError("the number of rows of a StateCache is fixed")

    def batch_select_indices(self, indices: Tensor) -> NoReturn:
        """Refused."""
        raise ValueError("the number of rows of a StateCache is fixed")


def _moved(old: DecodeState, new: DecodeState) -> DecodeState:
    """What `old` remembers, in the larger `new`."""
    for source, target in zip(old.layers, new.layers, strict=True):
        for name, tensor in source.tensors.items():
            target[name][tuple(slice(0, size) for size in tensor.shape)].copy_(tensor)
    new.position.copy_(old.position)
    new.longest = old.longest
    return new
