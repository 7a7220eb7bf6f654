"""Generation equals repeated forward passes, row by row, and keeps its promises."""

from __future__ import annotations

import pytest
import torch

from archsearch.generate import Sampling
from archsearch.generate import generate
from archsearch.generate import sample
from archsearch.model import HybridLM
from archsearch.model import build
from archsearch.space import parse


def tiny() -> HybridLM:
    return build(parse("d f m2 a f @64", vocab_size=50, num_meta_tokens=3))


def test_greedy_equals_the_uncached_forward_pass() -> None:
    model = tiny()
    prompts = [[1, 2, 3, 4, 5, 6], [7], [8, 9, 10]]
    result = generate(model, prompts, 12)
    for prompt, tokens in zip(prompts, result.tokens, strict=True):
        text = list(prompt)
        with torch.inference_mode():
            for token in tokens:
                assert int(model(torch.tensor([text]))[0, -1].argmax()) == token
                text.append(token)


def test_rows_stop_on_their_own() -> None:
    model = tiny()
    prompts = [[1, 2, 3], [4, 5]]
    free = generate(model, prompts, 10).tokens
    stop = free[0][2]
    rows = generate(model, prompts, 10, stop=[stop]).tokens
    for row, full in zip(rows, free, strict=True):
        assert row == (full[: full.index(stop) + 1] if stop in full else full)


def test_same_generator_same_text() -> None:
    model = tiny()
    texts = [
        generate(
            model,
            [[1, 2]],
            8,
            sampling=Sampling(temperature=2.0),
            generator=torch.Generator().manual_seed(seed),
        ).tokens
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_chance_needs_a_generator() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="needs a generator"):
        generate(tiny(), [[1, 2]], 8, sampling=Sampling())
    assert torch.equal(torch.get_rng_state(), before)


def test_top_k_and_top_p_cut_the_tail() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(500, -1)
    generator = torch.Generator().manual_seed(0)
    assert set(sample(logits, Sampling(top_k=2), generator).tolist()) == {0, 1}
    assert set(sample(logits, Sampling(top_p=0.5), generator).tolist()) == {0}
    assert set(sample(logits, Sampling(top_p=0.8), generator).tolist()) == {0, 1}
    assert len(set(sample(logits, Sampling(), generator).tolist())) == 4


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([], "at least one token"), ([[1], []], "at least one token"), ([[50]], "tokens must lie")],
)
def test_bad_prompts(prompts: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(tiny(), prompts, 4)
