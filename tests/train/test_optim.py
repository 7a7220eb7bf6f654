"""What is decayed, and the shape of the learning-rate schedule."""

from __future__ import annotations

import pytest

from archsearch import operators
from archsearch.model import build
from archsearch.space import parse
from archsearch.train.optim import lr_at
from archsearch.train.optim import make_optimizer
from archsearch.train.optim import parameter_groups
from archsearch.train.recipe import Recipe


@pytest.mark.parametrize("tied", [True, False])
def test_only_linear_maps_of_the_layers_are_decayed(tied: bool) -> None:
    codes = " ".join(operator.code for operator in operators.OPERATORS)
    spec = parse(f"({codes}) @128", vocab_size=256, num_meta_tokens=4, tie_embeddings=tied)
    model = build(spec)
    decayed, rest = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    covered = [id(p) for p in [*decayed["params"], *rest["params"]]]
    assert sorted(covered) == sorted(names)
    for parameter in decayed["params"]:
        assert parameter.dim() == 2
        assert names[id(parameter)].startswith("layers.")
    kept = {names[id(parameter)] for parameter in rest["params"]}
    assert {"embed.weight", "meta_tokens", "head.norm.weight"} <= kept
    vectors = {name for name, parameter in model.named_parameters() if parameter.dim() == 1}
    assert vectors <= kept
    for name in names.values():
        if "conv" in name or "A_log" in name or "dt_bias" in name:
            assert name in kept


def test_weight_norm_turns_decay_off() -> None:
    model = build(parse("(a f) @64", vocab_size=256))
    groups = make_optimizer(model, Recipe(weight_norm=True)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.0, 0.0]
    groups = make_optimizer(model, Recipe(weight_decay=0.3)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]


def test_warm_up_then_cosine() -> None:
    recipe = Recipe(steps=100, lr=1.0, warmup_steps=10, min_lr_ratio=0.1)
    rates = [lr_at(step, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert lr_at(54, recipe) == pytest.approx(0.55, abs=0.02)
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (5, 5)])
def test_short_schedules_are_defined(steps: int, warmup: int) -> None:
    recipe = Recipe(steps=steps, warmup_steps=warmup, lr=1.0)
    assert all(0 < lr_at(step, recipe) <= 1.0 for step in range(steps))
