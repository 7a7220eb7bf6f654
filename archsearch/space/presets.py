"""Published architectures by name: Nemotron-Flash, its two searched models, dense baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from archsearch.names import suggestion
from archsearch.operators.common.rope import RopeConfig
from archsearch.space.notation import read_pattern
from archsearch.space.spec import ArchSpec
from archsearch.space.spec import LayerSpec

PAPER = "Nemotron-Flash, arXiv 2511.18890"
RELEASED_1B = "(d f m2 f a f m2 f)x2 (d f m2 f)x2"
RELEASED_3B = "(d f m2 f a f m2 f)x3 (d f m2 f)x3"
SEARCHED_FOR_LATENCY = RELEASED_1B
SEARCHED_FOR_PARAMETERS = "(m2 f a f a f d)x3 m2 f a f d fx2"

Overrides = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Preset:
    """A named architecture, what it is, and where its numbers come from."""

    name: str
    description: str
    source: str
    build: Callable[[], ArchSpec]


def get(name: str) -> ArchSpec:
    """The architecture called `name`; raises ValueError that names what exists."""
    return describe(name).build()


def describe(name: str) -> Preset:
    """The preset called `name`; raises ValueError that names what exists."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    hint = suggestion(name, _BY_NAME)
    raise ValueError(f"unknown preset {name!r}; {hint}there are {', '.join(_BY_NAME)}")


def names() -> tuple[str, ...]:
    """Names of all presets."""
    return tuple(_BY_NAME)


def _layers(pattern: str, overrides: Overrides) -> tuple[LayerSpec, ...]:
    return tuple(
        LayerSpec(operator=name, config=overrides.get(name, {}))
        for name in read_pattern(pattern).operators
    )


def _released(name: str, pattern: str, hidden_size: int) -> ArchSpec:
    """A released Nemotron-Flash: its linear mixers norm with another epsilon than its layers."""
    overrides: Overrides = {
        "deltanet": {"norm_eps": 1e-5, "state_dtype": "float32"},
        "mamba2": {"d_state": 128, "norm_eps": 1e-5},
    }
    return ArchSpec.create(
        name=name,
        hidden_size=hidden_size,
        layers=_layers(pattern, overrides),
        num_meta_tokens=256,
        head_norm=True,
        max_position=29000,
        rope=RopeConfig(type="ntk", original_max_position=4096),
    )


def _searched(name: str, pattern: str, hidden_size: int, head_dim: int) -> ArchSpec:
    """A model of the paper's search phase, by the rules that reproduce its printed sizes."""
    heads = hidden_size // head_dim
    overrides: Overrides = {
        "attention": {"head_dim": head_dim, "num_kv_heads": heads},
        "deltanet": {"head_dim": head_dim, "norm_eps": 1e-5, "state_dtype": "float32"},
        "mamba2": {"d_state": 16, "norm_eps": 1e-5},
    }
    return ArchSpec.create(
        name=name,
        vocab_size=32000,
        hidden_size=hidden_size,
        layers=_layers(pattern, overrides),
        tie_embeddings=False,
    )


def _dense(
    name: str,
    *,
    size: tuple[int, int, int],
    heads: tuple[int, int, int],
    attention: dict[str, Any] | None = None,
    **fields: Any,
) -> ArchSpec:
    """A dense transformer: size = (blocks, hidden, FFN), heads = (query, key/value, width)."""
    blocks, hidden_size, intermediate_size = size
    num_heads, num_kv_heads, head_dim = heads
    config = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    overrides: Overrides = {
        "attention": {**config, **(attention or {})},
        "ffn": {"intermediate_size": intermediate_size},
    }
    layers = _layers(f"(a f)x{blocks}", overrides)
    return ArchSpec.create(name=name, hidden_size=hidden_size, layers=layers, **fields)


def _qwen3(name: str, **sizes: Any) -> ArchSpec:
    return _dense(
        name,
        attention={"qk_norm": True},
        vocab_size=151936,
        max_position=40960,
        rope=RopeConfig(theta=1e6),
        **sizes,
    )


def _qwen25(name: str, *, max_position: int = 32768, **sizes: Any) -> ArchSpec:
    return _dense(
        name,
        attention={"qkv_bias": True},
        vocab_size=151936,
        max_position=max_position,
        rope=RopeConfig(theta=1e6),
        **sizes,
    )


def _llama32(name: str, **sizes: Any) -> ArchSpec:
    rope = RopeConfig(type="llama3", theta=5e5, original_max_position=8192, factor=32)
    return _dense(name, vocab_size=128256, max_position=131072, norm_eps=1e-5, rope=rope, **sizes)


def _smollm2(name: str, **sizes: Any) -> ArchSpec:
    rope = RopeConfig(theta=130000)
    return _dense(name, vocab_size=49152, max_position=8192, norm_eps=1e-5, rope=rope, **sizes)


def _preset(
    name: str, description: str, source: str, build: Callable[..., ArchSpec], **sizes: Any
) -> Preset:
    return Preset(name, description, source, lambda: build(name, **sizes))


PRESETS: tuple[Preset, ...] = (
    _preset(
        "nemotron-flash-1b",
        "NVIDIA's released hybrid, 0.97 B parameters",
        f"{PAPER}, Tab. 11",
        _released,
        pattern=RELEASED_1B,
        hidden_size=2048,
    ),
    _preset(
        "nemotron-flash-3b",
        "NVIDIA's released hybrid, 2.75 B parameters",
        f"{PAPER}, Tab. 11",
        _released,
        pattern=RELEASED_3B,
        hidden_size=3072,
    ),
    _preset(
        "nemotron-flash-search-latency",
        "found by searching for decoding latency, 837 M parameters; the paper prints `a` and "
        "searched with a window of 512 in its place",
        f"{PAPER}, Tab. 2; vocabulary, ties, heads and state inferred from the printed size",
        _searched,
        pattern=SEARCHED_FOR_LATENCY,
        hidden_size=2048,
        head_dim=128,
    ),
    _preset(
        "nemotron-flash-search-parameters",
        "found by searching for 500 M parameters (497 M printed); the width is not printed: "
        "1472 is the multiple of 64 that comes nearest",
        f"{PAPER}, Tab. 2; vocabulary, ties, heads, state and width inferred as above",
        _searched,
        pattern=SEARCHED_FOR_PARAMETERS,
        hidden_size=1472,
        head_dim=64,
    ),
    _preset(
        "qwen3-0.6b",
        "dense, 28 blocks, query/key norms",
        "Hugging Face: Qwen/Qwen3-0.6B",
        _qwen3,
        size=(28, 1024, 3072),
        heads=(16, 8, 128),
    ),
    _preset(
        "qwen3-1.7b",
        "dense, 28 blocks, query/key norms",
        "Hugging Face: Qwen/Qwen3-1.7B",
        _qwen3,
        size=(28, 2048, 6144),
        heads=(16, 8, 128),
    ),
    _preset(
        "qwen2.5-0.5b",
        "dense, 24 blocks, query/key/value biases",
        "Hugging Face: Qwen/Qwen2.5-0.5B",
        _qwen25,
        size=(24, 896, 4864),
        heads=(14, 2, 64),
    ),
    _preset(
        "qwen2.5-1.5b",
        "dense, 28 blocks, query/key/value biases",
        "Hugging Face: Qwen/Qwen2.5-1.5B",
        _qwen25,
        size=(28, 1536, 8960),
        heads=(12, 2, 128),
        max_position=131072,
    ),
    _preset(
        "qwen2.5-3b",
        "dense, 36 blocks, query/key/value biases",
        "Hugging Face: Qwen/Qwen2.5-3B",
        _qwen25,
        size=(36, 2048, 11008),
        heads=(16, 2, 128),
    ),
    _preset(
        "llama-3.2-1b",
        "dense, 16 blocks, Llama 3 rotary scaling",
        "Hugging Face: meta-llama/Llama-3.2-1B",
        _llama32,
        size=(16, 2048, 8192),
        heads=(32, 8, 64),
    ),
    _preset(
        "llama-3.2-3b",
        "dense, 28 blocks, Llama 3 rotary scaling",
        "Hugging Face: meta-llama/Llama-3.2-3B",
        _llama32,
        size=(28, 3072, 8192),
        heads=(24, 8, 128),
    ),
    _preset(
        "smollm2-1.7b",
        "dense, 24 blocks, one key/value head per query head",
        "Hugging Face: HuggingFaceTB/SmolLM2-1.7B",
        _smollm2,
        size=(24, 2048, 8192),
        heads=(32, 32, 64),
    ),
)
_BY_NAME = {preset.name: preset for preset in PRESETS}
