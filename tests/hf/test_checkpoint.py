"""Released checkpoints load strictly, both ways, in every form they come in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig
from transformers import AutoModelForCausalLM

from archsearch.hf import ArchSearchConfig
from archsearch.hf import ArchSearchForCausalLM
from archsearch.hf import NemotronFlashConfig
from archsearch.hf import NemotronFlashForCausalLM
from archsearch.space import parse
from archsearch.space import presets

Write = Callable[..., Path]
IDS = torch.arange(3, 40)[None]


@pytest.mark.parametrize("files", [1, 3])
def test_loads_every_tensor_and_saves_the_same_file(
    write_checkpoint: Write, released_tensors: dict[str, Tensor], tmp_path: Path, files: int
) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_checkpoint(files=files))
    assert type(model) is NemotronFlashForCausalLM
    assert not model.training
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == released_tensors.keys()
    assert all(torch.equal(again[name], value) for name, value in released_tensors.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_is_exact(write_checkpoint: Write, tmp_path: Path, dtype: torch.dtype) -> None:
    model = NemotronFlashForCausalLM.from_pretrained(write_checkpoint(), dtype=dtype)
    model.save_pretrained(tmp_path / "again", max_shard_size="100KB")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 3
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert again.dtype == dtype
    assert again.config.to_spec().id == model.config.to_spec().id
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, again(IDS).logits)


def test_config_file_comes_back_as_it_was(
    write_checkpoint: Write, released_config: dict[str, Any], tmp_path: Path
) -> None:
    config = AutoConfig.from_pretrained(write_checkpoint())
    assert type(config) is NemotronFlashConfig
    config.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    del again["transformers_version"], released_config["transformers_version"]
    assert again == released_config


def test_options_reach_config_and_weights(write_checkpoint: Write) -> None:
    folder = write_checkpoint(dtype="bfloat16")
    for dtype, expected in (("auto", torch.bfloat16), ("float16", torch.float16)):
        model = NemotronFlashForCausalLM.from_pretrained(folder, dtype=dtype, rms_norm_eps=1e-5)
        assert model.dtype == expected
        assert model.model.head.norm.eps == 1e-5
    model, report = NemotronFlashForCausalLM.from_pretrained(
        folder.parent, subfolder=folder.name, output_loading_info=True
    )
    assert model.dtype == torch.bfloat16
    assert not report["missing_keys"]
    config = AutoConfig.from_pretrained(folder)
    model = NemotronFlashForCausalLM.from_pretrained(
        folder, config=config, attn_implementation="sdpa"
    )
    assert model.config.attn_implementation_new == "sdpa"
    assert config.attn_implementation_new == "fused_mha"


def test_trust_remote_code_changes_nothing(write_checkpoint: Write) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_checkpoint(), trust_remote_code=True)
    assert type(model) is NemotronFlashForCausalLM


def test_tied_head_with_a_zero_padding_row(model: NemotronFlashForCausalLM) -> None:
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with torch.inference_mode():
        logits = model(IDS).logits
    assert torch.equal(logits[..., 0], torch.zeros_like(logits[..., 0]))
    assert logits.isfinite().all()


def test_untied_head_is_read_and_written(
    write_checkpoint: Write, released_tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    head = torch.randn(97, 128, generator=torch.Generator().manual_seed(7))
    tensors = {**released_tensors, "lm_head.weight": head}
    model = AutoModelForCausalLM.from_pretrained(
        write_checkpoint(tensors, tie_word_embeddings=False)
    )
    assert torch.equal(model.get_output_embeddings().weight, head)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(load_file(tmp_path / "again" / "model.safetensors")["lm_head.weight"], head)


def test_a_tied_head_may_lie_in_the_file_if_it_is_the_embedding(
    write_checkpoint: Write, released_tensors: dict[str, Tensor]
) -> None:
    embedding = released_tensors["model.embed_tokens.weight"]
    same = {**released_tensors, "lm_head.weight": embedding.clone()}
    model = NemotronFlashForCausalLM.from_pretrained(write_checkpoint(same))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    other = {**released_tensors, "lm_head.weight": embedding + 1}
    with pytest.raises(ValueError, match=r"tie_word_embeddings is true, but lm_head\.weight"):
        NemotronFlashForCausalLM.from_pretrained(write_checkpoint(other))


def damaged(tensors: dict[str, Tensor], damage: str) -> dict[str, Tensor]:
    tensors = dict(tensors)
    if damage == "missing":
        del tensors["model.layers.0.gla.q_conv1d.weight"]
    elif damage == "many missing":
        tensors = {name: value for name, value in tensors.items() if "ffn" not in name}
    elif damage == "unexpected":
        tensors["model.layers.0.gla.g_proj.weight"] = torch.zeros(3)
    elif damage == "shape":
        tensors["model.layers.2.mamba.A_log"] = torch.zeros(5)
    elif damage == "another kind":
        tensors["model.layers.0.self_attn.q_proj.weight"] = tensors.pop(
            "model.layers.0.gla.q_proj.weight"
        )
    elif damage == "nan":
        tensors["model.layers.4.self_attn.k_proj.weight"][1, 2] = torch.nan
    elif damage == "infinite":
        tensors["model.memory_tokens"] = tensors["model.memory_tokens"].index_fill(
            0, torch.tensor([0]), torch.inf
        )
    return tensors


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"missing model\.layers\.0\.gla\.q_conv1d\.weight$"),
        ("many missing", r"missing model\.layers\.1\.ffn\..* and 11 more$"),
        ("unexpected", r"unexpected model\.layers\.0\.gla\.g_proj\.weight$"),
        ("shape", r"of another shape model\.layers\.2\.mamba\.A_log \(5,\) instead of \(4,\)$"),
        (
            "another kind",
            r"missing model\.layers\.0\.gla\.q_proj\.weight;"
            r" unexpected model\.layers\.0\.self_attn\.q_proj\.weight$",
        ),
        ("nan", r"not finite: model\.layers\.4\.self_attn\.k_proj\.weight$"),
        ("infinite", r"not finite: model\.memory_tokens$"),
    ],
)
def test_what_does_not_fit_is_named(
    write_checkpoint: Write, released_tensors: dict[str, Tensor], damage: str, message: str
) -> None:
    folder = write_checkpoint(damaged(released_tensors, damage))
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(folder)


def test_an_untied_head_that_is_missing_is_named(write_checkpoint: Write) -> None:
    with pytest.raises(ValueError, match=r"missing lm_head\.weight$"):
        AutoModelForCausalLM.from_pretrained(write_checkpoint(tie_word_embeddings=False))


@pytest.mark.parametrize(
    ("name", "count", "tensors"),
    [("nemotron-flash-1b", 965_389_440, 155), ("nemotron-flash-3b", 2_749_998_624, 231)],
)
def test_full_size_names_and_shapes(
    released_shapes: Callable[[dict[str, Any]], dict[str, tuple[int, ...]]],
    name: str,
    count: int,
    tensors: int,
) -> None:
    spec = presets.get(name)
    config = NemotronFlashConfig.from_spec(spec)
    assert config.to_spec().id == spec.id
    with torch.device("meta"):
        model = NemotronFlashForCausalLM(config)
    expected = released_shapes(config.to_dict())
    names = model.file_names
    found = {names[key]: tuple(value.shape) for key, value in model.state_dict().items()}
    del found["lm_head.weight"]
    assert found == expected
    assert len(found) == tensors
    assert model.num_parameters() == count


def test_any_architecture_takes_the_same_road(tmp_path: Path) -> None:
    spec = parse("(gd f w f m1 r7 f)x1 @64", vocab_size=50, num_meta_tokens=3, name="mine")
    model = ArchSearchForCausalLM(ArchSearchConfig.from_spec(spec, pad_token_id=0)).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is ArchSearchForCausalLM
    assert again.config.to_spec() == model.config.to_spec()
    assert again.config.to_spec().id == spec.id
    assert again.config == model.config or again.config.dtype != model.config.dtype
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, again(IDS).logits)


def test_weights_are_drawn_from_torchs_seed() -> None:
    config = ArchSearchConfig.from_spec(parse("d f a f @64", vocab_size=50))
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(ArchSearchForCausalLM(config).model.embed.weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
