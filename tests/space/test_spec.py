"""Architecture specs: resolution, ids, JSON, and one sentence for whatever is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from archsearch.operators.attention.config import AttentionConfig
from archsearch.space import ArchSpec
from archsearch.space import LayerSpec
from archsearch.space import RopeConfig
from archsearch.space import load
from archsearch.space import parse


def attention(spec: ArchSpec, index: int = 0) -> AttentionConfig:
    config = spec.configs[index]
    assert isinstance(config, AttentionConfig)
    return config


def test_imports_no_torch() -> None:
    code = "import sys, archsearch.space as s; s.get_space('free'); s.load('qwen3-0.6b').id; "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_layers_inherit_unless_they_override() -> None:
    rope = RopeConfig(theta=5e5)
    layers = (LayerSpec(operator="a"), LayerSpec(operator="a", config={"norm_eps": 1e-3}))
    spec = ArchSpec(hidden_size=256, layers=layers, rope=rope, norm_eps=1e-5, max_position=99)
    assert attention(spec).rope == rope
    assert attention(spec).max_position == 99
    assert attention(spec).norm_eps == 1e-5
    assert attention(spec, 1).norm_eps == 1e-3
    assert attention(spec, 1).hidden_size == 256


def test_operators_are_stored_by_name() -> None:
    assert LayerSpec(operator="w").operator == "sliding_window"


def test_json_round_trips() -> None:
    layers = (LayerSpec(operator="a", config={"rope": {"theta": 7.0}}), LayerSpec(operator="f"))
    spec = ArchSpec(name="x", hidden_size=256, layers=layers, num_meta_tokens=4)
    again = ArchSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert ArchSpec.from_json(spec.model_dump_json()) == spec
    resolved = ArchSpec.from_json(spec.resolved_json())
    assert resolved.id == spec.id
    assert resolved.configs == spec.configs
    assert resolved.resolved_json() == spec.resolved_json()


def test_id_depends_on_all_but_the_name() -> None:
    spec = parse("(a f)x2 @256")
    assert len(spec.id) == 12
    assert int(spec.id, 16) >= 0
    assert spec.id == parse("a f a f", hidden_size=256, name="other").id
    explicit = LayerSpec(operator="a", config={"head_dim": 64})
    assert spec.id == spec.model_copy(update={"layers": (explicit, *spec.layers[1:])}).id
    changes: list[dict[str, Any]] = [
        {"hidden_size": 512},
        {"vocab_size": 7},
        {"num_meta_tokens": 1},
        {"tie_embeddings": False},
        {"norm_eps": 1e-5},
        {"head_norm": True},
        {"max_position": 5},
        {"rope": {"theta": 1.0}},
        {"layers": spec.layers[:-1]},
    ]
    ids = [spec.model_copy(update=change).id for change in changes]
    assert len({spec.id, *ids}) == len(changes) + 1


def test_id_is_stable() -> None:
    # a change here means that stored runs no longer find their architectures
    assert parse("(a f)x2 @256", vocab_size=256).id == "6659b79dd5ee"


def test_copies_are_checked() -> None:
    spec = parse("a f @256")
    assert spec.model_copy(update={"hidden_size": 512}).configs[0].hidden_size == 512
    with pytest.raises(ValueError, match="multiple of the head width"):
        spec.model_copy(update={"hidden_size": 100})


def test_specs_hash_and_compare_by_value() -> None:
    first, second = parse("a f @256"), parse("a f @256")
    assert first.id
    assert first == second
    assert len({first, second}) == 1


def test_no_layers_at_all() -> None:
    spec = parse("@64")
    assert (spec.layers, spec.configs, spec.num_layers, spec.notation) == ((), (), 0, "@64")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"colour": 1}, "architecture has no field 'colour'"),
        ({"hidden_size": None}, "architecture: hidden_size is wrong"),
        ({"vocab_size": 0}, "architecture: vocab_size is wrong"),
        ({"layers": ({"operator": "f"}, {"operator": "q"})}, "layers[1]: unknown operator 'q'"),
        ({"layers": ({"operator": "f", "conf": {}},)}, "layers[0] has no field 'conf'"),
        ({"layers": ({},)}, "layers[0] needs a field 'operator'"),
        (
            {"layers": ({"operator": "a", "config": {"colour": 1}},)},
            "layers[0]: attention config has no field 'colour'",
        ),
        (
            {"layers": ({"operator": "f"}, {"operator": "a"}), "hidden_size": 100},
            "layers[1]: attention config: hidden_size must be a multiple of the head width 64",
        ),
        (
            {"layers": ({"operator": "a", "config": {"hidden_size": 1}},)},
            "layers[0]: hidden_size is the architecture's",
        ),
    ],
)
def test_one_sentence_for_bad_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        ArchSpec.create(**{"hidden_size": 256, "layers": (), **fields})
    assert "\n" not in str(caught.value)


class TestLoad:
    def test_preset(self) -> None:
        assert load("qwen3-0.6b").name == "qwen3-0.6b"

    def test_pattern(self) -> None:
        assert load("(a f)x2 @256").num_layers == 4
        with pytest.raises(ValueError, match="needs a hidden size"):
            load("a f")

    def test_file(self, tmp_path: Path) -> None:
        spec = parse("a f @256", name="mine")
        path = tmp_path / "arch.json"
        path.write_text(spec.model_dump_json())
        assert load(str(path)) == spec

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "the architecture is not JSON"),
            ("[]", "must be a JSON object; got list"),
            ('{"layers": []}', "architecture needs a field 'hidden_size'"),
            ('{"layers": [], "hidden_size": 4, "x": 1}', "architecture has no field 'x'"),
        ],
    )
    def test_bad_file_is_named(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "arch.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"arch\.json: ") as caught:
            load(str(path))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            load(str(tmp_path / "no.json"))

    def test_typo_names_the_nearest_preset(self) -> None:
        with pytest.raises(ValueError, match=r"did you mean 'qwen3-0\.6b'"):
            load("qwen3-06b")

    def test_hidden_size_given_twice(self) -> None:
        assert parse("a @256", hidden_size=256).hidden_size == 256
        with pytest.raises(ValueError, match="hidden_size is 512, but the pattern says @256"):
            parse("a @256", hidden_size=512)
