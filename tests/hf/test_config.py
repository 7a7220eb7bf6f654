"""What the released config.json can say, and what is said about the rest."""

from __future__ import annotations

from typing import Any

import pytest

from archsearch.hf import ArchSearchConfig
from archsearch.hf import NemotronFlashConfig
from archsearch.operators.common.rope import RopeConfig
from archsearch.space import ArchSpec
from archsearch.space import parse
from archsearch.space import presets


def test_released_keys_become_an_architecture(released_config: dict[str, Any]) -> None:
    spec = NemotronFlashConfig(**released_config).to_spec()
    assert [layer.operator for layer in spec.layers] == [
        "deltanet",
        "ffn",
        "mamba2",
        "ffn",
        "attention",
        "ffn",
        "mamba2",
        "ffn",
    ]
    assert spec.rope == RopeConfig(type="ntk", original_max_position=40)
    assert (spec.max_position, spec.num_meta_tokens, spec.head_norm) == (290, 5, True)
    assert (spec.vocab_size, spec.tie_embeddings, spec.norm_eps) == (97, True, 1e-6)
    deltanet, ffn, mamba2, _, attention = spec.configs[:5]
    assert (deltanet.num_heads, deltanet.head_dim, deltanet.norm_eps) == (4, 32, 1e-5)
    assert deltanet.state_dtype == "float32"
    assert ffn.intermediate_size == 384
    assert (mamba2.d_state, mamba2.head_dim, mamba2.expand) == (16, 64, 2)
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (4, 2, 32)


@pytest.mark.parametrize(
    ("changed", "operator", "expected"),
    [
        ({"layer_types": ["m"] * 8}, 0, {"operator": "mamba2"}),
        ({"kq_norm": "rms"}, 4, {"qk_norm": True, "norm_eps": 1e-6}),
        ({"kq_head_dim": 16, "v_head_dim": 16}, 4, {"head_dim": 16}),
        ({"attn_hidden_size": 256}, 4, {"head_dim": 64}),
        ({"num_key_value_heads": None}, 4, {"num_kv_heads": 4}),
        ({"mlp_hidden_act": "relu2"}, 1, {"activation": "relu2"}),
        ({"ffn_expand_ratio": 2.9}, 1, {"intermediate_size": 256}),
        ({"rope_type": None}, 4, {"rope": {"type": "default"}}),
    ],
)
def test_values_are_followed(
    released_config: dict[str, Any],
    changed: dict[str, Any],
    operator: int,
    expected: dict[str, Any],
) -> None:
    layer = (
        NemotronFlashConfig(**released_config | changed).to_spec().resolved()["layers"][operator]
    )
    found = {"operator": layer["operator"], **layer["config"]}
    if "rope" in expected:
        found = {"rope": {"type": found["rope"]["type"]}}
    assert expected.items() <= found.items()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kq_norm": "l2"}, r"kq_norm='l2' is not supported; it must be None or 'none' or 'rms'"),
        ({"sliding_window": 512}, r"sliding_window=512 is not supported; it must be None"),
        ({"rope_type": "yarn"}, r"rope_type='yarn' is not supported; it must be .* 'ntk' or"),
        ({"rope": False}, r"rope=False is not supported; it must be True"),
        ({"num_experts": 16}, r"num_experts=16 is not supported; it must be 1"),
        ({"hidden_act": "gelu"}, r"hidden_act='gelu' is not supported; it must be 'silu'"),
        ({"mlp_hidden_act": "gelu"}, r"mlp_hidden_act='gelu' .* must be 'silu' or 'relu2'"),
        ({"attention_dropout": 0.1}, r"attention_dropout=0.1 is not supported"),
        ({"intermediate_size": 384}, r"intermediate_size must be 0 .*; got 384"),
        ({"num_hidden_layers": 7}, r"num_hidden_layers is 7, but layer_types has 8 entries"),
        ({"layer_types": ["mamba3"] * 8}, r"layer_types may hold deltanet, m2, .*got 'mamba3'"),
        ({"layer_types": ["delta"] * 8}, r"did you mean 'deltanet'\?"),
        ({"orig_max_position_embeddings": None}, r"'ntk' needs orig_max_position_embeddings"),
        ({"num_attention_heads": 3}, r"hidden_size must be a multiple of num_attention_heads 3"),
        ({"v_head_dim": 16}, r"v_head_dim must equal the width of queries and keys, 32; got 16"),
        (
            {"attn_implementation": "sdp"},
            r"attn_implementation_new must be .*mean 'sdpa'\? got 'sdp'",
        ),
    ],
)
def test_unsupported_values_are_named(
    released_config: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        NemotronFlashConfig(**released_config | changed)


def test_attention_keys_matter_only_with_attention(released_config: dict[str, Any]) -> None:
    changed = {"layer_types": ["deltanet", "f"] * 4, "rope": False, "sliding_window": 64}
    assert NemotronFlashConfig(**released_config | changed).to_spec().num_layers == 8


@pytest.mark.parametrize("name", ["nemotron-flash-1b", "nemotron-flash-3b"])
def test_presets_are_written_and_read(name: str) -> None:
    spec = presets.get(name)
    config = NemotronFlashConfig.from_spec(spec, pad_token_id=0)
    again = NemotronFlashConfig(**config.to_dict())
    assert again.to_spec().id == spec.id
    assert again.to_dict() == config.to_dict()
    assert config.layer_types[:4] == ["deltanet", "f", "m2", "f"]
    assert config.mamba_dt_rank == spec.hidden_size // 16


@pytest.mark.parametrize(("hidden", "width"), [(704, 1920), (1536, 2048), (1024, 3072)])
def test_any_width_of_ffn_has_a_ratio(hidden: int, width: int) -> None:
    layers = [{"operator": "f", "config": {"intermediate_size": width}}]
    spec = ArchSpec(hidden_size=hidden, layers=layers, head_norm=True)
    assert NemotronFlashConfig.from_spec(spec).to_spec().id == spec.id


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (parse("gd f a f @128"), r"no layer type for 'gated_deltanet'; it has deltanet, mamba2"),
        (parse("a f @128"), r"head_norm is False, .*\(it means True\); take ArchSearchConfig"),
        (
            parse("d f @128", head_norm=True, norm_eps=1e-5).model_copy(
                update={
                    "layers": [
                        {"operator": "d", "config": {"state_dtype": "model"}},
                        {"operator": "f"},
                    ]
                }
            ),
            r"layers\[0\]\.config\.head_dim|layers\[0\]\.config\.state_dtype is 'model'",
        ),
    ],
)
def test_what_the_released_keys_cannot_say(spec: ArchSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NemotronFlashConfig.from_spec(spec)


def test_general_configs_compare_by_architecture() -> None:
    one, other = (ArchSearchConfig.from_spec(parse(f"d f @{width}")) for width in (64, 128))
    assert one != other
    assert one == ArchSearchConfig.from_spec(parse("d f @64"))
    assert one.to_dict() == ArchSearchConfig(**one.to_dict()).to_dict()
    assert one.to_spec().id == parse("d f @64").id


def test_general_config_without_architecture() -> None:
    with pytest.raises(ValueError, match="no architecture; make it by from_spec"):
        ArchSearchConfig().to_spec()
