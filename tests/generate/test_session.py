"""A session decodes what the uncached forward pass says, whatever was said before and in
whatever pieces it was read, for every operator.

Run: pytest tests/generate/test_session.py -k mamba2
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from archsearch import operators
from archsearch.generate import Sampling
from archsearch.generate import Session
from archsearch.model import HybridLM
from archsearch.model import build
from archsearch.space import ArchSpec
from archsearch.space import parse
from archsearch.space.spec import LayerSpec

VOCAB = 61
# windows and chunks that the texts of these tests outgrow
VARIANTS: dict[str, dict[str, Any]] = {
    "sliding_window": {"window": 8},
    "mamba2": {"chunk_size": 16},
    "attention": {"qk_norm": True, "num_kv_heads": 1},
}
MODELS = {
    **{op.name: [op.name, "ffn"] for op in operators.OPERATORS if op.kind == "mixer"},
    "flash": ["d", "f", "m2", "f", "a", "f", "m2", "f"],
    "mixed": ["m1", "w", "gd", "gla", "ret", "r7", "f"],
    "late": ["mla", "m3", "f"],
}


def spec_of(name: str, meta: int = 3) -> ArchSpec:
    layers = [operators.get(code).name for code in MODELS[name]]
    return ArchSpec.create(
        hidden_size=64,
        vocab_size=VOCAB,
        num_meta_tokens=meta,
        head_norm=True,
        tie_embeddings=False,
        layers=tuple(LayerSpec(operator=op, config=VARIANTS.get(op, {})) for op in layers),
    )


def model_of(name: str, meta: int = 3) -> HybridLM:
    return build(spec_of(name, meta), seed=3)


def session_of(model: HybridLM, rows: int = 1, max_len: int = 64, **options: Any) -> Session:
    return Session(model, batch_size=rows, max_len=max_len, **options)


def text(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (length,), generator=generator).tolist()


def uncached(model: HybridLM, tokens: Sequence[int], count: int) -> list[int]:
    """`count` greedy tokens by as many whole forward passes."""
    known = list(tokens)
    with torch.inference_mode():
        for _ in range(count):
            known.append(int(model(torch.tensor([known]))[0, -1].argmax()))
    return known[len(tokens) :]


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    error = (actual - expected).norm() / expected.norm()
    assert error < 1e-4, f"relative error {error:.2e}"


every_model = pytest.mark.parametrize("name", list(MODELS))


@every_model
def test_ragged_rows_decode_like_forward_passes_of_each(name: str) -> None:
    model = model_of(name)
    rows = [text(11), text(1, seed=1), text(6, seed=2)]
    session = session_of(model, 3)
    session.prompt(rows)
    result = session.generate(9)
    for row, tokens in zip(rows, result.tokens, strict=True):
        assert tokens == uncached(model, row, 9)


@every_model
def test_a_second_prompt_is_a_fresh_one(name: str) -> None:
    model = model_of(name)
    session = session_of(model, 2)
    session.prompt([text(9), text(4, seed=1)])
    session.generate(5)
    session.prompt([text(3, seed=2), text(7, seed=3)])
    fresh = session_of(model, 2)
    fresh.prompt([text(3, seed=2), text(7, seed=3)])
    assert torch.equal(session.logits, fresh.logits)
    assert session.generate(6).tokens == fresh.generate(6).tokens


@every_model
@pytest.mark.parametrize("meta", [0, 3])
def test_extending_equals_reading_the_whole(name: str, meta: int) -> None:
    model = model_of(name, meta)
    whole = [text(10), text(3, seed=1)]
    session = session_of(model, 2, chunk=4)
    session.prompt(whole)
    for turn in (2, 3):
        # the rows stop after different numbers of tokens
        free = session.generate(1).tokens
        answer = session.generate(5, stop=[uncached(model, whole[0] + free[0], 2)[-1]]).tokens
        more = [text(9, seed=10 * turn), text(2, seed=10 * turn + 1)]
        whole = [a + b + c + d for a, b, c, d in zip(whole, free, answer, more, strict=True)]
        session.extend(more)
        assert session.lengths == [len(row) for row in whole]
        for row, tokens in enumerate(whole):
            with torch.inference_mode():
                assert_close(session.logits[row], model(torch.tensor([tokens]))[0, -1])


@every_model
@pytest.mark.parametrize("lengths", [[23, 23, 23], [23, 4, 13], [1, 9, 8]])
def test_chunks_change_nothing(name: str, lengths: list[int]) -> None:
    """Rows end in different chunks, at their borders and within."""
    model = model_of(name)
    rows = [text(length, seed=seed) for seed, length in enumerate(lengths)]
    session = session_of(model, 3, chunk=4)
    session.prompt(rows)
    for row, tokens in enumerate(rows):
        with torch.inference_mode():
            assert_close(session.logits[row], model(torch.tensor([tokens]))[0, -1])
    whole = session_of(model, 3)
    whole.prompt(rows)
    assert session.generate(8).tokens == whole.generate(8).tokens


@every_model
def test_steps_of_no_row_leave_no_trace(name: str) -> None:
    """Which is how a graph is recorded, amid a text or not."""
    session = session_of(model_of(name), 2)
    session.prompt([text(9), text(4, seed=1)])
    session.generate(3)
    session._active.zero_()
    session._first.copy_(session.state.position)
    state = session.state
    tensors = [t for layer in state.layers for t in layer.tensors.values()]
    tensors += [state.position, session.logits, session._health]
    before = [t.clone() for t in tensors]
    with torch.inference_mode():
        for how in ("greedy", "open"):
            session._step(how)
    assert all(torch.equal(t, old) for t, old in zip(tensors, before, strict=True))


def test_rows_that_stopped_change_nothing() -> None:
    model = model_of("mixed")
    rows = [text(5), text(8, seed=1)]
    free = session_of(model, 2)
    free.prompt(rows)
    answers = free.generate(12).tokens
    stop = answers[0][2]
    session = session_of(model, 2, tokens_per_sync=5)
    session.prompt(rows)
    stopped = session.generate(12, stop=[stop]).tokens
    for row, full in zip(stopped, answers, strict=True):
        assert row == (full[: full.index(stop) + 1] if stop in full else full)
    assert len(stopped[0]) == 3
    # what was not said yet is said now, from each row's own place
    again = session.generate(6).tokens
    for row, old in enumerate(stopped):
        assert old + again[row] == uncached(model, rows[row], len(old) + 6)


@pytest.mark.parametrize("tokens_per_sync", [1, 3, 8])
def test_blocks_of_a_stream(tokens_per_sync: int) -> None:
    model = model_of("flash")
    session = session_of(model, 2, tokens_per_sync=tokens_per_sync)
    session.prompt([text(5), text(2, seed=1)])
    blocks = list(session.stream(10))
    assert max(len(row) for block in blocks for row in block) == min(tokens_per_sync, 10)
    assert len(blocks) == -(-10 // tokens_per_sync)
    for row, tokens in enumerate([text(5), text(2, seed=1)]):
        assert [t for block in blocks for t in block[row]] == uncached(model, tokens, 10)


def test_who_stops_reading_goes_on_from_there() -> None:
    model = model_of("mixed")
    session = session_of(model, tokens_per_sync=3)
    session.prompt([text(5)])
    (heard,) = next(session.stream(12))
    session.extend([[7, 8]])
    answer = session.generate(4).tokens[0]
    assert answer == uncached(model, [*text(5), *heard, 7, 8], 4)


def test_prompts_may_be_a_tensor_with_padding() -> None:
    model = model_of("flash")
    rows = [text(5), text(2, seed=1)]
    padded = torch.full((2, 5), -100)
    for row, tokens in enumerate(rows):
        padded[row, : len(tokens)] = torch.tensor(tokens)
    lists, tensor = session_of(model, 2), session_of(model, 2)
    lists.prompt(rows)
    tensor.prompt(padded, lengths=[5, 2])
    assert torch.equal(lists.logits, tensor.logits)


BAD: dict[str, tuple[Any, str]] = {
    "too long": ([[1] * 31, [2]], "holds 30 tokens per row; 0 are used and 31 more"),
    "no row": ([], "at least one token"),
    "empty": ([[1], []], "at least one token"),
    "rows": ([[1], [2], [3]], "has 2 rows; got 3 prompts"),
    "unknown": ([[1], [VOCAB]], r"tokens must lie in 0..60; got 1..61"),
    "negative": ([[1], [-1]], r"tokens must lie in 0..60; got -1..1"),
    "flat": (torch.tensor([1, 2]), "must be integers"),
    "real": (torch.ones(2, 3), "must be integers"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_prompts_change_nothing(case: str) -> None:
    bad, message = BAD[case]
    model = model_of("mixed")
    session = session_of(model, 2, max_len=30)
    rows = [text(5), text(2, seed=1)]
    session.prompt(rows)
    with pytest.raises(ValueError, match=message):
        session.prompt(bad)
    with pytest.raises(ValueError, match=message.replace("0 are used", "5 are used")):
        session.extend(bad)
    session.extend([[3], [4, 5]])
    for row, more in zip(rows, ([3], [4, 5]), strict=True):
        row += more
    assert session.generate(4).tokens == [uncached(model, row, 4) for row in rows]


def test_bounds() -> None:
    model = model_of("flash")
    session = session_of(model, 2, max_len=12)
    with pytest.raises(ValueError, match="begin with a prompt"):
        session.extend([[1], [2]])
    with pytest.raises(ValueError, match="begin with a prompt"):
        session.generate(1)
    session.prompt([text(8), text(2)])
    assert session.room == 4
    with pytest.raises(ValueError, match="8 are used and 5 more do not fit"):
        session.stream(5)
    with pytest.raises(ValueError, match="8 are used and 5 more do not fit"):
        session.extend([[1] * 5, [1]])
    with pytest.raises(ValueError, match="must be positive"):
        session.generate(0)
    with pytest.raises(ValueError, match=r"stop tokens must lie in 0\.\.60"):
        session.generate(1, stop=[VOCAB])
    assert session.generate(4).tokens[0] == uncached(model, text(8), 4)
    # the shorter row has room, the longer one has none
    with pytest.raises(ValueError, match="12 are used and 1 more do not fit"):
        session.generate(1)


@pytest.mark.parametrize("where", ["prefill", "decode"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_are_not_finite(where: str, value: float, temperature: float) -> None:
    model = model_of("mixed")
    session = session_of(model, 2)
    sampling = Sampling(temperature=temperature, top_p=0.9)
    if where == "decode":
        session.prompt([text(5), text(2)])
    kept = model.head.norm.weight.detach().clone()
    with torch.no_grad():
        model.head.norm.weight.fill_(value)
    with pytest.raises(ValueError, match="NaN or infinite"):
        if where == "prefill":
            session.prompt([text(5), text(2)])
        else:
            session.generate(5, sampling)
    with pytest.raises(ValueError, match="begin with a prompt"):
        session.generate(1)
    with torch.no_grad():
        model.head.norm.weight.copy_(kept)
    session.prompt([text(5), text(2)])
    assert session.generate(5).tokens[0] == uncached(model, text(5), 5)


def test_nan_in_the_state_is_forgotten() -> None:
    model = model_of("mixed")
    session = session_of(model)
    with torch.no_grad():
        kept = model.embed.weight[5].clone()
        model.embed.weight[5] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        session.prompt([[1, 5, 2]])
    with torch.no_grad():
        model.embed.weight[5] = kept
    session.prompt([text(6)])
    assert session.generate(5).tokens[0] == uncached(model, text(6), 5)


def test_bad_settings() -> None:
    model = model_of("flash")
    with pytest.raises(ValueError, match="batch and max_len must be positive"):
        session_of(model, 0)
    with pytest.raises(ValueError, match="tokens_per_sync and chunk must be positive"):
        session_of(model, tokens_per_sync=0)
    with pytest.raises(ValueError, match="needs a CUDA device"):
        session_of(model, graph=True)


def test_state_stays_where_it_is() -> None:
    """What a graph has recorded are addresses."""
    session = session_of(build(parse("d f m2 a f @64", vocab_size=VOCAB)), 2)
    tensors = [t for layer in session.state.layers for t in layer.tensors.values()]
    before = [t.data_ptr() for t in (*tensors, session.logits, session.state.position)]
    session.prompt([text(5), text(2)])
    session.generate(3)
    session.extend([text(5), text(2)])
    session.generate(3, Sampling())
    assert before == [t.data_ptr() for t in (*tensors, session.logits, session.state.position)]
