"""Generation in one call, for who needs no session."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from archsearch.generate import prompts as given
from archsearch.generate.sampling import GREEDY
from archsearch.generate.sampling import Sampling
from archsearch.generate.session import Generation
from archsearch.generate.session import Session
from archsearch.model import HybridLM


def generate(
    model: HybridLM,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    sampling: Sampling = GREEDY,
    stop: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> Generation:
    """Continue prompts of any lengths by up to `max_new_tokens` tokens each.

    A row ends at its own first token of `stop`. Raises ValueError for no prompt, an empty one,
    a token outside the vocabulary, or chance without a generator.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be positive; got {max_new_tokens}")
    seed = 0
    if sampling.temperature > 0:
        if generator is None:
            raise ValueError("sampling needs a generator; only temperature 0 does without")
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    read = given.read(prompts, None, model.spec.vocab_size)
    session = Session(model, batch_size=len(read.lengths), max_len=read.longest + max_new_tokens)
    session.prompt(read.ids, read.lengths)
    return session.generate(max_new_tokens, sampling, stop, seed)
