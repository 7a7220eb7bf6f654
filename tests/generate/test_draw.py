"""The sampling that a graph can hold draws what the plain one allows, as often as it should."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from archsearch.generate import Sampling
from archsearch.generate import Session
from archsearch.generate import draw as drawing
from archsearch.generate.draw import CANDIDATES
from archsearch.generate.draw import Knobs
from archsearch.generate.draw import chances
from archsearch.generate.draw import draw
from archsearch.generate.draw import way
from archsearch.generate.sampling import cut
from archsearch.model import HybridLM
from archsearch.model import build
from archsearch.space import parse

GRID = 1009
SETTINGS = [
    Sampling(),
    Sampling(temperature=0.3),
    Sampling(top_k=1),
    Sampling(top_k=7),
    Sampling(top_k=50, top_p=0.8, temperature=1.7),
    Sampling(top_k=10**6, top_p=0.5),
    Sampling(top_p=0.9),
    Sampling(top_p=0.05),
    Sampling(top_p=1e-9),
]


def logits_of(vocab: int, spread: float, *, ties: bool = False) -> Tensor:
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(vocab)) * spread
    return (logits * 2).round() / 2 if ties else logits


def counted(logits: Tensor, sampling: Sampling) -> tuple[Tensor, bool]:
    """How often each token is drawn by evenly spread chances, and whether that is sure."""
    knobs = Knobs.new(GRID, logits.device)
    knobs.set(sampling)
    chance = (torch.arange(GRID, dtype=torch.float64)[:, None] + 0.5) / GRID
    how = way(sampling, logits.shape[1])
    drawn = draw(how, logits.expand(GRID, -1), knobs, chance)
    sure = drawn.sure is None or bool(drawn.sure.all())
    return torch.bincount(drawn.token, minlength=logits.shape[1]), sure


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("vocab", [5, 600, 1500])
def test_equal_to_the_plain_form(vocab: int, sampling: Sampling, ties: bool) -> None:
    logits = logits_of(vocab, 4.0, ties=ties)
    counts, sure = counted(logits, sampling)
    allowed = cut(logits.double(), sampling)[0].softmax(-1)
    assert sure
    assert not counts[allowed == 0].any(), "a token was drawn that is cut"
    # the chances lie at equal distances: a token's share is hit to one of them
    assert (counts - allowed * GRID).abs().max() <= 1.001


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sampling", [s for s in SETTINGS if s.top_p < 1 or s.top_k], ids=str)
def test_what_the_candidates_do_not_hold_is_not_sure(sampling: Sampling, ties: bool) -> None:
    """Flat logits; where it is called sure, it is right."""
    logits = logits_of(2 * CANDIDATES, 1e-3 if not ties else 0.3, ties=ties)
    counts, sure = counted(logits, sampling)
    allowed = cut(logits.double(), sampling)[0].softmax(-1)
    kept = int((allowed > 0).sum())
    assert sure <= (kept <= CANDIDATES)
    if sure:
        assert (counts - allowed * GRID).abs().max() <= 1.001
    else:
        assert kept > CANDIDATES // 2


def test_the_cheapest_way() -> None:
    assert way(Sampling(temperature=0.0, top_k=5), 5000) == "greedy"
    assert way(Sampling(top_k=5000), 5000) == "open"
    assert way(Sampling(top_k=5), 5000) == "narrow"
    assert way(Sampling(top_p=0.5), 5000) == "narrow"
    assert way(Sampling(top_p=0.5), 500) == "whole"
    assert way(Sampling(top_k=4000), 5000) == "whole"


def test_greedy_takes_the_largest() -> None:
    logits = logits_of(300, 1.0)
    knobs = Knobs.new(1, logits.device)
    drawn = draw("greedy", logits, knobs, torch.zeros(1, 1))
    assert drawn.token.tolist() == [int(logits.argmax())]
    assert drawn.largest.tolist() == [float(logits.max())]


@pytest.mark.parametrize("how", ["greedy", "open", "narrow", "whole"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 700, 1999])
def test_what_is_not_finite_shows(how: drawing.Way, value: float, place: int) -> None:
    logits = logits_of(2000, 1.0)
    logits[0, place] = value
    knobs = Knobs.new(1, logits.device)
    knobs.set(Sampling(top_p=0.9))
    drawn = draw(how, logits, knobs, torch.full((1, 1), 0.5, dtype=torch.float64))
    assert not drawn.largest.isfinite().any()
    assert 0 <= int(drawn.token) < 2000


def test_chances_are_uniform_and_know_nothing_but_seed_row_and_position() -> None:
    numbers = chances(5, [0] * 50, 2000)
    assert 0 <= float(numbers.min()) <= float(numbers.max()) < 1
    assert len(numbers.unique()) == numbers.numel()
    # 100,000 numbers in 100 equal parts: chi-square with 99 degrees of freedom
    counts = torch.histc(numbers.float(), 100, 0, 1)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 99 + 4 * (2 * 99) ** 0.5
    near = torch.stack([numbers[:-1, :-1], numbers[1:, :-1], numbers[:-1, 1:]]).flatten(1)
    assert (torch.corrcoef(near) - torch.eye(3)).abs().max() < 0.02
    assert torch.equal(
        chances(5, [3, 100], 7), torch.stack([numbers[0, 3:10], numbers[1, 100:107]])
    )
    assert not torch.equal(chances(6, [0], 2000), numbers[:1])


def flat_model(vocab: int, pattern: str = "d f a f @64") -> HybridLM:
    return build(parse(pattern, vocab_size=vocab, num_meta_tokens=2))


def test_a_session_draws_as_often_as_it_should() -> None:
    rows, tries, vocab = 128, 16, 12
    session = Session(flat_model(vocab, "a f @64"), batch_size=rows, max_len=9)
    sampling = Sampling(temperature=0.6, top_k=9, top_p=0.9)
    counts = torch.zeros(vocab)
    for seed in range(tries):
        session.prompt([[1, 2, 3]] * rows)
        expected = cut(session.logits[:1], sampling)[0].softmax(-1)
        tokens = session.generate(1, sampling, seed=seed).tokens
        counts += torch.bincount(torch.tensor(tokens)[:, 0], minlength=vocab)
    assert not counts[expected == 0].any()
    kept = expected > 0
    assert 3 < int(kept.sum()) < 9
    expected = expected[kept] * rows * tries
    freedom = len(expected) - 1
    square = float(((counts[kept] - expected) ** 2 / expected).sum())
    assert square < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("sampling", [SETTINGS[0], SETTINGS[4], SETTINGS[6]], ids=str)
def test_a_seed_says_it_all(sampling: Sampling) -> None:
    model = flat_model(50)
    state = torch.get_rng_state()
    texts = []
    for seed, tokens_per_sync in ((1, 1), (1, 3), (1, 8), (2, 8)):
        session = Session(model, batch_size=2, max_len=30, tokens_per_sync=tokens_per_sync)
        session.prompt([[1, 2], [1, 2]])
        texts.append(session.generate(20, sampling, seed=seed).tokens)
    assert texts[0] == texts[1] == texts[2] != texts[3]
    assert texts[0][0] != texts[0][1], "equal rows draw on their own"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("tokens_per_sync", [1, 4])
@pytest.mark.parametrize("candidates", [3, 20])
def test_rows_that_are_not_sure_wait(
    candidates: int, tokens_per_sync: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few candidates, so that some rows have to look at the whole vocabulary at some point."""
    model = flat_model(50)
    sampling, prompts = Sampling(temperature=0.03, top_p=0.9), [[1, 2], [3, 4], [5, 6]]
    texts, ways = [], []
    plain = drawing.draw

    def noted(how: drawing.Way, *rest: Tensor) -> drawing.Draw:
        ways.append(how)
        return plain(how, *rest)

    monkeypatch.setattr("archsearch.generate.session.draw", noted)
    for width in (CANDIDATES, candidates):
        monkeypatch.setattr(drawing, "CANDIDATES", width)
        session = Session(model, batch_size=3, max_len=30, tokens_per_sync=tokens_per_sync)
        session.prompt(prompts)
        texts.append(session.generate(20, sampling, seed=4, stop=[7]).tokens)
    assert texts[0] == texts[1]
    assert {"narrow", "whole"} <= set(ways)
