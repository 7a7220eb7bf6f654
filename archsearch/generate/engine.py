"""Generation with a decode state: one prefill, then one step per token.

Legend: B rows, T prompt tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from archsearch.generate.sampling import Sampling
from archsearch.generate.sampling import sample
from archsearch.model import HybridLM

GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Generation:
    """New tokens of every prompt (the end token included), and how fast they came."""

    tokens: list[list[int]]
    prefill_s: float
    decode_s: float

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all rows per second of decoding; the first ones come from prefill."""
        decoded = sum(len(row) - 1 for row in self.tokens)
        return decoded / self.decode_s if self.decode_s else 0.0


@torch.inference_mode()
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
    or a token outside the vocabulary.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be positive; got {max_new_tokens}")
    ids, lengths = _pad(prompts, model.spec.vocab_size)
    device = model.embed.weight.device
    ids, lengths = ids.to(device), lengths.to(device)
    started = time.perf_counter()
    state = model.init_state(len(ids), ids.shape[1] + max_new_tokens)
    token = sample(model.prefill(ids, state, lengths=lengths), sampling, generator)
    new = [[int(value)] for value in token.tolist()]
    middle = time.perf_counter()
    active = torch.tensor([row[0] not in stop for row in new], device=device)
    for _ in range(max_new_tokens - 1):
        if not bool(active.any()):
            break
        token = sample(model.step(token, state, active), sampling, generator)
        running = active.tolist()
        for row, value, runs in zip(new, token.tolist(), running, strict=True):
            if runs:
                row.append(value)
        active = active & ~torch.isin(token, torch.tensor(stop, device=device))
    return Generation(new, middle - started, time.perf_counter() - middle)


def _pad(prompts: Sequence[Sequence[int]], vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    if not prompts or any(not len(prompt) for prompt in prompts):
        raise ValueError("every prompt must have at least one token; got an empty one")
    worst = max(max(prompt) for prompt in prompts), min(min(prompt) for prompt in prompts)
    if worst[0] >= vocab_size or worst[1] < 0:
        raise ValueError(f"tokens must lie in 0..{vocab_size - 1}; got {worst[1]}..{worst[0]}")
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.as_tensor(prompt)
    return ids, lengths
