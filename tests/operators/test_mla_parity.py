"""Latent attention against transformers' DeepSeek-V2 and V3 layers.

The parameters carry the released names: a state dict loads as it is. DeepSeek pairs rotated
channels i and i+1 where ours are i and i+P/2; V3 takes both orders.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn
from transformers import DeepseekV2Config
from transformers import DeepseekV3Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2RotaryEmbedding
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding

from archsearch import operators
from archsearch.operators import backends
from archsearch.operators.layer import Mixer
from archsearch.operators.mla.config import MLAConfig

WIDTH = 128
OPTIONS: list[dict[str, Any]] = [
    {},
    {"q_lora_rank": 48},
    {"num_heads": 2, "head_dim": 24, "rope_head_dim": 8, "v_head_dim": 16, "kv_lora_rank": 40},
]


def theirs_of(config: MLAConfig, *, version: int, interleave: bool) -> tuple[nn.Module, nn.Module]:
    kinds: tuple[Any, Any, Any] = (
        (DeepseekV2Config, DeepseekV2Attention, DeepseekV2RotaryEmbedding)
        if version == 2
        else (DeepseekV3Config, DeepseekV3Attention, DeepseekV3RotaryEmbedding)
    )
    settings = kinds[0](
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        q_lora_rank=config.q_lora_rank,
        kv_lora_rank=config.kv_lora_rank,
        qk_nope_head_dim=config.head_dim,
        qk_rope_head_dim=config.rope_head_dim,
        v_head_dim=config.v_head_dim,
        num_hidden_layers=1,
        attn_implementation="eager",
        **({"rope_interleave": interleave} if version == 3 else {}),
    )
    return kinds[1](settings, layer_idx=0), kinds[2](settings)


def to_pairs(weights: dict[str, Tensor], config: MLAConfig) -> dict[str, Tensor]:
    """Our weights in the order in which rotated channels i and i+1 are a pair."""
    turned = config.rope_head_dim
    order = torch.arange(turned).view(2, -1).t().flatten()
    query = "q_proj.weight" if config.q_lora_rank is None else "q_b_proj.weight"
    key = "kv_a_proj_with_mqa.weight"
    q = weights[query].unflatten(0, (config.num_heads, -1)).clone()
    q[:, -turned:] = q[:, -turned:][:, order]
    k = weights[key].clone()
    k[-turned:] = k[-turned:][order]
    return {**weights, query: q.flatten(0, 1), key: k}


def make(options: dict[str, Any]) -> tuple[Mixer, MLAConfig]:
    operator = operators.get("mla")
    config = operator.configure(WIDTH, **options)
    assert isinstance(config, MLAConfig)
    ours = operator.build(config)
    ours.init_weights(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return ours, config


def tokens(length: int, seed: int = 2) -> Tensor:
    return torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    error = (actual - expected).norm() / expected.norm()
    assert error < 1e-5, f"relative error {error:.2e}"


def run(theirs: nn.Module, rotary: nn.Module, x: Tensor) -> Tensor:
    length = x.shape[1]
    position = torch.arange(length)[None]
    mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
    y: Tensor = theirs(
        x, position_embeddings=rotary(x, position), attention_mask=mask, past_key_values=None
    )[0]
    return y


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "low-rank queries", "widths"])
@pytest.mark.parametrize(
    ("version", "interleave"), [(2, True), (3, True), (3, False)], ids=["v2", "v3", "v3 halves"]
)
def test_forward_gradients_and_decode(
    options: dict[str, Any], version: int, interleave: bool
) -> None:
    ours, config = make(options)
    theirs, rotary = theirs_of(config, version=version, interleave=interleave)
    weights = ours.state_dict()
    theirs.load_state_dict(to_pairs(weights, config) if interleave else weights)
    x = tokens(70).requires_grad_()
    results = []
    for y in (ours(x), run(theirs, rotary, x)):
        results.append((y, *torch.autograd.grad((y * tokens(70, seed=3)).sum(), x)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)
    state = ours.init_state(2, 70, torch.float32, "cpu")
    active = torch.ones(2, dtype=torch.bool)
    for t in range(70):
        y = ours.mix_step(x[:, t], state, torch.full((2,), t), active)
        assert_close(y, results[1][0][:, t])


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "low-rank queries", "widths"])
@torch.no_grad()
def test_absorbed_decode_equals_the_expanded_formula(options: dict[str, Any]) -> None:
    ours, _ = make(options)
    x = tokens(1)[:, 0]
    results = []
    for backend in ("torch", "reference"):
        state = ours.init_state(2, 40, torch.float32, "cpu")
        ours(tokens(30), state=state)
        with backends.override(backend, "mla"), backends.recorded() as used:
            position = torch.tensor([30, 12])
            results.append(ours.mix_step(x, state, position, torch.ones(2, dtype=torch.bool)))
        assert used == {"mla": backend}
    assert_close(*results)


def test_cache_is_the_latent_and_one_rotated_key() -> None:
    """DeepSeek-V2-Lite's sizes: 576 channels a token where 16 heads of 192 + 128 had 5120."""
    config = operators.get("mla").configure(2048)
    assert isinstance(config, MLAConfig)
    assert (config.num_heads, config.qk_head_dim, config.v_head_dim) == (16, 192, 128)
    assert config.cache_width == 512 + 64
    for width in (64, 896, 1280, 1536, 1792, 2304, 2560, 3072):
        other = operators.get("mla").configure(width)
        assert isinstance(other, MLAConfig)
        assert other.kv_lora_rank == min(512, width // 4)


@pytest.mark.parametrize(
    ("backend", "phase", "message"),
    [
        ("torch", "prefill", "since it is the form of one query per row"),
        ("sdpa", "decode", "since decoding attends to the latents, by plain matrix products"),
        ("flash_attn", "prefill", "since it needs a CUDA GPU"),
    ],
)
def test_refusals_say_why(backend: str, phase: operators.Phase, message: str) -> None:
    ours, _ = make({})
    with pytest.raises(ValueError, match=message), backends.override(backend, "mla"):
        ours.backend(tokens(1), phase)


def test_bad_rotation_gets_one_sentence() -> None:
    with pytest.raises(ValueError, match="rope_head_dim must be even and at least 4; got 7"):
        operators.get("mla").configure(WIDTH, rope_head_dim=7)
