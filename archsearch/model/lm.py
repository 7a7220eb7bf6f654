"""`HybridLM`: embedding, meta tokens, any stack of operators, head.

Legend: B rows, T tokens, M meta tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from typing import Self

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from archsearch import operators
from archsearch.model.adapters import refuse_unheard
from archsearch.model.fused_head import step_logits
from archsearch.model.head import LMHead
from archsearch.model.layer import Layer
from archsearch.model.state import DecodeState
from archsearch.model.state import put_rows
from archsearch.model.state import take_rows
from archsearch.operators.sequence import SequenceInfo
from archsearch.space import ArchSpec

# calls a layer (layer, h, seq=...): plainly, or with checkpointing around it
RunLayer = Callable[..., Any]


class HybridLM(nn.Module):
    """A language model made from an `ArchSpec`; call `init_weights` before first use."""

    def __init__(
        self,
        spec: ArchSpec,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        hidden = spec.hidden_size
        self.embed = nn.Embedding(spec.vocab_size, hidden)
        meta = torch.empty(spec.num_meta_tokens, hidden)
        self.meta_tokens = nn.Parameter(meta) if spec.num_meta_tokens else None
        self.layers = nn.ModuleList(
            Layer(operators.get(layer.operator).build(config), spec.norm_eps)
            for layer, config in zip(spec.layers, spec.configs, strict=True)
        )
        self.head = LMHead(
            hidden, spec.vocab_size, norm_eps=spec.norm_eps, head_norm=spec.head_norm
        )
        self.to(device=device, dtype=dtype)
        self.tie()

    def tie(self) -> None:
        """Make the head read the embedding, where the spec says so."""
        if self.spec.tie_embeddings:
            self.head.proj.weight = self.embed.weight

    def to_empty(self, *, device: Any, recurse: bool = True) -> Self:
        """As torch's; a tied head stays tied, and never has memory of its own."""
        if self.spec.tie_embeddings:
            self.head.proj.register_parameter("weight", None)
        super().to_empty(device=device, recurse=recurse)
        self.tie()
        return self

    def init_weights(self, seed: int) -> None:
        """Draw all weights from `seed`: matrices as the operators say, embeddings N(0, 0.02),
        meta tokens N(0, 1) as published; what is written to the residual stream is scaled
        down by sqrt(2 x layers), so that its variance does not grow with depth."""
        generator = torch.Generator(self.embed.weight.device).manual_seed(seed)
        nn.init.normal_(self.embed.weight, std=0.02, generator=generator)
        if not self.spec.tie_embeddings:
            nn.init.normal_(self.head.proj.weight, std=0.02, generator=generator)
        if self.meta_tokens is not None:
            nn.init.normal_(self.meta_tokens, generator=generator)
        self.head.norm.reset()
        for layer in self.decoder:
            layer.init_weights(generator)
            for name in layer.mixer.WRITES:
                with torch.no_grad():
                    layer.mixer.get_parameter(f"{name}.weight").mul_(
                        (2 * len(self.layers)) ** -0.5
                    )

    @property
    def decoder(self) -> list[Layer]:
        """The layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def num_parameters(self) -> int:
        """Number of trainable values; a tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, ids: Tensor, *, seq: SequenceInfo | None = None) -> Tensor:
        """fp32 logits[B,T,V] of token ids[B,T]; every packed segment gets the meta tokens.

        Raises ValueError for rows that begin elsewhere than at 0: `prefill` continues prompts.
        """
        return self.head(self.hidden(ids, seq=seq))

    def hidden(
        self,
        tokens: Tensor,
        *,
        seq: SequenceInfo | None = None,
        run: RunLayer = nn.Module.__call__,
    ) -> Tensor:
        """What `forward` gives to the head, [B,T,H], of token ids[B,T] or of their embeddings
        [B,T,H]; `run` calls the layers."""
        h = self._embedded(tokens)
        if seq is None:
            return self._run(h, None, run)
        if seq.starts is not None:
            raise ValueError("a forward pass begins at position 0; continue prompts by prefill")
        return seq.from_rows(self._run(seq.to_rows(h), seq.rows.lengths, run))

    def loss(self, ids: Tensor) -> Tensor:
        """Mean next-token cross-entropy in nats over ids[B,T+1]."""
        logits = self(ids[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def init_state(self, batch: int, max_len: int) -> DecodeState:
        """Room for `batch` rows of `max_len` tokens each, meta tokens not counted."""
        if batch < 1 or max_len < 1:
            raise ValueError(f"batch and max_len must be positive; got {batch} and {max_len}")
        refuse_unheard(self.decoder)
        weight = self.embed.weight
        capacity = max_len + self.spec.num_meta_tokens
        layers = [
            layer.mixer.init_state(batch, capacity, weight.dtype, weight.device)
            for layer in self.decoder
        ]
        return DecodeState(layers, batch, capacity, str(weight.device))

    def prefill(
        self,
        ids: Tensor,
        state: DecodeState,
        *,
        lengths: Tensor | None = None,
        rows: Tensor | None = None,
        every: bool = False,
    ) -> Tensor:
        """Read prompts ids[R,T] (or their embeddings[R,T,H]), the first `lengths`[R] tokens of
        each, into the state's rows with the indices `rows`[R] (None: all B of them).

        Rows that the state knows are continued; fresh ones begin with the meta tokens.
        Returns fp32 logits[R,V] after each row's last token, or [R,T,V] after `every` token
        (those at padding mean nothing). Raises ValueError for an empty
        prompt, another batch than the state's, or a prompt that does not fit. Without
        `lengths` and `rows` and with fresh rows alone nothing waits for the device: capturable.
        """
        batch, length = ids.shape[:2]
        known = state.position if rows is None else state.position[rows]
        if batch != len(known):
            where = "the decode state has" if rows is None else "these are"
            raise ValueError(f"{where} {len(known)} rows; got {batch} prompts")
        if length == 0 or (lengths is not None and int(lengths.min()) < 1):
            raise ValueError("a prompt must have at least one token; got an empty one")
        if lengths is None and rows is None and not state.longest:
            h = self._prefill_fresh(ids, state)
            return self.head(h if every else h[:, -1])
        real = torch.full_like(known, length) if lengths is None else lengths
        meta = torch.where(known == 0, self.spec.num_meta_tokens, 0)
        state.check_room(known, meta + real)
        total = int((meta + real).max())
        h = self._with_meta(self._embedded(ids), meta, real, total)
        starts = known if state.longest else None
        seq = SequenceInfo.padded(meta + real, total, starts=starts, device=ids.device)
        for layer, layer_state in zip(self.decoder, state.layers, strict=True):
            part = layer_state if rows is None else take_rows(layer_state, rows)
            h = layer(h, state=part, seq=seq)
            if rows is not None:
                put_rows(layer_state, rows, part)
        state.move(meta + real, rows)
        row = torch.arange(batch, device=ids.device)
        if not every:
            return self.head(h[row, meta + real - 1])
        column = meta[:, None] + torch.arange(length, device=ids.device)
        return self.head(h[row[:, None], column.clamp(max=total - 1)])

    def _prefill_fresh(self, ids: Tensor, state: DecodeState) -> Tensor:
        """Prompts of one length into rows that have seen nothing; [B,T,H] for the head."""
        h = self._led(self._embedded(ids))
        total = h.shape[1]
        state.reserve(total)
        for layer, layer_state in zip(self.decoder, state.layers, strict=True):
            h = layer(h, state=layer_state)
        state.position.fill_(total)
        state.longest = total
        return h[:, self.spec.num_meta_tokens :]

    def step(self, ids: Tensor, state: DecodeState, active: Tensor | None = None) -> Tensor:
        """Decode one token ids[B] per row; rows that are not `active`[B] change nothing.

        Returns fp32 logits[B,V]. Raises ValueError when a row is full. Begin with `prefill`,
        which is what puts the meta tokens into a fresh row.
        """
        active = state.all_rows if active is None else active
        state.reserve(1, active)
        logits = self.advance(ids, state, active)
        state.longest += 1
        return logits

    def advance(self, ids: Tensor, state: DecodeState, active: Tensor) -> Tensor:
        """`step` without its bookkeeping on the host, as a CUDA graph holds it: the caller
        reserves room and keeps `state.longest`."""
        h = self.embed(ids)
        for layer, layer_state in zip(self.decoder, state.layers, strict=True):
            h = layer.step(h, layer_state, state.position, active)
        state.position += active
        return step_logits(self.head, h)

    def _embedded(self, tokens: Tensor) -> Tensor:
        """[B,T,H] of ids[B,T]; embeddings stay as they are."""
        embedded: Tensor = tokens if tokens.is_floating_point() else self.embed(tokens)
        return embedded

    def _run(self, rows: Tensor, lengths: Tensor | None, run: RunLayer) -> Tensor:
        """All layers over right-padded rows[R,L,H], each led by the meta tokens."""
        refuse_unheard(self.decoder)
        count = self.spec.num_meta_tokens
        rows = self._led(rows)
        seq = None
        if lengths is not None:
            seq = SequenceInfo.padded(lengths + count, rows.shape[1], device=rows.device)
        for layer in self.layers:
            rows = run(layer, rows, seq=seq)
        return rows[:, count:]

    def _led(self, rows: Tensor) -> Tensor:
        """rows[R,L,H], each led by the meta tokens."""
        if self.meta_tokens is None:
            return rows
        lead = self.meta_tokens.to(rows.dtype).expand(len(rows), -1, -1)
        return torch.cat([lead, rows], dim=1)

    def _with_meta(self, h: Tensor, meta: Tensor, real: Tensor, total: int) -> Tensor:
        """Rows of `meta`[B] meta tokens and `real`[B] of the tokens h[B,T,H], then zeros."""
        batch, length, hidden = h.shape
        lead = h.new_empty(0, hidden) if self.meta_tokens is None else self.meta_tokens
        source = torch.cat([lead, h.flatten(0, 1), h.new_zeros(1, hidden)])
        column = torch.arange(total, device=h.device)[None]
        token = column - meta[:, None]
        row = torch.arange(batch, device=h.device)[:, None]
        index = torch.where(token < 0, column, len(lead) + row * length + token)
        return source[index.masked_fill(token >= real[:, None], len(source) - 1)]


def build(
    spec: ArchSpec,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> HybridLM:
    """Make a model with weights drawn from `seed`; torch's global generator stays as it is."""
    # torch's own layers draw weights when they are made, which init_weights replaces: made
    # without memory, they cost nothing, and a large model comes to life on its device alone
    with torch.device("meta"):
        model = HybridLM(spec, dtype=dtype)
    model.to_empty(device=device)
    model.init_weights(seed)
    return model
