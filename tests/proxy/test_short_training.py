"""A candidate is scored the same way every time, and its failures are recorded."""

from __future__ import annotations

from typing import Any

import pytest

from archsearch.proxy import short_training
from archsearch.proxy.short_training import score
from archsearch.space import parse
from archsearch.train import data as token_data
from archsearch.train.data import TokenData
from archsearch.train.recipe import Recipe
from archsearch.train.sources import Document
from archsearch.train.tokenizer import ByteTokenizer

RECIPE = Recipe(steps=5, batch_size=2, seq_len=32, warmup_steps=1, eval_tokens=64)
SPEC = parse("(a f)x2 @64", vocab_size=256)


@pytest.fixture(scope="module")
def text() -> TokenData:
    documents = [Document(f"{i}", f"line {i % 7} of the text\n" * 20) for i in range(40)]
    return token_data.from_documents(documents, ByteTokenizer(), name="lines")


def test_score_repeats_and_depends_on_the_seed(text: TokenData) -> None:
    first = score(SPEC, text, RECIPE, seed=1)
    second = score(SPEC, text, RECIPE, seed=1)
    assert first.status == "ok"
    assert first.loss is not None
    assert (first.loss, first.curve) == (second.loss, second.curve)
    assert first.loss != score(SPEC, text, RECIPE, seed=2).loss
    assert len(first.curve) == 5


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "MemoryError"),
        (RuntimeError("shape mismatch\nstack"), "RuntimeError: shape mismatch"),
    ],
)
def test_failures_are_recorded(
    text: TokenData, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(short_training, "train", fail)
    result = score(SPEC, text, RECIPE, seed=0)
    assert (result.status, result.error, result.loss) == ("failed", line, None)


def test_divergence_is_recorded(text: TokenData) -> None:
    # the first update alone is beyond what float32 can square
    wild = RECIPE.model_copy(update={"lr": 1e30, "warmup_steps": 0})
    result = score(SPEC, text, wild, seed=0)
    assert result.status == "diverged"
    assert result.error is not None
    assert "not finite" in result.error
    assert result.loss is None


def test_interrupt_and_misfits_pass_through(text: TokenData) -> None:
    def stop(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(SPEC, text, RECIPE, seed=0, on_step=stop)
    with pytest.raises(ValueError, match="vocab_size"):
        score(parse("(a f) @64", vocab_size=10), text, RECIPE, seed=0)
