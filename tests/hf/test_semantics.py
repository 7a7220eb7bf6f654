"""The whole model against the published one, written token by token from its description."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from archsearch.hf import NemotronFlashForCausalLM

Weights = dict[str, Tensor]


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Causal depthwise convolution of x[T,C], then SiLU."""
    padded = F.pad(x.T[None], (weight.shape[-1] - 1, 0))
    return F.silu(F.conv1d(padded, weight, bias, groups=len(weight))[0].T)


def deltanet(x: Tensor, w: Weights, config: dict[str, Any]) -> Tensor:
    heads = config["num_attention_heads"]
    q, k, v = (
        conv(x @ w[f"gla.{n}_proj.weight"].T, w[f"gla.{n}_conv1d.weight"]).unflatten(
            -1, (heads, -1)
        )
        for n in "qkv"
    )
    q, k = (t * torch.rsqrt(t.square().sum(-1, keepdim=True) + 1e-6) for t in (q, k))
    beta = torch.sigmoid(x @ w["gla.b_proj.weight"].T)
    width = q.shape[-1]
    state = torch.zeros(heads, width, width, dtype=x.dtype)
    out = []
    for t in range(len(x)):
        error = torch.einsum("nvk,nk->nv", state, k[t]) - v[t]
        state = state - beta[t, :, None, None] * error[:, :, None] * k[t][:, None]
        out.append(torch.einsum("nvk,nk->nv", state, q[t]) * width**-0.5)
    o = rms(torch.stack(out), w["gla.o_norm.weight"], 1e-5)
    return o.flatten(1) @ w["gla.o_proj.weight"].T


def mamba2(x: Tensor, w: Weights, config: dict[str, Any]) -> Tensor:
    inner, states = config["mamba_expand"] * config["hidden_size"], config["mamba_d_state"]
    width = config["mamba2_headdim"]
    heads = inner // width
    z, xbc, dt = (x @ w["mamba.in_proj.weight"].T).split([inner, inner + 2 * states, heads], -1)
    xbc = conv(xbc, w["mamba.conv1d.weight"], w["mamba.conv1d.bias"])
    u, b, c = xbc.split([inner, states, states], -1)
    u = u.unflatten(-1, (heads, width))
    dt = F.softplus(dt + w["mamba.dt_bias"])
    decay = torch.exp(-dt * w["mamba.A_log"].exp())
    state = torch.zeros(heads, width, states, dtype=x.dtype)
    out = []
    for t in range(len(x)):
        new = dt[t, :, None, None] * u[t][:, :, None] * b[t]
        state = decay[t, :, None, None] * state + new
        out.append(state @ c[t] + w["mamba.D"][:, None] * u[t])
    y = torch.stack(out).flatten(1) * F.silu(z)
    return rms(y, w["mamba.norm.weight"], 1e-5) @ w["mamba.out_proj.weight"].T


def attention(x: Tensor, w: Weights, config: dict[str, Any]) -> Tensor:
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    d = config["hidden_size"] // heads
    q = (x @ w["self_attn.q_proj.weight"].T).unflatten(-1, (heads, d))
    k = (x @ w["self_attn.k_proj.weight"].T).unflatten(-1, (groups, d))
    v = (x @ w["self_attn.v_proj.weight"].T).unflatten(-1, (groups, d))
    grown = 2 * config["max_position_embeddings"] / config["orig_max_position_embeddings"] - 1
    base = config["rope_theta"] * grown ** (d / (d - 2))
    inverse = base ** (-torch.arange(0, d, 2, dtype=x.dtype) / d)
    angle = (torch.arange(len(x), dtype=x.dtype)[:, None] * inverse).repeat(1, 2)[:, None]
    q, k = (
        t * angle.cos() + torch.cat([-t[..., d // 2 :], t[..., : d // 2]], -1) * angle.sin()
        for t in (q, k)
    )
    k, v = (t.repeat_interleave(heads // groups, 1) for t in (k, v))
    scores = torch.einsum("tnd,snd->nts", q, k) * d**-0.5
    later = torch.ones(len(x), len(x)).triu(1).bool()
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    return torch.einsum("nts,snd->tnd", weights, v).flatten(1) @ w["self_attn.o_proj.weight"].T


def ffn(x: Tensor, w: Weights, config: dict[str, Any]) -> Tensor:
    up = F.silu(x @ w["ffn.gate_proj.weight"].T) * (x @ w["ffn.up_proj.weight"].T)
    return up @ w["ffn.down_proj.weight"].T


MIXERS = {"deltanet": deltanet, "m2": mamba2, "a": attention, "f": ffn}


def published(ids: Tensor, tensors: Weights, config: dict[str, Any]) -> Tensor:
    """Logits [T,V] of ids[T] in fp64."""
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    memory = tensors["model.memory_tokens"]
    h = torch.cat([memory, tensors["model.embed_tokens.weight"][ids]])
    for index, kind in enumerate(config["layer_types"]):
        prefix = f"model.layers.{index}."
        w = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        norm = w["pre_ffn_layernorm.weight" if kind == "f" else "input_layernorm.weight"]
        h = h + MIXERS[kind](rms(h, norm, config["rms_norm_eps"]), w, config)
    h = rms(h[len(memory) :], tensors["model.final_layernorm.weight"], config["rms_norm_eps"])
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    length = head.norm(dim=1)
    return h @ head.T / length.where(length > 0, 1)


def test_logits_are_the_published_models(
    model: NemotronFlashForCausalLM,
    released_config: dict[str, Any],
    released_tensors: dict[str, Tensor],
) -> None:
    ids = torch.randint(0, 97, (2, 150), generator=torch.Generator().manual_seed(1))
    expected = torch.stack([published(row, released_tensors, released_config) for row in ids])
    with torch.inference_mode():
        actual = model(ids).logits
    assert expected.std() > 0.3
    assert (actual - expected).abs().max() < 2e-4
