"""What `--model` may be."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch

from archsearch.model import HybridLM
from archsearch.serve import drawn
from archsearch.serve import is_checkpoint
from archsearch.serve import pretrained
from archsearch.space import parse


def test_what_is_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    (tmp_path / "run").mkdir()
    assert is_checkpoint(str(tmp_path / "model"))
    assert is_checkpoint("nvidia/Nemotron-Flash-1B")
    for other in ("run", "missing/model/deep"):
        assert not is_checkpoint(str(tmp_path / other))
    for other in ("nemotron-flash-1b", "(a f)x4 @256", "a", "./arch.json"):
        assert not is_checkpoint(other)


def test_bytes_need_a_vocabulary() -> None:
    with pytest.raises(ValueError, match="256"):
        drawn(parse("a f @64", vocab_size=200), device="cpu", dtype="float32")
    model, words = drawn(parse("a f @64", vocab_size=300), device="cpu", dtype="bfloat16")
    assert model.embed.weight.dtype == torch.bfloat16
    assert words.decode([72, 105, 299]).startswith("Hi")


def test_a_saved_model(tmp_path: Path) -> None:
    hf = pytest.importorskip("archsearch.hf")
    transformers = import_module("transformers")
    tokenizers = import_module("tokenizers")
    config = hf.ArchSearchConfig.from_spec(parse("d f a f @64", vocab_size=40))
    hf.ArchSearchForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises((ValueError, OSError)):
        pretrained(str(tmp_path), device="cpu", dtype="float32")
    vocabulary = {"</s>": 0, "hello": 1, "?": 2}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(
            tokenizers.models.WordLevel(vocabulary, unk_token="?")
        ),
        eos_token="</s>",
    ).save_pretrained(tmp_path)
    model, words = pretrained(str(tmp_path), device="cpu", dtype="float32")
    assert isinstance(model, HybridLM)
    assert not model.training
    assert words.stop == (0,)
    assert words.ends == ("</s>",)
    assert words.encode("hello", begins=True) == [1]
