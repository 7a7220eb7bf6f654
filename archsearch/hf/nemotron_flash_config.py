"""`NemotronFlashConfig`: the released config.json, read and written, to an `ArchSpec` and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from typing import Self

from transformers import PreTrainedConfig

from archsearch.hf.config import ArchSearchConfig
from archsearch.names import suggestion
from archsearch.operators.common.rope import RopeConfig
from archsearch.space import ArchSpec
from archsearch.space import LayerSpec

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


class NemotronFlashConfig(ArchSearchConfig):
    """The released keys; without `layer_types` it is a bag of defaults that builds nothing."""

    model_type = "nemotron_flash"

    def __init__(self, *, attn_implementation: str | None = None, **kwargs: Any) -> None:
        fields = {key: kwargs.pop(key, default) for key, default in DEFAULTS.items()}
        kwargs.pop("layer_type", None)
        PreTrainedConfig.__init__(self, **kwargs)
        # after transformers' own checks, which would reject the layers' names
        for key, value in fields.items():
            setattr(self, key, value)
        if attn_implementation is not None:
            self.attn_implementation_new = attn_implementation
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.mamba_dt_rank == "auto":
            self.mamba_dt_rank = -(-self.hidden_size // 16)
        if self.layer_types is not None:
            self.layer_type = ["a" if kind in ("a", "f") else "m" for kind in self.layer_types]
            self.check()

    @classmethod
    def from_spec(cls, spec: ArchSpec, **kwargs: Any) -> Self:
        """The config of an architecture that the released code could build; `kwargs` are more
        keys. Raises ValueError that names the first setting it has no key for."""
        config = cls(**{**_keys(spec), **kwargs})
        if config.to_spec().id != spec.id:
            where, ours, theirs = _first_difference(spec.resolved(), config.to_spec().resolved())
            raise ValueError(
                f"{where} is {ours!r}, which NemotronFlashConfig cannot say (it means {theirs!r});"
                " take ArchSearchConfig"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """The released keys as plain values; both names of the attention agree."""
        fields: dict[str, Any] = super().to_dict()
        fields["attn_implementation"] = self.attn_implementation_new
        return fields

    def to_spec(self) -> ArchSpec:
        """The architecture; raises ValueError that names the first value it cannot have."""
        layers = self._checked_layers()
        rope = RopeConfig(theta=self.rope_theta)
        if "a" in layers and self.rope_type not in (None, "default"):
            original = self.orig_max_position_embeddings
            if original is None:
                raise ValueError(
                    f"rope_type {self.rope_type!r} needs orig_max_position_embeddings; got None"
                )
            rope = RopeConfig(
                type=self.rope_type, theta=self.rope_theta, original_max_position=original
            )
        built = {kind: self._layer(kind) for kind in set(layers)}
        return ArchSpec.create(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            layers=tuple(built[kind] for kind in layers),
            num_meta_tokens=self.num_memory_tokens,
            tie_embeddings=self.tie_word_embeddings,
            norm_eps=self.rms_norm_eps,
            head_norm=True,
            max_position=self.max_position_embeddings,
            rope=rope,
        )

    def _checked_layers(self) -> list[str]:
        if self.layer_types is None:
            raise ValueError("the config has no layer_types; from_spec makes them")
        for kind in self.layer_types:
            if kind not in OPERATORS:
                hint = suggestion(str(kind), OPERATORS)
                raise ValueError(
                    f"layer_types may hold {', '.join(OPERATORS)}; {hint}got {kind!r}"
                )
        if self.num_hidden_layers != len(self.layer_types):
            raise ValueError(
                f"num_hidden_layers is {self.num_hidden_layers}, but layer_types has"
                f" {len(self.layer_types)} entries"
            )
        limits = dict(SUPPORTED)
        if "a" in self.layer_types:
            limits |= SUPPORTED_BY_ATTENTION
        for key, allowed in limits.items():
            if getattr(self, key) not in allowed:
                known = " or ".join(repr(value) for value in allowed)
                raise ValueError(
                    f"{key}={getattr(self, key)!r} is not supported; it must be {known}"
                )
        if any(kind != "f" for kind in self.layer_types) and self.intermediate_size > 0:
            raise ValueError(
                "intermediate_size must be 0 (feed-forward networks are layers of their own, 'f',"
                f" sized by ffn_expand_ratio); got {self.intermediate_size}"
            )
        return list(self.layer_types)

    def _layer(self, kind: str) -> LayerSpec:
        make = {
            "deltanet": self._deltanet,
            "mamba2": self._mamba2,
            "attention": self._attention,
            "ffn": self._ffn,
        }
        operator = OPERATORS[kind]
        return LayerSpec(operator=operator, config=make[operator]())

    def _deltanet(self) -> dict[str, Any]:
        return {
            "num_heads": self.num_attention_heads,
            "head_dim": self._per_head("hidden_size", self.hidden_size),
            "conv_size": CONV_TAPS,
            "norm_eps": MIXER_EPS,
            "state_dtype": "float32",
        }

    def _mamba2(self) -> dict[str, Any]:
        return {
            "d_state": self.mamba_d_state,
            "expand": self.mamba_expand,
            "head_dim": self.mamba2_headdim,
            "d_conv": self.mamba_d_conv,
            "norm_eps": MIXER_EPS,
        }

    def _attention(self) -> dict[str, Any]:
        if self.attn_hidden_size > 0:
            width = self._per_head("attn_hidden_size", self.attn_hidden_size)
        else:
            width = self._per_head("hidden_size", self.hidden_size)
        keys = self.kq_head_dim if self.kq_head_dim > 0 else width
        values = self.v_head_dim if self.v_head_dim > 0 else width
        if keys != values:
            raise ValueError(
                f"v_head_dim must equal the width of queries and keys, {keys}; got {values}"
            )
        return {
            "num_heads": self.num_attention_heads,
            "head_dim": keys,
            "num_kv_heads": self.num_key_value_heads,
            "qk_norm": self.kq_norm == "rms",
            "norm_eps": QK_NORM_EPS,
        }

    def _ffn(self) -> dict[str, Any]:
        width = self.intermediate_size
        if self.ffn_expand_ratio is not None:
            width = int(self.ffn_expand_ratio * self.hidden_size) // 128 * 128
        activation = "swiglu" if self.mlp_hidden_act == "silu" else "relu2"
        return {"intermediate_size": width, "activation": activation}

    def _per_head(self, key: str, width: int) -> int:
        if width % self.num_attention_heads:
            raise ValueError(
                f"{key} must be a multiple of num_attention_heads"
                f" {self.num_attention_heads}; got {width}"
            )
        return width // self.num_attention_heads


def _keys(spec: ArchSpec) -> dict[str, Any]:
    """The released keys that describe the spec, as far as they can."""
    names = {operator: kind for kind, operator in reversed(OPERATORS.items())}
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
        keys["ffn_expand_ratio"] = int(ratio) if ratio.is_integer() else ratio
        keys["mlp_hidden_act"] = "silu" if ffn.activation == "swiglu" else "relu2"
    return keys


def _first_difference(ours: Any, theirs: Any, where: str = "") -> tuple[str, Any, Any]:
    """Where two trees of JSON values differ first, and both values there."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        pairs = [(f"{where}.{key}".lstrip("."), ours[key], theirs[key]) for key in ours]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = [(f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))]
    else:
        return where, ours, theirs
    name, left, right = next(
        pair for pair in pairs if pair[0] != "name" and pair[1] != pair[2]
    )
    return _first_difference(left, right, name)
