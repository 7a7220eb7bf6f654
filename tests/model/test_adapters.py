"""Adapters: every projection is called, or refuses one; every door says so."""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn

from archsearch import operators
from archsearch.generate import generate
from archsearch.hf import ArchSearchConfig
from archsearch.hf import ArchSearchForCausalLM
from archsearch.model import HybridLM
from archsearch.model import build
from archsearch.model.adapters import READ_ALONE
from archsearch.space import parse

IDS = torch.arange(3, 20)[None]
PREFIX = "model.layers.{}.mixer.{}"


class Adapter(nn.Module):
    """Adds to what a projection gives, and has its weights, as LoRA's wrapper does."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.base(x) + 1


def projections(mixer: nn.Module) -> list[str]:
    return [name for name, module in mixer.named_modules() if isinstance(module, nn.Linear)]


def put(mixer: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put `module` in that place; returns what was there."""
    place, _, last = name.rpartition(".")
    owner = mixer.get_submodule(place)
    before = getattr(owner, last)
    setattr(owner, last, module)
    return before


@pytest.mark.parametrize("code", [operator.code for operator in operators.OPERATORS])
def test_every_projection_is_called_or_refuses(code: str) -> None:
    model = build(parse(f"{code} f @64", vocab_size=50), seed=0).eval()
    layer = model.decoder[0]
    refusing = READ_ALONE.get(layer.mixer.operator, ())
    assert {*refusing} <= {*projections(layer.mixer)}
    with torch.inference_mode():
        state = model.init_state(1, 32)
        model.prefill(IDS, state)
        plain = model(IDS), model.step(IDS[:, 0], deepcopy(state))
        for name in projections(layer.mixer):
            before = put(layer.mixer, name, Adapter(layer.mixer.get_submodule(name)))
            if name in refusing:
                with pytest.raises(ValueError, match=f"{name} of layer 0"):
                    model(IDS)
            else:
                adapted = model(IDS), model.step(IDS[:, 0], deepcopy(state))
                for one, other in zip(plain, adapted, strict=True):
                    assert not torch.equal(one, other), name
            put(layer.mixer, name, before)
        assert torch.equal(model(IDS), plain[0])


DOORS: dict[str, Callable[[ArchSearchForCausalLM, HybridLM], Any]] = {
    "forward": lambda hf, lm: hf(IDS),
    "generate": lambda hf, lm: hf.generate(IDS, max_new_tokens=2, do_sample=False),
    "released": lambda hf, lm: hf.generate_with_cache(IDS, max_new_tokens=2),
    "graph": lambda hf, lm: hf.init_cuda_graph_generation(max_new_tokens=2, max_prompt=32),
    "engine": lambda hf, lm: generate(lm, IDS.tolist(), max_new_tokens=2),
    "loss": lambda hf, lm: lm.loss(IDS),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_door_names_what_to_leave_out(door: str) -> None:
    spec = parse("m1 f m2 mla m1 @64", vocab_size=50)
    model = ArchSearchForCausalLM(ArchSearchConfig.from_spec(spec))
    DOORS[door](model, model.model)
    mixer = model.model.decoder[4].mixer
    put(mixer, "dt_proj", Adapter(mixer.get_submodule("dt_proj")))
    with pytest.raises(ValueError, match=r"dt_proj of layer 4 \(mamba\) .* may have no") as told:
        DOORS[door](model, model.model)
    found = re.search("matches ('.*') ", str(told.value))
    assert found, told.value
    pattern = literal_eval(found[1])
    left_out = [PREFIX.format(n, name) for n, name in ((0, "x_proj"), (3, "kv_b_proj"))]
    kept = [PREFIX.format(n, name) for n, name in ((2, "in_proj"), (0, "out_proj"))]
    assert all(re.fullmatch(pattern, name) for name in left_out)
    assert not any(re.fullmatch(pattern, name) for name in kept)
