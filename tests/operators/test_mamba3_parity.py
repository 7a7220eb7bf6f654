"""Mamba-3 against a closed form in 64 bits: every pair of tokens at once, the turning state as
complex numbers, no recurrence and no running angle.

Upstream has no version without a GPU: its kernels are held against the reference on one, in
`test_kernels_gpu.py`.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from archsearch import operators
from archsearch.operators.mamba3 import chunked
from archsearch.operators.mamba3 import reference
from archsearch.operators.mamba3.config import Mamba3Config
from archsearch.operators.mamba3.module import Mamba3
from archsearch.operators.mamba3.reference import Tokens

WIDTH = 64
OPTIONS: list[dict[str, Any]] = [
    {"d_state": 32, "head_dim": 32},
    {"d_state": 22, "head_dim": 32, "num_groups": 2, "rope_fraction": 1.0, "chunk_size": 16},
]


def make(options: dict[str, Any]) -> Mamba3:
    operator = operators.get("mamba3")
    mixer = operator.build(operator.configure(WIDTH, **options))
    assert isinstance(mixer, Mamba3)
    mixer.init_weights(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return mixer


def made_of(mixer: Mamba3, length: int) -> Tokens:
    x = torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(2))
    _, tokens = mixer.project(x, None)
    return tokens


def as_complex(maps: Tensor, bias: Tensor, angle: Tensor) -> Tensor:
    """maps[B,T,G,K] as K/2 complex channels per head, turned by angle[B,T,N,S]."""
    maps = maps.double().repeat_interleave(len(bias) // maps.shape[-2], dim=-2) + bias.double()
    pairs = torch.view_as_complex(maps.unflatten(-1, (-1, 2)).contiguous())
    still = pairs.shape[-1] - angle.shape[-1]
    return pairs * torch.exp(1j * torch.nn.functional.pad(angle, (0, still)))


def closed_form(tokens: Tokens) -> Tensor:
    """y[B,T,N,P]: a sum over all earlier tokens, each weighted by what remains of it."""
    dt, decay = tokens.dt.double(), tokens.log_decay.double().cumsum(1)
    rate = math.pi * torch.tanh(tokens.angle.double())
    angle = (rate[:, :, None] * dt[..., None]).cumsum(1)
    q = as_complex(tokens.c, tokens.c_bias, angle)
    k = as_complex(tokens.b, tokens.b_bias, angle)
    weight = torch.sigmoid(tokens.trap.double())
    # token s enters with its own step, and once more with the step of token s + 1
    late = torch.nn.functional.pad((dt * (1 - weight))[:, 1:], (0, 0, 0, 1))
    length = dt.shape[1]
    remains = (decay[:, :, None] - decay[:, None]).exp()
    past = torch.ones(length, length).tril(-1)[None, :, :, None]
    gain = (dt * weight)[:, None] * (past + torch.eye(length)[None, :, :, None])
    gain = (gain + late[:, None] * past) * remains
    scores = torch.einsum("btnk,bsnk->btsn", q.conj(), k).real
    v = tokens.v.double()
    y = torch.einsum("btsn,bsnp->btnp", scores * gain, v) + tokens.skip.double()[:, None] * v
    assert tokens.gate is not None
    return y * torch.nn.functional.silu(tokens.gate.double())


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "all channels turn"])
@pytest.mark.parametrize("length", [1, 2, 63, 130])
def test_recurrence_and_chunks_equal_the_closed_form(options: dict[str, Any], length: int) -> None:
    tokens = made_of(make(options), length)
    inputs = [x for x in (tokens.c, tokens.b, tokens.v, tokens.dt, tokens.trap) if x is not None]
    weight = torch.randn(tokens.v.shape, generator=torch.Generator().manual_seed(3))
    expected = closed_form(tokens)
    exact = torch.autograd.grad((expected * weight).sum(), inputs, retain_graph=True)
    for scan in (reference.scan, chunked.scan):
        y, _, _ = scan(tokens, None, chunk=16)
        assert relative(y, expected) < 1e-5
        gradients = torch.autograd.grad((y * weight).sum(), inputs, retain_graph=True)
        for actual, wanted in zip(gradients, exact, strict=True):
            assert relative(actual, wanted.double()) < 1e-5


@torch.no_grad()
def test_angles_stay_exact_over_a_long_text() -> None:
    """In fp32 the sum of 20,000 steps would have lost three digits of the angle."""
    tokens = made_of(make(OPTIONS[0]), 1)
    heads = tokens.v.shape[-2]
    long = tokens._replace(
        angle=torch.full((1, 20000, tokens.angle.shape[-1]), 0.7),
        dt=torch.full((1, 20000, heads), 0.1),
    )
    last = chunked.angles(long, torch.zeros(1, heads, tokens.angle.shape[-1]))[0, -1, 0, 0]
    step = float(torch.tensor(0.7).tanh() * math.pi * torch.tensor(0.1))
    assert abs(float(last) - 20000 * step % (2 * math.pi)) < 1e-3


def test_the_layer_has_the_official_shapes() -> None:
    """mamba-ssm's Mamba3(d_model=2048) without MIMO."""
    operator = operators.get("mamba3")
    with torch.device("meta"):
        layer = operator.build(operator.configure(2048))
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    assert shapes == {
        "dt_bias": (64,),
        "B_bias": (64, 1, 128),
        "C_bias": (64, 1, 128),
        "D": (64,),
        "in_proj.weight": (2 * 4096 + 2 * 128 + 3 * 64 + 32, 2048),
        "B_norm.weight": (128,),
        "C_norm.weight": (128,),
        "out_proj.weight": (2048, 4096),
    }


def test_defaults_fit_every_width_of_the_tables() -> None:
    for width in (64, 896, 1280, 1536, 1792, 2304, 2560, 3072):
        config = operators.get("mamba3").configure(width)
        assert isinstance(config, Mamba3Config)
        assert config.num_heads * config.head_dim == 2 * width


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_groups": 3}, "num_groups must divide the 2 heads .*; got 3"),
        ({"rope_fraction": 0.25}, "rope_fraction must be 0.5 or 1.0; got 0.25"),
        ({"d_state": 3}, "d_state times rope_fraction must be at least 2; got 3 times 0.5"),
        ({"head_dim": 48}, "must be a multiple of head_dim 48; got 64 times 2"),
    ],
)
def test_bad_settings_get_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        operators.get("mamba3").configure(WIDTH, **options)
