"""Presets have exactly the parameters that their sources give; counts add up."""

from __future__ import annotations

import pytest

from archsearch.operators import Shape
from archsearch.space import ArchSpec
from archsearch.space import count
from archsearch.space import parse
from archsearch.space import presets

PARAMETERS = {
    "nemotron-flash-1b": 965_389_440,
    "nemotron-flash-3b": 2_749_998_624,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "smollm2-1.7b": 1_711_376_384,
}
PRINTED_MILLIONS = {
    "nemotron-flash-search-latency": 837.33,
    "nemotron-flash-search-parameters": 495.84,  # 497 printed; the width is not
}


@pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
def test_parameters_are_exact(name: str, expected: int) -> None:
    assert count.parameters(presets.get(name)) == expected


@pytest.mark.parametrize(("name", "millions"), PRINTED_MILLIONS.items())
def test_searched_models_have_the_printed_size(name: str, millions: float) -> None:
    assert count.parameters(presets.get(name)) / 1e6 == pytest.approx(millions, abs=0.005)


def test_no_other_width_comes_nearer_to_the_printed_size() -> None:
    spec = presets.get("nemotron-flash-search-parameters")

    def distance(hidden_size: int) -> float:
        layers = tuple(
            layer.model_copy(
                update={"config": {**layer.config, "num_kv_heads": hidden_size // 64}}
            )
            if layer.operator == "attention"
            else layer
            for layer in spec.layers
        )
        changed = spec.model_copy(update={"hidden_size": hidden_size, "layers": layers})
        return abs(count.parameters(changed) - 497e6)

    assert min(range(1024, 2049, 64), key=distance) == spec.hidden_size


@pytest.mark.parametrize("name", presets.names())
def test_presets_are_described_and_round_trip(name: str) -> None:
    preset = presets.describe(name)
    spec = preset.build()
    assert spec.name == name
    assert preset.description
    assert preset.source
    assert ArchSpec.from_json(spec.model_dump_json()) == spec
    assert ArchSpec.from_json(spec.resolved_json()).id == spec.id


def test_every_preset_is_tested() -> None:
    assert set(presets.names()) == {*PARAMETERS, *PRINTED_MILLIONS}


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'qwen3-0\.6b'"):
        presets.get("qwen3-0.6")


def test_released_models_keep_what_was_released() -> None:
    spec = presets.get("nemotron-flash-1b")
    assert (spec.num_meta_tokens, spec.head_norm, spec.tie_embeddings) == (256, True, True)
    fields = [config.model_dump() for config in spec.configs]
    assert (fields[0]["num_heads"], fields[0]["norm_eps"]) == (16, 1e-5)
    assert (fields[2]["d_state"], fields[2]["norm_eps"]) == (128, 1e-5)
    assert (fields[4]["num_heads"], fields[4]["num_kv_heads"]) == (16, 4)
    assert (fields[4]["rope"]["type"], fields[4]["max_position"]) == ("ntk", 29000)


def test_parameter_parts() -> None:
    spec = parse("a f @256", vocab_size=100, num_meta_tokens=3)
    attention = 2 * 256 * 256 + 2 * 256 * 64
    parts = {
        "embedding": 100 * 256,
        "meta_tokens": 3 * 256,
        "norms": 3 * 256,
        "mixers": attention + 3 * 256 * 768,
        "head": 0,
    }
    assert count.parameter_parts(spec) == parts
    untied = spec.model_copy(update={"tie_embeddings": False})
    assert count.parameters(untied) == count.parameters(spec) + 100 * 256


def test_meta_tokens_are_computed_and_cached() -> None:
    plain = parse("a f @256", vocab_size=100)
    meta = plain.model_copy(update={"num_meta_tokens": 20})
    assert count.state_bytes(meta, 80) == count.state_bytes(plain, 100)
    assert count.flops_per_token(meta, 80) == count.flops_per_token(plain, 100)
    assert count.layers(meta, Shape("prefill", 2, 80)) == count.layers(
        plain, Shape("prefill", 2, 100)
    )


def test_bytes_of_a_step() -> None:
    """Weights, head and cache are read, the new token is written; an embedding is not read."""
    spec = parse("a f @256", vocab_size=100, num_meta_tokens=20)
    shape = Shape("decode", 3, 10, "bfloat16")
    parts = count.parameter_parts(spec)
    cache = count.state_bytes(spec, 10 + 1, 3, "bfloat16")
    activations = 2 * 2 * 3 * 256
    weights = 2 * (parts["mixers"] + parts["embedding"] + parts["norms"])
    assert count.step_bytes(spec, shape) == weights + cache + 2 * activations
    untied = spec.model_copy(update={"tie_embeddings": False})
    assert count.step_bytes(untied, shape) == count.step_bytes(spec, shape)


def test_state_and_flops() -> None:
    spec = parse("a f @256", vocab_size=100)
    assert count.state_bytes(spec, 10, batch=3, dtype="bfloat16") == 3 * 10 * 2 * 64 * 2
    weights = sum(cost.parameters for cost in count.layers(spec, Shape()))
    attending = 4 * 256 * 10
    assert count.flops_per_token(spec, 10) == 2 * weights + attending + 2 * 100 * 256
    assert count.parameters(parse("@64", vocab_size=10)) == 64 * 11
