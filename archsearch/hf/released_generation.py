"""The released ways to generate, by their names, on the one engine (`archsearch.generate`).

What was unsound in the released code is not kept: a second prompt on a state is a fresh one
unless `resume` is asked for, each row stops on its own, rows may have different lengths, and a
prompt that does not fit is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from archsearch.generate import Sampling
from archsearch.generate import Session
from archsearch.hf import inputs
from archsearch.hf.config import ArchSearchConfig
from archsearch.model import HybridLM

# the prompt budget of the released code
MAX_PROMPT = 2048


class ReleasedGeneration:
    """Three methods of the model classes."""

    model: HybridLM
    config: ArchSearchConfig

    def init_cuda_graph_generation(
        self,
        max_new_tokens: int = 128,
        batch_size: int = 1,
        device: torch.device | str | None = None,
        max_prompt: int = MAX_PROMPT,
    ) -> Session:
        """Room for `batch_size` texts of `max_prompt` and `max_new_tokens` tokens, prompts and
        answers together; on a GPU the decode step is recorded here.

        Raises ValueError for a device other than the model's.
        """
        own = self.model.embed.weight.device
        asked = own if device is None else torch.device(device)
        if asked.type != own.type or asked.index not in (None, own.index):
            raise ValueError(f"device must be the model's, {str(own)!r}; got {str(device)!r}")
        session = Session(self.model, batch_size=batch_size, max_len=max_prompt + max_new_tokens)
        session.prepare()
        return session

    def generate_with_cuda_graph(
        self,
        input_ids: Tensor,
        generation_state: Session,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.9,
        eos_token_id: int | list[int] | None = None,
        verbose: bool = False,
        profiling: bool = False,
        *,
        attention_mask: Tensor | None = None,
        resume: bool = False,
        seed: int = 0,
    ) -> Tensor | tuple[Tensor, float]:
        """input_ids[B,T] and what follows them, [B,T+new], rows that ended early filled with
        the padding token; with `profiling` also the seconds taken, no row ending early.

        `resume` continues the texts of the call before. temperature 0 is greedy; the same
        `seed` gives the same text.
        """
        real = None
        if attention_mask is not None:
            real = inputs.real_tokens(attention_mask, input_ids)
        prompt, lengths = input_ids, None
        if real is not None:
            prompt, lengths, _ = inputs.to_the_left(input_ids, real)
        (generation_state.extend if resume else generation_state.prompt)(prompt, lengths)
        stop = [] if profiling or eos_token_id is None else eos_token_id
        result = generation_state.generate(
            max_new_tokens,
            sampling=Sampling(temperature, top_k, top_p),
            stop=stop if isinstance(stop, list) else [stop],
            seed=seed,
        )
        if verbose:
            print(f"{result.tokens_per_s:.1f} tokens per second, all rows together")
        ids = torch.cat([input_ids, self._filled(result.tokens).to(input_ids.device)], dim=1)
        return (ids, result.prefill_s + result.decode_s) if profiling else ids

    def generate_with_cache(
        self,
        input_ids: Tensor,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.9,
        eos_token_id: int | list[int] | None = None,
        verbose: bool = False,
        *,
        attention_mask: Tensor | None = None,
        seed: int = 0,
    ) -> Tensor:
        """`generate_with_cuda_graph` without a graph, in room made for this call."""
        batch, length = input_ids.shape
        session = Session(
            self.model, batch_size=batch, max_len=length + max_new_tokens, graph=False
        )
        ids = self.generate_with_cuda_graph(
            input_ids,
            session,
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            eos_token_id,
            verbose,
            attention_mask=attention_mask,
            seed=seed,
        )
        assert isinstance(ids, Tensor)
        return ids

    def _filled(self, tokens: list[list[int]]) -> Tensor:
        """New tokens as rows of one length."""
        longest = max(len(row) for row in tokens)
        padding = self.config.pad_token_id or 0
        return torch.tensor([row + [padding] * (longest - len(row)) for row in tokens])
