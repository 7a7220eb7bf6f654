"""`ArchSearchForCausalLM`: transformers' loading, generating and training around a `HybridLM`.

Legend: B rows, T tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextlib import nullcontext
from functools import partial
from typing import Any
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from archsearch.hf import inputs
from archsearch.hf.cache import StateCache
from archsearch.hf.checkpoint import CheckpointModel
from archsearch.hf.config import ArchSearchConfig
from archsearch.hf.released_generation import ReleasedGeneration
from archsearch.operators.backends import override
from archsearch.operators.sequence import SequenceInfo


class ArchSearchForCausalLM(CheckpointModel, GenerationMixin, ReleasedGeneration):  # type: ignore[misc]
    """Any architecture as a transformers model; `model` is the `HybridLM`.

    Made from a config alone, its weights are drawn from the seed that `set_seed` gave torch.
    """

    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # a setting of transformers' own is allowed, and has no effect: see attn_implementation_new
    _supports_sdpa = _supports_flash_attn = True
    # a rejected token cannot be taken back: no assisted generation
    _is_stateful = True
    _no_split_modules: ClassVar[list[str]] = ["Layer"]

    def __init__(self, config: ArchSearchConfig) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: StateCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        token_type_ids: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        seq_idx: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits of input_ids[B,T] or inputs_embeds[B,T,H]; with labels[B,T] the mean loss.

        Padding on either side and packed segments are told as `inputs.layout` says; positions
        are counted, not read. A cache is used where one is passed or `use_cache` is True, not
        otherwise, and then no gradient is recorded. token_type_ids have no effect.
        """
        del token_type_ids
        _refuse_unsupported(kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        assert tokens is not None
        loss = None
        if past_key_values is not None or use_cache:
            if labels is not None:
                raise ValueError("labels need use_cache=False: a cache records no gradient")
            past_key_values = StateCache() if past_key_values is None else past_key_values
            logits = self._read(tokens, attention_mask, past_key_values, logits_to_keep)
        else:
            seq = inputs.layout(
                tokens,
                attention_mask,
                position_ids=position_ids,
                cu_seq_lens=cu_seq_lens_q,
                seq_idx=seq_idx,
            )
            h = self.model.hidden(tokens, seq=seq, run=self._run_layer)
            logits = self.model.head(inputs.kept(h, logits_to_keep, seq))
            if labels is not None:
                loss = self.loss_function(
                    logits, inputs.targets(labels, seq), self.config.vocab_size, **kwargs
                )
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
        return output.to_tuple() if return_dict is False else output

    @torch.no_grad()
    def _read(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None,
        cache: StateCache,
        logits_to_keep: int | Tensor,
    ) -> Tensor:
        """Logits of tokens that continue the cache; its mask covers what was read before."""
        if not isinstance(cache, StateCache):
            raise ValueError(
                "past_key_values must be a StateCache, which generate() and use_cache=True make;"
                f" got {type(cache).__name__}"
            )
        real = None
        if attention_mask is not None:
            width = cache.seen + tokens.shape[1]
            if attention_mask.dim() != 2 or attention_mask.shape[1] != width:
                raise ValueError(
                    f"attention_mask must cover the {cache.seen} tokens of the cache and the new"
                    f" ones, {width} columns; got {tuple(attention_mask.shape)}"
                )
            real = inputs.real_tokens(attention_mask[:, cache.seen :], tokens)
        every = isinstance(logits_to_keep, Tensor) or logits_to_keep != 1
        with self._attention():
            logits = cache.read(self.model, tokens, real, every)
        return inputs.kept(logits, logits_to_keep) if every else logits

    def _run_layer(self, layer: nn.Module, h: Tensor, *, seq: SequenceInfo | None) -> Tensor:
        run = partial(self._call_layer, layer, seq)
        if self.gradient_checkpointing and self.training:
            y: Tensor = self._gradient_checkpointing_func(run, h)
            return y
        return run(h)

    def _call_layer(self, layer: nn.Module, seq: SequenceInfo | None, h: Tensor) -> Tensor:
        # inside of the checkpoint: it calls again in the backward pass
        with self._attention():
            y: Tensor = layer(h, seq=seq)
            return y

    def _attention(self) -> AbstractContextManager[None]:
        """The preferred implementation of attention, in force."""
        backend = self.config.attention_backend()
        return override(backend) if backend else nullcontext()

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """transformers' hook: the cache that `generate` passes to every call."""
        if generation_config.cache_implementation is not None:
            raise ValueError(
                "cache_implementation must be None: the state of this model is a StateCache;"
                f" got {generation_config.cache_implementation!r}"
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache:
            model_kwargs["past_key_values"] = StateCache(max_cache_length)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding."""
        return self.model.embed

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the embedding."""
        self.model.embed = value

    def get_output_embeddings(self) -> nn.Linear:
        """The head's matrix."""
        return self.model.head.proj

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the head's matrix."""
        self.model.head.proj = new_embeddings

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """transformers' own; the architecture follows."""
        embedding: nn.Embedding = super().resize_token_embeddings(*args, **kwargs)
        self.model.spec = self.config.to_spec()
        return embedding


def _refuse_unsupported(kwargs: Mapping[str, Any]) -> None:
    for name in ("output_hidden_states", "output_attentions"):
        if kwargs.get(name):
            raise ValueError(f"{name} is not supported")
