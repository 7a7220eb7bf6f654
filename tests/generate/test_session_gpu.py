"""On a GPU: a session that replays a graph says what an eager one says, for every operator;
`test_exactness.py` holds both against the forward pass.

Run on a machine with a GPU: make gpu
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from archsearch import operators
from archsearch.generate import GREEDY
from archsearch.generate import Sampling
from archsearch.generate import Session
from archsearch.generate import draw as drawing
from archsearch.model import HybridLM
from archsearch.model import build
from archsearch.space import parse

pytestmark = pytest.mark.gpu

# more tokens than there are candidates
VOCAB = 3000
FLASH = "d f m2 f a f m2 f"
MIXERS = [op.code for op in operators.OPERATORS if op.kind == "mixer"]
PATTERNS = [f"{code} f" for code in MIXERS] + [FLASH, "m1 w gd gla ret r7 f"]
# one for each way to draw; flat logits make a narrow draw wait for a whole one
SAMPLINGS = {
    "greedy": GREEDY,
    "open": Sampling(temperature=0.8),
    "top-k": Sampling(top_k=40, top_p=0.9),
    "top-p": Sampling(temperature=0.02, top_p=0.7),
    "flat": Sampling(temperature=2.0, top_p=0.99),
    "whole": Sampling(top_k=2000),
}


def model_of(pattern: str, dtype: torch.dtype = torch.float32) -> HybridLM:
    spec = parse(
        f"{pattern} @128",
        vocab_size=VOCAB,
        num_meta_tokens=3,
        head_norm=True,
        tie_embeddings=False,
    )
    return build(spec, device="cuda", dtype=dtype)


def text(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (length,), generator=generator).tolist()


def pair(model: HybridLM, rows: int, **options: Any) -> list[Session]:
    """A session with a graph and one without."""
    return [
        Session(model, batch_size=rows, max_len=120, graph=graph, **options)
        for graph in (True, False)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_graph_equals_eager_through_a_conversation(pattern: str, dtype: torch.dtype) -> None:
    said = []
    for session in pair(model_of(pattern, dtype), 2, chunk=16):
        answers = []
        for _ in range(2):
            session.prompt([text(20), text(3, seed=1)])
            answers.append(session.generate(11).tokens)
            session.extend([text(2, seed=2), text(18, seed=3)])
            answers.append(session.generate(6).tokens)
        assert answers[:2] == answers[2:], "a second prompt is a fresh one"
        said.append(answers)
    assert said[0] == said[1]


@pytest.mark.parametrize("name", list(SAMPLINGS))
def test_sampling_in_the_graph(name: str) -> None:
    model, sampling = model_of(FLASH), SAMPLINGS[name]
    said = []
    for session in pair(model, 3):
        session.prompt([text(5), text(5), text(9, seed=1)])
        said.append(session.generate(30, sampling, seed=7).tokens)
    assert said[0] == said[1]
    session.prompt([text(5), text(5), text(9, seed=1)])
    assert (session.generate(30, sampling, seed=8).tokens == said[0]) == (sampling == GREEDY)


def test_draws_equal_those_of_the_cpu() -> None:
    logits = torch.randn(64, VOCAB, generator=torch.Generator().manual_seed(0)) * 4
    chance = drawing.chances(3, [0] * 64, 1)
    for sampling in SAMPLINGS.values():
        tokens = []
        for device in ("cpu", "cuda"):
            knobs = drawing.Knobs.new(64, torch.device(device))
            knobs.set(sampling)
            how = drawing.way(sampling, VOCAB)
            drawn = drawing.draw(how, logits.to(device), knobs, chance.to(device))
            sure = torch.ones(64, dtype=torch.bool) if drawn.sure is None else drawn.sure.cpu()
            tokens.append(drawn.token.cpu().where(sure, -1))
        # exponentials differ in their last bit between devices
        assert (tokens[0] == tokens[1]).float().mean() > 0.98


def test_recording_leaves_no_trace() -> None:
    model = model_of("m1 w gd gla ret r7 f")
    said = []
    for early in (True, False):
        session = Session(model, batch_size=2, max_len=60)
        if early:
            for sampling in SAMPLINGS.values():
                session.prepare(sampling)
        session.prompt([text(9), text(4)])
        # the late one records while the rows hold text
        answers = [session.generate(5, sampling).tokens for sampling in SAMPLINGS.values()]
        said.append(answers)
    assert said[0] == said[1]


def test_stopped_rows_and_small_blocks() -> None:
    model = model_of(FLASH)
    (session, _) = pair(model, 2, tokens_per_sync=1)
    session.prompt([text(5), text(8)])
    free = session.generate(12).tokens
    for other in pair(model, 2, tokens_per_sync=5):
        other.prompt([text(5), text(8)])
        rows = other.generate(12, stop=[free[0][2]]).tokens
        for row, full in zip(rows, free, strict=True):
            stop = free[0][2]
            assert row == (full[: full.index(stop) + 1] if stop in full else full)


def test_sessions_take_turns() -> None:
    model = model_of(FLASH)
    sessions = [Session(model, batch_size=rows, max_len=60) for rows in (1, 3)]
    for session in sessions:
        session.prompt([text(5)] * session.batch_size)
    turns = [[session.generate(4).tokens[0] for session in sessions] for _ in range(3)]
    for first, second in turns:
        assert first == second


def test_changed_weights_are_seen() -> None:
    model = model_of(FLASH)
    session = Session(model, batch_size=1, max_len=60)
    session.prompt([text(5)])
    before = session.generate(8).tokens
    with torch.no_grad():
        model.head.proj.weight.copy_(model.head.proj.weight.flip(0) * 3)
    session.prompt([text(5)])
    (eager,) = pair(model, 1)[1:]
    eager.prompt([text(5)])
    after = eager.generate(8).tokens
    assert session.generate(8).tokens == after != before


def test_nan_is_one_error_and_the_session_lives() -> None:
    model = model_of(FLASH)
    session = Session(model, batch_size=1, max_len=60)
    session.prompt([text(5)])
    before = session.generate(8).tokens
    session.prompt([text(5)])
    kept = model.head.norm.weight.detach().clone()
    with torch.no_grad():
        model.head.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        session.generate(8)
    with torch.no_grad():
        model.head.norm.weight.copy_(kept)
    session.prompt([text(5)])
    assert session.generate(8).tokens == before
