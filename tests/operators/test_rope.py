"""Rotary embeddings: every scaling type, against transformers where it has it."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from archsearch import operators
from archsearch.operators.common.rope import RopeConfig
from archsearch.operators.common.rope import inverse_frequencies
from archsearch.operators.common.rope import rotate
from archsearch.operators.common.rope import tables
from archsearch.operators.layer import Mixer


def inverse(rope: RopeConfig, head_dim: int, longest: int, capacity: int) -> torch.Tensor:
    return inverse_frequencies(rope, head_dim, longest, capacity=capacity)


def test_default_is_the_textbook_formula() -> None:
    expected = [10000.0 ** (-2 * i / 64) for i in range(32)]
    torch.testing.assert_close(inverse(RopeConfig(), 64, 4096, 10), torch.tensor(expected))


def test_llama3_equals_transformers() -> None:
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    expected, scale = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    rope = RopeConfig(type="llama3", theta=500000.0, factor=32.0, original_max_position=8192)
    assert scale == 1.0
    torch.testing.assert_close(inverse(rope, 64, 131072, 10), expected)


def test_ntk_grows_the_base_once() -> None:
    rope = RopeConfig(type="ntk", original_max_position=4096)
    base = 10000.0 * (2 * 29000 / 4096 - 1) ** (128 / 126)
    expected = [base ** (-2 * i / 128) for i in range(64)]
    for capacity in (1, 100_000):
        actual = inverse(rope, 128, 29000, capacity)
        torch.testing.assert_close(actual, torch.tensor(expected))


def test_dynamic_ntk_follows_the_capacity_beyond_the_original() -> None:
    rope = RopeConfig(type="dynamic_ntk", original_max_position=32)
    short = inverse(rope, 64, 32, 32)
    assert torch.equal(short, inverse(RopeConfig(), 64, 32, 32))
    base = 10000.0 * (2 * 128 / 32 - 1) ** (64 / 62)
    expected = torch.tensor([base ** (-2 * i / 64) for i in range(32)])
    torch.testing.assert_close(inverse(rope, 64, 32, 128), expected)


def dynamic_attention() -> Mixer:
    operator = operators.get("attention")
    rope = {"type": "dynamic_ntk", "original_max_position": 16}
    mixer = operator.build(operator.configure(64, rope=rope))
    mixer.init_weights(torch.Generator().manual_seed(0))
    return mixer


def test_dynamic_ntk_base_is_fixed_when_the_state_is_made() -> None:
    mixer = dynamic_attention()
    x = torch.randn(1, 40, 64, generator=torch.Generator().manual_seed(1))
    state = mixer.init_state(1, 40, torch.float32, "cpu")
    active = torch.ones(1, dtype=torch.bool)
    steps = [mixer.mix_step(x[:, t], state, torch.tensor([t]), active) for t in range(40)]
    torch.testing.assert_close(torch.stack(steps, 1), mixer(x), atol=1e-5, rtol=1e-4)


def test_dynamic_ntk_is_causal_in_a_state() -> None:
    mixer = dynamic_attention()
    x = torch.randn(1, 40, 64, generator=torch.Generator().manual_seed(1))
    long = mixer(x, state=mixer.init_state(1, 40, torch.float32, "cpu"))
    short = mixer(x[:, :20], state=mixer.init_state(1, 40, torch.float32, "cpu"))
    torch.testing.assert_close(long[:, :20], short, atol=1e-5, rtol=1e-4)


def test_rotation_keeps_norms_and_depends_on_distance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 64, generator=generator)
    table = inverse(RopeConfig(), 64, 4096, 10)

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        cos, sin = tables(table, torch.tensor([position]))
        return rotate(x, cos, sin)

    torch.testing.assert_close(turned(q, 77).norm(), q.norm())
    near = (turned(q, 9) * turned(k, 4)).sum()
    far = (turned(q, 105) * turned(k, 100)).sum()
    torch.testing.assert_close(near, far, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "ntk"}, "rope type 'ntk' needs original_max_position"),
        ({"type": "linear"}, "rope.type is wrong"),
        ({"type": "default", "scale": 2}, "has no field 'rope.scale'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        operators.get("attention").configure(64, rope=settings)
