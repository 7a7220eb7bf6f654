"""Mamba-2 against transformers' Mamba2 and Bamba mixers (their plain PyTorch path).

The parameters carry the official names: a state dict loads as it is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn
from transformers import BambaConfig
from transformers import DynamicCache
from transformers import Mamba2Config
from transformers.models.bamba.modeling_bamba import BambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from archsearch import operators
from archsearch.operators import mamba2
from archsearch.operators.layer import Mixer
from archsearch.operators.sequence import SequenceInfo

WIDTH = 128
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_groups": 2, "head_dim": 32, "d_state": 16, "chunk_size": 32},
    {"conv_bias": False, "norm_eps": 1e-3},
]


def mamba2_mixer(config: mamba2.Mamba2Config) -> tuple[nn.Module, Any]:
    theirs = Mamba2Config(
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        state_size=config.d_state,
        n_groups=config.num_groups,
        expand=config.expand,
        conv_kernel=config.d_conv,
        use_conv_bias=config.conv_bias,
        layer_norm_epsilon=config.norm_eps,
        num_hidden_layers=1,
    )
    return Mamba2Mixer(theirs, layer_idx=0), theirs


def bamba_mixer(config: mamba2.Mamba2Config) -> tuple[nn.Module, Any]:
    theirs = BambaConfig(
        hidden_size=config.hidden_size,
        mamba_n_heads=config.num_heads,
        mamba_d_head=config.head_dim,
        mamba_d_state=config.d_state,
        mamba_n_groups=config.num_groups,
        mamba_expand=config.expand,
        mamba_d_conv=config.d_conv,
        mamba_conv_bias=config.conv_bias,
        rms_norm_eps=config.norm_eps,
        num_hidden_layers=1,
    )
    return BambaMixer(theirs, layer_idx=0), theirs


def pair(make: Any, options: dict[str, Any]) -> tuple[Mixer, nn.Module, Any]:
    """Our layer with random weights, theirs with the same weights, and their config."""
    operator = operators.get("mamba2")
    config = operator.configure(WIDTH, **options)
    ours = operator.build(config)
    ours.init_weights(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    theirs, their_config = make(config)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.eval(), their_config


def tokens(batch: int, length: int) -> Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(2))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    error = (actual - expected).norm() / expected.norm()
    assert error < 1e-4, f"relative error {error:.2e}"


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "groups", "plain"])
@pytest.mark.parametrize("make", [mamba2_mixer, bamba_mixer], ids=["mamba2", "bamba"])
class TestParity:
    def test_forward_and_gradients(self, make: Any, options: dict[str, Any]) -> None:
        ours, theirs, _ = pair(make, options)
        x = tokens(2, 100).requires_grad_()
        weight = tokens(2, 100).flip(1)
        results = []
        for mixer in (ours, theirs):
            y = mixer(x)
            named = dict(mixer.named_parameters())
            gradients = torch.autograd.grad(
                (y * weight).sum(), [x, *(named[name] for name in sorted(named))]
            )
            results.append((y, *gradients))
        for actual, expected in zip(*results, strict=True):
            assert_close(actual, expected)

    @torch.no_grad()
    def test_cached_decode(self, make: Any, options: dict[str, Any]) -> None:
        ours, theirs, config = pair(make, options)
        x = tokens(2, 80)
        cache = DynamicCache(config=config)
        state = ours.init_state(2, 80, torch.float32, "cpu")
        assert_close(ours(x[:, :70], state=state), theirs(x[:, :70], cache_params=cache))
        active = torch.ones(2, dtype=torch.bool)
        for t in range(70, 80):
            y = ours.mix_step(x[:, t], state, torch.full((2,), t), active)
            assert_close(y, theirs(x[:, t : t + 1], cache_params=cache)[:, 0])

    @torch.no_grad()
    def test_left_padding(self, make: Any, options: dict[str, Any]) -> None:
        ours, theirs, _ = pair(make, options)
        x = tokens(2, 60)
        seq = SequenceInfo.padded([60, 23], 60, side="left")
        mask = seq.segments
        expected = theirs(x, attention_mask=mask)
        assert_close(ours(x, seq=seq), expected * mask[..., None])


def test_the_published_layer_has_these_shapes() -> None:
    """Nemotron-Flash-1B: hidden size 2048."""
    operator = operators.get("mamba2")
    with torch.device("meta"):
        layer = operator.build(operator.configure(2048))
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    assert shapes == {
        "in_proj.weight": (8512, 2048),
        "conv1d.weight": (4352, 1, 4),
        "conv1d.bias": (4352,),
        "A_log": (64,),
        "D": (64,),
        "dt_bias": (64,),
        "norm.weight": (4096,),
        "out_proj.weight": (2048, 4096),
    }


@pytest.mark.parametrize(
    ("hidden_size", "options", "message"),
    [
        (100, {}, "hidden_size times expand must be a multiple of head_dim 64; got 100 times 2"),
        (128, {"num_groups": 3}, "num_groups must divide the 4 heads .*; got 3"),
        (128, {"d_state": 0}, "d_state is wrong: .* greater than 0; got 0"),
    ],
)
def test_bad_settings_get_one_sentence(
    hidden_size: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        operators.get("mamba2").configure(hidden_size, **options)
