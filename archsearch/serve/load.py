"""Models that can be talked to: checkpoints, and architectures with weights drawn at random."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from archsearch.model import HybridLM
from archsearch.model import build
from archsearch.serve.messages import ByteWords
from archsearch.serve.messages import PretrainedWords
from archsearch.serve.messages import Words
from archsearch.space import ArchSpec
from archsearch.train import hub

HUB_NAME = re.compile(r"[\w-]+/[\w.-]+")


def is_checkpoint(source: str) -> bool:
    """Whether `source` is a folder with a model's config, or looks like a name on the hub."""
    folder = Path(source)
    if folder.exists():
        return (folder / "config.json").is_file()
    return bool(HUB_NAME.fullmatch(source)) and not source.endswith(".json")


def pretrained(source: str, *, device: str, dtype: str) -> tuple[HybridLM, Words]:
    """Load model and tokenizer from a folder or by name; raises ValueError or OSError for what
    cannot be loaded, or is no architecture of this zoo."""
    transformers: Any = import_module("transformers")
    # makes the Auto classes know our models
    import_module("archsearch.hf")
    with hub.quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, dtype)
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    inner = getattr(model, "model", None)
    if not isinstance(inner, HybridLM):
        raise ValueError(f"{source} is a {type(model).__name__}, which archsearch does not run")
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return inner.to(device).eval(), PretrainedWords(tokenizer, ends)


def drawn(spec: ArchSpec, *, device: str, dtype: str, seed: int = 0) -> tuple[HybridLM, Words]:
    """A model of `spec` that knows nothing, which is enough to see how fast it is."""
    if spec.vocab_size < 256:
        raise ValueError(
            f"bytes need a vocabulary of 256; the architecture's is {spec.vocab_size}"
        )
    return build(spec, seed=seed, device=device, dtype=getattr(torch, dtype)), ByteWords()
