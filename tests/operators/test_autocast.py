"""Under autocast to bfloat16 the weights stay in fp32 and so does a layer's input: kernels that
compute in 16 bits must nevertheless be asked for, and given, 16 bits.

Run: pytest tests/operators/test_autocast.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from archsearch import operators
from archsearch.operators import layer
from archsearch.operators.attention.module import Attention
from archsearch.operators.backends import Request
from archsearch.operators.backends import choose
from archsearch.operators.layer import Mixer
from archsearch.operators.mamba3.module import Mamba3
from archsearch.operators.mla.module import MultiHeadLatentAttention

WIDTH, BF16 = 64, torch.bfloat16
OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {"qk_norm": True},
    "sliding_window": {"qk_norm": True, "window": 16},
    "mamba3": {"out_norm": True},
    "mla": {"q_lora_rank": 16},
}
# a feed-forward network has no kernels, and Mamba's take fp32
EXCEPT = ("ffn", "mamba")
NAMES = [operator.name for operator in operators.OPERATORS if operator.name not in EXCEPT]


@pytest.fixture(autouse=True)
def reduced() -> Iterator[None]:
    with torch.autocast("cpu", BF16):
        yield


def make(name: str) -> Mixer:
    operator = operators.get(name)
    mixer = operator.build(operator.configure(WIDTH, **OPTIONS.get(name, {})))
    mixer.init_weights(torch.Generator().manual_seed(0))
    return mixer


def tokens(length: int) -> Tensor:
    return torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_backends_are_asked_for_16_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def listen(offered: tuple[str, ...], request: Request, refuses: Any) -> str:
        asked.append(request.dtype)
        return choose(offered, request, refuses)

    monkeypatch.setattr(layer, "choose", listen)
    assert make(name)(tokens(20)).dtype == BF16
    assert set(asked) == {BF16}


@pytest.mark.parametrize("name", ["attention", "sliding_window"])
def test_normalised_queries_and_keys_have_the_values_dtype(name: str) -> None:
    mixer = make(name)
    assert isinstance(mixer, Attention)
    assert [part.dtype for part in mixer.project(tokens(3))] == [BF16] * 3


def test_latents_have_the_queries_dtype() -> None:
    mixer = make("mla")
    assert isinstance(mixer, MultiHeadLatentAttention)
    cos, sin = mixer.rotary(torch.arange(3), 3)
    assert [part.dtype for part in mixer.project(tokens(3), cos, sin)] == [BF16] * 2


def test_normalised_maps_have_the_values_dtype() -> None:
    mixer = make("mamba3")
    assert isinstance(mixer, Mamba3)
    _, parts = mixer.project(tokens(3), None)
    assert (parts.c.dtype, parts.b.dtype, parts.v.dtype) == (BF16,) * 3


@pytest.mark.parametrize("name", ["attention", "sliding_window", "mla"])
@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_a_step_writes_into_a_cache_of_either_type(name: str, dtype: torch.dtype) -> None:
    mixer, x = make(name), tokens(20)
    with torch.no_grad():
        state = mixer.init_state(2, 20, dtype, "cpu")
        mixer(x[:, :19], state=state)
        y = mixer.mix_step(x[:, 19], state, torch.full((2,), 19), torch.ones(2, dtype=torch.bool))
        expected = mixer(x)[:, 19]
    assert float((y - expected).norm() / expected.norm()) < 2e-2
