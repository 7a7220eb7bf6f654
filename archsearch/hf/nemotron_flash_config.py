"""`NemotronFlashConfig`: the released config.json, read and written, to an `ArchSpec` and back."""

from __future__ import annotations

from typing import Any
from typing import Self

from transformers import PreTrainedConfig

from archsearch.hf.config import ArchSearchConfig
from archsearch.hf.released_keys import CONV_TAPS
from archsearch.hf.released_keys import DEFAULTS
from archsearch.hf.released_keys import MIXER_EPS
from archsearch.hf.released_keys import OPERATORS
from archsearch.hf.released_keys import QK_NORM_EPS
from archsearch.hf.released_keys import SUPPORTED
from archsearch.hf.released_keys import SUPPORTED_BY_ATTENTION
from archsearch.hf.released_keys import first_difference
from archsearch.hf.released_keys import released_keys
from archsearch.names import suggestion
from archsearch.operators.common.rope import RopeConfig
from archsearch.space import ArchSpec
from archsearch.space import LayerSpec


class NemotronFlashConfig(ArchSearchConfig):
    """The released keys; without `layer_types` it is a bag of defaults that builds nothing."""

    model_type = "nemotron_flash"

    def __init__(self, *, attn_implementation: str | None = None, **kwargs: Any) -> None:
        fields = {key: kwargs.pop(key, default) for key, default in DEFAULTS.items()}
        kwargs.pop("layer_type", None)
        if attn_implementation is not None:
            fields["attn_implementation_new"] = attn_implementation
        if fields["num_key_value_heads"] is None:
            fields["num_key_value_heads"] = fields["num_attention_heads"]
        if fields["mamba_dt_rank"] == "auto":
            fields["mamba_dt_rank"] = -(-fields["hidden_size"] // 16)
        PreTrainedConfig.__init__(self, **kwargs)
        # after transformers' own checks, which would reject the layers' names
        for key, value in fields.items():
            setattr(self, key, value)
        if self.layer_types is not None:
            self.layer_type = ["a" if kind in ("a", "f") else "m" for kind in self.layer_types]
            self.check()

    @classmethod
    def from_spec(cls, spec: ArchSpec, **kwargs: Any) -> Self:
        """The config of an architecture that the released code could build; `kwargs` are more
        keys. Raises ValueError that names the first setting it has no key for."""
        config = cls(**{**released_keys(spec), **kwargs})
        if config.to_spec().id != spec.id:
            where, ours, theirs = first_difference(spec.resolved(), config.to_spec().resolved())
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
