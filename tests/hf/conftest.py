"""Checkpoints as NVIDIA releases them, written without this package's help: a config.json with
the released keys and tensors with the released names and shapes, at reduced size.

Legend: H hidden, V vocabulary, M memory tokens, F FFN width, n heads, k key/value heads, d head
width, di inner width of Mamba-2, N its state width, nh its heads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import logging

import archsearch.hf

Shapes = dict[str, tuple[int, ...]]
GENERATION = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "use_cache": False}
KINDS = ("deltanet", "f", "m2", "f", "a", "f", "m2", "f")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No progress bars among the tests' dots."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture
def released_config() -> dict[str, Any]:
    """The released config.json, keys in full, at reduced size."""
    return {
        "architectures": ["NemotronFlashForCausalLM"],
        "attention_dropout": 0.0,
        "attn_hidden_size": -1,
        "attn_implementation": "fused_mha",
        "attn_implementation_new": "fused_mha",
        "auto_map": {
            "AutoConfig": "configuration_nemotron_flash.NemotronFlashConfig",
            "AutoModelForCausalLM": "modeling_nemotron_flash.NemotronFlashForCausalLM",
        },
        "bos_token_id": 1,
        "calc_logits_for_entire_prompt": False,
        "d_conv": 4,
        "dtype": "float32",
        "eos_token_id": 2,
        "ffn_expand_ratio": 3,
        "global_attn_idx": [],
        "hidden_act": "silu",
        "hidden_size": 128,
        "hybrid_decoder_layer": "mamba",
        "initializer_range": 0.02,
        "intermediate_size": 0,
        "kq_head_dim": -1,
        "kq_norm": "none",
        "layer_type": ["m", "a", "m", "a", "a", "a", "m", "a"],
        "layer_types": list(KINDS),
        "mamba2_headdim": 64,
        "mamba_conv_bias": True,
        "mamba_d_conv": 4,
        "mamba_d_state": 16,
        "mamba_dt_rank": 8,
        "mamba_expand": 2,
        "mamba_inner_layernorms": True,
        "mamba_proj_bias": False,
        "max_position_embeddings": 290,
        "mlp_hidden_act": "silu",
        "model_type": "nemotron_flash",
        "new_seq_length": 2048,
        "num_attention_heads": 4,
        "num_experts": 1,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 8,
        "num_key_value_heads": 2,
        "num_memory_tokens": 5,
        "orig_max_position_embeddings": 40,
        "output_router_logits": False,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "rope": True,
        "rope_theta": 10000.0,
        "rope_type": "ntk",
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "transformers_version": "4.51.3",
        "use_cache": False,
        "use_mamba_kernels": True,
        "v_head_dim": -1,
        "vocab_size": 97,
    }


@pytest.fixture
def released_shapes() -> Callable[[dict[str, Any]], Shapes]:
    """Names and shapes of a released checkpoint of a config."""
    return shapes


@pytest.fixture
def released_tensors(released_config: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights under the released names, none near a trivial value; the padding row of
    the embedding is zero."""
    return draw(shapes(released_config))


@pytest.fixture
def write_checkpoint(
    tmp_path: Path, released_config: dict[str, Any], released_tensors: dict[str, Tensor]
) -> Callable[..., Path]:
    """Writes a folder: the config with some keys replaced, and tensors in so many files."""

    def write(tensors: dict[str, Tensor] | None = None, *, files: int = 1, **changed: Any) -> Path:
        (tmp_path / "config.json").write_text(json.dumps({**released_config, **changed}))
        (tmp_path / "generation_config.json").write_text(json.dumps(GENERATION))
        tensors = released_tensors if tensors is None else tensors
        if files == 1:
            save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
            return tmp_path
        index: dict[str, str] = {}
        for number in range(files):
            file = f"model-{number + 1:05}-of-{files:05}.safetensors"
            part = {name: tensors[name] for name in sorted(tensors)[number::files]}
            save_file(part, tmp_path / file, {"format": "pt"})
            index |= dict.fromkeys(part, file)
        text = json.dumps({"metadata": {}, "weight_map": index})
        (tmp_path / "model.safetensors.index.json").write_text(text)
        return tmp_path

    return write


@pytest.fixture
def model(write_checkpoint: Callable[..., Path]) -> archsearch.hf.NemotronFlashForCausalLM:
    """The released checkpoint, loaded in fp32."""
    loaded = archsearch.hf.NemotronFlashForCausalLM.from_pretrained(write_checkpoint())
    assert isinstance(loaded, archsearch.hf.NemotronFlashForCausalLM)
    return loaded


def draw(sizes: Shapes) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, size in sizes.items():
        value = torch.randn(size, generator=generator)
        if name.endswith("norm.weight"):
            value = 1 + 0.2 * value
        elif name.endswith(("A_log", ".D", "dt_bias")):
            value = 0.5 * value
        elif len(size) == 2 and "memory" not in name:
            value = value * 0.8 / size[1] ** 0.5
        tensors[name] = value
    tensors["model.embed_tokens.weight"][0] = 0
    return tensors


def shapes(config: dict[str, Any]) -> Shapes:
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    found: Shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.memory_tokens": (config["num_memory_tokens"], hidden),
        "model.final_layernorm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (vocab, hidden)
    parts = {"deltanet": deltanet, "m2": mamba2, "a": attention, "f": ffn}
    for index, kind in enumerate(config["layer_types"]):
        norm = "pre_ffn_layernorm" if kind == "f" else "input_layernorm"
        found[f"model.layers.{index}.{norm}.weight"] = (hidden,)
        for name, size in parts[kind](config).items():
            found[f"model.layers.{index}.{name}"] = size
    return found


def deltanet(config: dict[str, Any]) -> Shapes:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    found: Shapes = {f"gla.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
    found |= {f"gla.{name}_conv1d.weight": (hidden, 1, 4) for name in "qkv"}
    return found | {
        "gla.b_proj.weight": (heads, hidden),
        "gla.o_norm.weight": (hidden // heads,),
    }


def mamba2(config: dict[str, Any]) -> Shapes:
    hidden, states = config["hidden_size"], config["mamba_d_state"]
    inner = config["mamba_expand"] * hidden
    heads = inner // config["mamba2_headdim"]
    channels = inner + 2 * states
    return {
        "mamba.in_proj.weight": (2 * inner + 2 * states + heads, hidden),
        "mamba.conv1d.weight": (channels, 1, config["mamba_d_conv"]),
        "mamba.conv1d.bias": (channels,),
        "mamba.A_log": (heads,),
        "mamba.D": (heads,),
        "mamba.dt_bias": (heads,),
        "mamba.norm.weight": (inner,),
        "mamba.out_proj.weight": (hidden, inner),
    }


def attention(config: dict[str, Any]) -> Shapes:
    hidden = config["hidden_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    return {
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
    }


def ffn(config: dict[str, Any]) -> Shapes:
    hidden = config["hidden_size"]
    width = int(config["ffn_expand_ratio"] * hidden) // 128 * 128
    return {
        "ffn.gate_proj.weight": (width, hidden),
        "ffn.up_proj.weight": (width, hidden),
        "ffn.down_proj.weight": (hidden, width),
    }
