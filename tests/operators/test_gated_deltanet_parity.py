"""The layer of Gated DeltaNet against transformers' Qwen3-Next one, which nobody here wrote. The
recurrence itself: test_decaying_delta_rules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from archsearch import operators
from archsearch.operators.gated_deltanet.module import GatedDeltaNet

HIDDEN, KEY, VALUE = 64, 24, 16


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    error = (actual - expected).norm() / expected.norm()
    assert error < tolerance, f"relative error {error:.1e}"


def qwen(num_heads: int, num_v_heads: int) -> tuple[Qwen3NextGatedDeltaNet, Qwen3NextConfig]:
    config = Qwen3NextConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_key_heads=num_heads,
        linear_num_value_heads=num_v_heads,
        linear_key_head_dim=KEY,
        linear_value_head_dim=VALUE,
        rms_norm_eps=1e-6,
    )
    layer = Qwen3NextGatedDeltaNet(config, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            scale = 0.5 if parameter.dim() < 3 and parameter.shape[0] < HIDDEN else 0.2
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if name == "norm.weight":
                parameter.add_(1)
    return layer, config


def load(theirs: Qwen3NextGatedDeltaNet, num_heads: int, num_v_heads: int) -> GatedDeltaNet:
    """Our layer with their weights: each key head's rows hold its q, k, values and gates, and
    the write strengths and decays of its value heads."""
    config = operators.get("gd").configure(
        HIDDEN,
        num_heads=num_heads,
        num_v_heads=num_v_heads,
        head_dim=KEY,
        v_head_dim=VALUE,
        norm_eps=1e-6,
    )
    layer = operators.get("gd").build(config)
    assert isinstance(layer, GatedDeltaNet)
    groups = num_v_heads // num_heads
    weights = {name: parameter.detach() for name, parameter in theirs.named_parameters()}
    rows = weights["in_proj_qkvz.weight"].unflatten(0, (num_heads, -1))
    q, k, v, g = rows.split([KEY, KEY, groups * VALUE, groups * VALUE], dim=1)
    b, a = weights["in_proj_ba.weight"].unflatten(0, (num_heads, -1)).chunk(2, dim=1)
    keys = num_heads * KEY
    convs = weights["conv1d.weight"].split([keys, keys, num_v_heads * VALUE])
    projections = {"q": q, "k": k, "v": v, "g": g, "b": b, "a": a}
    ours = {f"{name}_proj.weight": x.flatten(0, 1) for name, x in projections.items()}
    ours |= {f"{name}_conv.weight": x for name, x in zip("qkv", convs, strict=True)}
    ours |= {name: weights[name] for name in ("A_log", "dt_bias")}
    ours |= {"o_norm.weight": weights["norm.weight"], "o_proj.weight": weights["out_proj.weight"]}
    layer.load_state_dict(ours)
    return layer


@pytest.mark.parametrize(("num_heads", "num_v_heads"), [(2, 2), (2, 6)])
@torch.no_grad()
def test_layer_and_cached_decode(num_heads: int, num_v_heads: int):
    theirs, config = qwen(num_heads, num_v_heads)
    ours = load(theirs, num_heads, num_v_heads)
    x = torch.randn(2, 100, HIDDEN, generator=torch.Generator().manual_seed(1))
    expected = theirs(x)
    assert_close(ours(x), expected)

    cache = DynamicCache(config=config)
    state = ours.init_state(2, 100, torch.float32, "cpu")
    assert_close(ours(x[:, :70], state=state), theirs(x[:, :70], cache_params=cache))
    active = torch.ones(2, dtype=torch.bool)
    for t in range(70, 100):
        step = ours.mix_step(x[:, t], state, torch.full((2,), t), active)
        assert_close(step, theirs(x[:, t : t + 1], cache_params=cache)[:, 0])
        assert_close(step, expected[:, t])
    assert_close(state["recurrent"], cache.layers[0].recurrent_states[0])


@torch.no_grad()
def test_decays_begin_as_published():
    layer = operators.get("gd").build(operators.get("gd").configure(4096, head_dim=4))
    assert isinstance(layer, GatedDeltaNet)
    layer.init_weights(torch.Generator().manual_seed(0))
    rates, steps = layer.A_log.exp(), F.softplus(layer.dt_bias)
    assert rates.min() > 0 and rates.max() < 16
    assert rates.mean() == pytest.approx(8, abs=0.5)
    assert steps.min() >= 0.99e-3 and steps.max() <= 1.01e-1
    # log-uniform: half of them below the geometric mean
    assert (steps < 1e-2).float().mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_heads": 2, "num_v_heads": 3}, "num_v_heads must be a multiple of num_heads 2"),
        ({"head_dim": 0}, "head_dim is wrong"),
        ({"state_dtype": "int8"}, "state_dtype is wrong"),
    ],
)
def test_bad_config(overrides: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        operators.get("gated_deltanet").configure(HIDDEN, **overrides)
