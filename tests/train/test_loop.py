"""Training learns, repeats bit by bit, records divergence, and touches no global randomness."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from archsearch import operators
from archsearch.model import HybridLM
from archsearch.model import build
from archsearch.space import parse
from archsearch.train import data as token_data
from archsearch.train.data import TokenData
from archsearch.train.loop import bits_per_byte
from archsearch.train.loop import evaluate
from archsearch.train.loop import perplexity
from archsearch.train.loop import thin
from archsearch.train.loop import train
from archsearch.train.recipe import Recipe
from archsearch.train.sources import Document
from archsearch.train.tokenizer import ByteTokenizer

RECIPE = Recipe(steps=12, batch_size=4, seq_len=32, lr=1e-2, warmup_steps=2, eval_tokens=256)


@pytest.fixture(scope="module")
def text() -> TokenData:
    documents = [Document(f"{i}", f"line {i % 7} of the text\n" * 20) for i in range(40)]
    return token_data.from_documents(documents, ByteTokenizer(), name="lines")


def model(seed: int = 0, notation: str = "(a f) @64", **fields: Any) -> HybridLM:
    return build(parse(notation, vocab_size=256, **fields), seed=seed)


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{**RECIPE.model_dump(), **changes})


def test_training_learns_and_reports(text: TokenData) -> None:
    result = train(model(), text, recipe(steps=30), seed=0)
    assert (result.status, result.error) == ("ok", None)
    assert result.curve[0][1] > 5
    assert result.held_out_loss is not None
    assert result.held_out_loss < 1.5
    assert result.bits_per_byte == pytest.approx(result.held_out_loss / math.log(2))
    assert result.perplexity == pytest.approx(math.exp(result.held_out_loss))
    assert result.tokens == 30 * 4 * 32
    assert [step for step, _ in result.curve] == list(range(1, 31))
    assert 0 < result.tokens / result.tokens_per_s <= result.seconds


def test_same_seed_gives_the_same_run_bit_by_bit(text: TokenData) -> None:
    one, same = model(), model()
    state = torch.random.get_rng_state()
    first = train(one, text, RECIPE, seed=3)
    second = train(same, text, RECIPE, seed=3)
    assert first.curve == second.curve
    assert first.held_out_loss == second.held_out_loss
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.curve != train(model(), text, RECIPE, seed=4).curve


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"grad_clip": None}])
def test_variants_train(text: TokenData, changes: dict[str, Any]) -> None:
    plain = train(model(), text, RECIPE, seed=0)
    varied = train(model(), text, recipe(**changes), seed=0)
    assert varied.status == "ok"
    assert varied.curve != plain.curve
    assert varied.curve[-1][1] == pytest.approx(plain.curve[-1][1], rel=0.2)


def test_weight_norm_leaves_unit_rows_and_columns(text: TokenData) -> None:
    trained = model()
    assert train(trained, text, recipe(weight_norm=True), seed=0).status == "ok"
    q_proj = trained.get_parameter("layers.0.mixer.q_proj.weight")
    o_proj = trained.get_parameter("layers.0.mixer.o_proj.weight")
    assert torch.allclose(q_proj.norm(dim=1), torch.ones(q_proj.shape[0]))
    assert torch.allclose(o_proj.norm(dim=0), torch.ones(o_proj.shape[1]))


def test_tokens_that_are_not_bytes_count_in_bits_per_byte(text: TokenData) -> None:
    halves = TokenData(**{**vars_of(text), "held_out_bytes": 2 * len(text.held_out)})
    assert bits_per_byte(2.0, halves) == pytest.approx(1.0 / math.log(2))
    assert perplexity(1e4) == math.inf


def vars_of(data: TokenData) -> dict[str, Any]:
    return {name: getattr(data, name) for name in TokenData.__dataclass_fields__}


def test_evaluation_is_the_mean_over_fixed_windows(text: TokenData) -> None:
    untrained = model().train()
    # a last batch that is smaller than the others must not count for more
    odd = recipe(batch_size=3)
    windows = text.held_out_windows(odd.seq_len, odd.eval_tokens)
    assert len(windows) % 3
    with torch.no_grad():
        expected = untrained.loss(windows).item()
    assert evaluate(untrained, text, odd) == pytest.approx(expected, rel=1e-5)
    assert untrained.training
    assert all(parameter.grad is None for parameter in untrained.parameters())


class Broken(HybridLM):
    """A model whose loss or gradient is ruined from a step on."""

    def loss(self, ids: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        loss = super().loss(ids)
        if self.calls < 4:
            return loss
        return loss * math.nan if self.spec.name == "loss" else (loss - loss).sqrt() + loss


@pytest.mark.parametrize(("kind", "what"), [("loss", "loss"), ("gradient", "gradient norm")])
def test_divergence_is_recorded(text: TokenData, kind: str, what: str) -> None:
    broken = Broken(parse("(a f) @64", vocab_size=256, name=kind))
    broken.init_weights(0)
    seen: list[int] = []
    result = train(broken, text, RECIPE, seed=0, on_step=lambda step, loss: seen.append(step))
    assert result.status == "diverged"
    assert result.error == f"the {what} is not finite at step 4"
    assert (result.held_out_loss, result.bits_per_byte, result.perplexity) == (None, None, None)
    assert len(result.curve) == 4
    assert seen == [1, 2, 3]


def test_a_loss_far_above_a_uniform_guess_is_divergence(text: TokenData) -> None:
    class Hopeless(HybridLM):
        def loss(self, ids: Tensor) -> Tensor:
            return super().loss(ids) + 9.0

    hopeless = Hopeless(parse("(a f) @64", vocab_size=256))
    hopeless.init_weights(0)
    result = train(hopeless, text, recipe(steps=100), seed=0)
    assert result.status == "diverged"
    assert "the loss stayed above 8.32 for 25 steps" in (result.error or "")
    assert len(result.curve) < 40


def test_large_learning_rate_never_raises(text: TokenData) -> None:
    result = train(model(), text, recipe(lr=1e4, steps=60), seed=0)
    assert result.status in ("ok", "diverged")


def test_interrupt_passes_through(text: TokenData) -> None:
    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model(), text, RECIPE, seed=0, on_step=stop)


def test_misfits_are_one_sentence(text: TokenData) -> None:
    with pytest.raises(ValueError, match="too small for sequences of 100000 tokens"):
        train(model(), text, recipe(seq_len=100_000), seed=0)
    small = build(parse("(a f) @64", vocab_size=100))
    with pytest.raises(ValueError, match=r"vocab_size must be at least 256 .* got 100"):
        train(small, text, RECIPE, seed=0)


@pytest.mark.parametrize("count", [0, 1, 199, 200, 201, 399, 400, 401, 12345])
def test_curves_are_thinned_to_means(count: int) -> None:
    curve = thin([float(i) for i in range(count)])
    assert len(curve) <= 200
    if count:
        assert curve[-1][0] == count
    if count <= 200:
        assert [loss for _, loss in curve] == [float(i) for i in range(count)]
    else:
        assert curve[0][1] == pytest.approx((curve[0][0] - 1) / 2)


@pytest.mark.parametrize("code", [operator.code for operator in operators.OPERATORS])
def test_every_operator_trains_under_autocast(text: TokenData, code: str) -> None:
    short = recipe(steps=1, warmup_steps=0, batch_size=1, seq_len=70, eval_tokens=70)
    plain = train(model(notation=f"({code}) @64"), text, short, seed=0)
    reduced = train(
        model(notation=f"({code}) @64"),
        text,
        short.model_copy(update={"dtype": "bfloat16"}),
        seed=0,
    )
    assert reduced.status == "ok"
    assert reduced.held_out_loss == pytest.approx(plain.held_out_loss, rel=1e-2)
