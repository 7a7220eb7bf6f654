"""The keys of the released config.json: what each means when absent, what is supported, and the
values that describe an `ArchSpec`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from archsearch.space import ArchSpec

# layer_types -> operator; the first name of an operator is the one that is written
OPERATORS = {"deltanet": "deltanet", "m2": "mamba2", "m": "mamba2", "a": "attention", "f": "ffn"}
# constants of the released code that no key of the config changes
MIXER_EPS, QK_NORM_EPS, CONV_TAPS = 1e-5, 1e-6, 4

# what an absent key means in the released code
DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 65536,
    "tie_word_embeddings": False,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "mlp_hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "use_cache": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": None,
    "global_attn_idx": None,
    "max_position_embeddings": 262144,
    "orig_max_position_embeddings": None,
    "attention_dropout": 0.0,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba2_headdim": 64,
    "layer_types": None,
    "ffn_expand_ratio": None,
    "kq_norm": None,
    "rope": False,
    "rope_type": None,
    "rope_theta": 10000.0,
    "num_memory_tokens": 0,
    "attn_hidden_size": -1,
    "kq_head_dim": -1,
    "v_head_dim": -1,
    "attn_implementation_new": "flash_attention_2",
    # no effect, here as there; kept so that a file comes back as it was (experts: 16 there)
    "num_experts": 1,
    "num_experts_per_tok": 1,
    "calc_logits_for_entire_prompt": False,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "use_mamba_kernels": True,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "mamba_inner_layernorms": True,
    "mamba_dt_rank": "auto",
    "hybrid_decoder_layer": "mamba",
    "d_conv": 4,
    "new_seq_length": 2048,
}
# key -> the values that are supported, where there are few
SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "mlp_hidden_act": ("silu", "relu2"),
    "num_experts": (1,),
    "attention_dropout": (0.0,),
}
SUPPORTED_BY_ATTENTION: Mapping[str, tuple[Any, ...]] = {
    "rope": (True,),
    "rope_type": (None, "default", "ntk", "dynamic_ntk"),
    "kq_norm": (None, "none", "rms"),
    "sliding_window": (None,),
}


def released_keys(spec: ArchSpec) -> dict[str, Any]:
    """The released keys that describe the spec, as far as they can."""
    names: dict[str, str] = {}
    for kind, operator in OPERATORS.items():
        names.setdefault(operator, kind)
    for layer in spec.layers:
        if layer.operator not in names:
            raise ValueError(
                f"NemotronFlashConfig has no layer type for {layer.operator!r}; it has"
                f" {', '.join(names)}; take ArchSearchConfig"
            )
    first: dict[str, Any] = {}
    for layer, config in zip(spec.layers, spec.configs, strict=True):
        first.setdefault(layer.operator, config)
    keys = {
        "layer_types": [names[layer.operator] for layer in spec.layers],
        "num_hidden_layers": spec.num_layers,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": 0,
        "tie_word_embeddings": spec.tie_embeddings,
        "rms_norm_eps": spec.norm_eps,
        "num_memory_tokens": spec.num_meta_tokens,
        "max_position_embeddings": spec.max_position,
        "orig_max_position_embeddings": spec.rope.original_max_position,
        "rope": True,
        "rope_type": spec.rope.type,
        "rope_theta": spec.rope.theta,
    }
    if (heads := first.get("attention") or first.get("deltanet")) is not None:
        keys["num_attention_heads"] = heads.num_heads
        keys["num_key_value_heads"] = heads.num_heads
    if (attention := first.get("attention")) is not None:
        keys["num_key_value_heads"] = attention.num_kv_heads
        keys["kq_norm"] = "rms" if attention.qk_norm else "none"
        if attention.num_heads * attention.head_dim != spec.hidden_size:
            keys["kq_head_dim"] = keys["v_head_dim"] = attention.head_dim
    if (mamba := first.get("mamba2")) is not None:
        keys["mamba_d_state"], keys["mamba_d_conv"] = mamba.d_state, mamba.d_conv
        keys["mamba_expand"], keys["mamba2_headdim"] = mamba.expand, mamba.head_dim
    if (ffn := first.get("ffn")) is not None:
        ratio = ffn.intermediate_size / spec.hidden_size
        if int(ratio * spec.hidden_size) < ffn.intermediate_size:
            # the released code rounds down
            ratio = math.nextafter(ratio, math.inf)
        keys["ffn_expand_ratio"] = int(ratio) if ratio.is_integer() else ratio
        keys["mlp_hidden_act"] = "silu" if ffn.activation == "swiglu" else "relu2"
    return keys


def first_difference(ours: Any, theirs: Any, where: str = "") -> tuple[str, Any, Any]:
    """Where two trees of JSON values differ first, and both values there."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        pairs = [(f"{where}.{key}".lstrip("."), ours[key], theirs[key]) for key in ours]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = [
            (f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
        ]
    else:
        return where, ours, theirs
    name, left, right = next(pair for pair in pairs if pair[0] != "name" and pair[1] != pair[2])
    return first_difference(left, right, name)
