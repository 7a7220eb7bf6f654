"""Names of tensors: the released checkpoints' and ours, one table for loading and saving.

released                                      ours
model.embed_tokens.weight                     model.embed.weight
model.memory_tokens                           model.meta_tokens
model.layers.0.input_layernorm.weight         model.layers.0.norm.weight
model.layers.0.gla.q_conv1d.weight            model.layers.0.mixer.q_conv.weight
model.final_layernorm.weight                  model.head.norm.weight
lm_head.weight                                model.head.proj.weight
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from archsearch.model import HybridLM
from archsearch.space import ArchSpec

# of the skin, in which the HybridLM is called "model"
HEAD, EMBEDDING = "model.head.proj.weight", "model.embed.weight"

OUTSIDE = {
    "embed.weight": "model.embed_tokens.weight",
    "meta_tokens": "model.memory_tokens",
    "head.norm.weight": "model.final_layernorm.weight",
    "head.proj.weight": "lm_head.weight",
}
# operator -> (name of the norm before it, name of the mixer)
LAYER = {
    "deltanet": ("input_layernorm", "gla"),
    "mamba2": ("input_layernorm", "mamba"),
    "attention": ("input_layernorm", "self_attn"),
    "ffn": ("pre_ffn_layernorm", "ffn"),
}
# parts of a mixer with another name
PARTS = {"q_conv": "q_conv1d", "k_conv": "k_conv1d", "v_conv": "v_conv1d"}


def released_names(spec: ArchSpec) -> dict[str, str]:
    """Our name -> released name of every tensor of a Nemotron-Flash `spec`, head included."""
    with torch.device("meta"):
        tensors = HybridLM(spec).state_dict()
    return {f"model.{name}": _released(name, spec) for name in tensors}


def _released(name: str, spec: ArchSpec) -> str:
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, index, part, *rest = name.split(".")
    norm, mixer = LAYER[spec.layers[int(index)].operator]
    part = {"norm": norm, "mixer": mixer}[part]
    return ".".join(["model.layers", index, part, *(PARTS.get(word, word) for word in rest)])


def rename(
    tensors: Mapping[str, torch.Tensor], names: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """The tensors under their new names; one that has none keeps its own."""
    return {names.get(name, name): tensor for name, tensor in tensors.items()}
