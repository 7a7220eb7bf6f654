"""Whole dense models against transformers' Qwen3 and Llama: random weights, fp32, logits.

The layouts of the presets at reduced size: everything but widths and depth is as published.
"""

from __future__ import annotations

import re

import pytest
import torch
from transformers import LlamaConfig
from transformers import LlamaForCausalLM
from transformers import PreTrainedModel
from transformers import Qwen2Config
from transformers import Qwen2ForCausalLM
from transformers import Qwen3Config
from transformers import Qwen3ForCausalLM

from archsearch.model import HybridLM
from archsearch.model import build
from archsearch.space import ArchSpec
from archsearch.space import LayerSpec
from archsearch.space import RopeConfig

SIZES = {
    "vocab_size": 101,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def theirs(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == "qwen3":
        config = Qwen3Config(
            **SIZES, rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 1e6}
        )
        model = Qwen3ForCausalLM(config)
    elif name == "qwen2":
        sizes = {**SIZES, "head_dim": 16}
        config = Qwen2Config(
            **sizes, rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 1e6}
        )
        model = Qwen2ForCausalLM(config)
    else:
        config = LlamaConfig(
            **SIZES, rms_norm_eps=1e-5, rope_parameters=LLAMA3, max_position_embeddings=4096
        )
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def ours(name: str) -> ArchSpec:
    attention = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 16 if name == "qwen2" else 32}
    attention |= {"qk_norm": name == "qwen3", "qkv_bias": name == "qwen2"}
    layers = (
        LayerSpec(operator="a", config=attention),
        LayerSpec(operator="f", config={"intermediate_size": 160}),
    )
    rope = RopeConfig(theta=1e6)
    if name == "llama":
        rope = RopeConfig(type="llama3", theta=5e5, factor=32.0, original_max_position=64)
    return ArchSpec(
        name=name,
        vocab_size=101,
        hidden_size=96,
        layers=layers * 3,
        norm_eps=1e-5 if name == "llama" else 1e-6,
        rope=rope,
    )


NAMES = {
    r"model\.embed_tokens\.": "embed.",
    r"model\.norm\.": "head.norm.",
    r"lm_head\.": "head.proj.",
    r"self_attn\.": "mixer.",
    r"mlp\.": "mixer.",
    r"input_layernorm\.|post_attention_layernorm\.": "norm.",
}


def load(model: HybridLM, other: PreTrainedModel) -> None:
    """Copy weights: their block i is our layers 2i (attention) and 2i + 1 (FFN)."""
    weights = {}
    for key, value in other.state_dict().items():
        name = key
        if found := re.match(r"model\.layers\.(\d+)\.(.*)", key):
            second = found[2].startswith(("mlp", "post"))
            name = f"layers.{2 * int(found[1]) + second}.{found[2]}"
        for pattern, replacement in NAMES.items():
            name = re.sub(pattern, replacement, name)
        weights[name] = value
    model.load_state_dict(weights)


@pytest.mark.parametrize("name", ["qwen3", "llama", "qwen2"])
def test_logits_equal_transformers(name: str) -> None:
    reference, model = theirs(name), build(ours(name))
    load(model, reference)
    assert model.num_parameters() == reference.num_parameters()
    ids = torch.randint(0, 101, (2, 150), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = reference(ids).logits
        assert relative(model(ids), expected) < 1e-4
        state = model.init_state(2, 150)
        assert relative(model.prefill(ids[:, :100], state), expected[:, 99]) < 1e-4
        for t in range(100, 150):
            assert relative(model.step(ids[:, t], state), expected[:, t]) < 1e-4


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())
