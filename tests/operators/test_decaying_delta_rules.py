"""The delta rules whose state decays, by head (Gated DeltaNet) or by key channel (KDA), against
the naive forms of flash-linear-attention, which nobody here wrote.

Run: pytest tests/operators/test_decaying_delta_rules.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from archsearch.operators.common.delta_rule import chunked_delta_rule
from archsearch.operators.common.delta_rule import delta_rule_step
from archsearch.operators.gated_deltanet.reference import gated_delta_rule
from archsearch.operators.kda.chunked import chunk_kda
from archsearch.operators.kda.chunked import kda_step
from archsearch.operators.kda.reference import recurrent_kda

HEADS, KEY, VALUE = 3, 24, 16
Form = Callable[..., tuple[Tensor, Tensor]]


class Rule(NamedTuple):
    """Ours, and upstream's folder and name in "naive_recurrent_<name>"."""

    folder: str
    name: str
    reference: Form
    chunked: Form
    step: Callable[..., Tensor]
    decays: tuple[int, ...]


RULES = [
    pytest.param(
        Rule(
            "gated_delta_rule",
            "gated_delta_rule",
            gated_delta_rule,
            chunked_delta_rule,
            delta_rule_step,
            (HEADS,),
        ),
        id="by_head",
    ),
    pytest.param(
        Rule("kda", "kda", recurrent_kda, chunk_kda, kda_step, (HEADS, KEY)), id="by_key"
    ),
]
pytestmark = pytest.mark.parametrize("rule", RULES)


@pytest.fixture
def naive(load_naive: Callable[..., Any], rule: Rule) -> Callable[..., tuple[Tensor, Tensor]]:
    """Theirs, in the order of our inputs; they scale the queries themselves."""
    module = load_naive(f"ops/{rule.folder}/naive.py")

    def run(
        kind: str, q: Tensor, k: Tensor, v: Tensor, state: Tensor, *gates: Tensor
    ) -> tuple[Tensor, Tensor]:
        beta, log_decay = gates
        form = getattr(module, f"naive_{kind}_{rule.name}")
        kept = {"initial_state": state, "output_final_state": True}
        return form(q, k, v, beta=beta, g=log_decay, **kept)

    return run


def draw(rule: Rule, length: int, decay: float) -> tuple[Tensor, ...]:
    """q, k, v, a state, beta and log_decay; decay rates of up to `decay` per token."""
    generator = torch.Generator().manual_seed(length)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    q, k = (F.normalize(normal(2, length, HEADS, KEY), dim=-1) for _ in range(2))
    v, beta = normal(2, length, HEADS, VALUE), normal(2, length, HEADS).sigmoid()
    log_decay = -decay * torch.rand(2, length, *rule.decays, generator=generator)
    return q, k, v, normal(2, HEADS, KEY, VALUE), beta, log_decay


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    error = (actual - expected).norm() / expected.norm()
    assert error < tolerance, f"relative error {error:.1e}"


@pytest.mark.parametrize("ours", ["reference", "chunked"])
@pytest.mark.parametrize(("length", "decay"), [(1, 1.0), (33, 0.01), (64, 1.0), (150, 40.0)])
def test_recurrence(rule: Rule, naive: Form, ours: str, length: int, decay: float) -> None:
    inputs = [x.requires_grad_() for x in draw(rule, length, decay)]
    q, *others = inputs
    expected = naive("recurrent", *inputs)
    actual = getattr(rule, ours)(q * KEY**-0.5, *others)
    weights = draw(rule, length, decay)[2:4]
    gradients = [
        torch.autograd.grad((o * weights[0]).sum() + (final * weights[1]).sum(), inputs)
        for o, final in (actual, expected)
    ]
    for left, right in zip(actual, expected, strict=True):
        assert_close(left, right)
    # a sum of strong decays loses digits of the weak ones
    for left, right in zip(*gradients, strict=True):
        assert_close(left, right, 1e-4)


@pytest.mark.parametrize("decay", [0.0, 1e4])
def test_extreme_decays_stay_finite(rule: Rule, naive: Form, decay: float) -> None:
    inputs = [x.requires_grad_() for x in draw(rule, 70, decay)]
    q, *others = inputs
    expected, _ = naive("recurrent", *inputs)
    o, final = rule.chunked(q * KEY**-0.5, *others)
    assert_close(o, expected)
    for gradient in torch.autograd.grad(o.sum() + final.sum(), inputs):
        assert torch.isfinite(gradient).all()


def test_chunked_form_and_step(rule: Rule, naive: Form) -> None:
    length = 128
    inputs = draw(rule, length, 0.5)
    expected, final = naive("chunk", *inputs)
    q, k, v, state, beta, log_decay = inputs
    q = q * KEY**-0.5
    results = rule.chunked(q, k, v, state, beta, log_decay)
    for left, right in zip(results, (expected, final), strict=True):
        assert_close(left, right)
    for t in range(length):
        o = rule.step(q[:, t], k[:, t], v[:, t], state, beta[:, t], log_decay[:, t])
        assert_close(o, expected[:, t])
    assert_close(state, final)
