"""The layers that cases are measured with: built where they stay, and shared within a group."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from archsearch import operators
from archsearch.latency.cases import PARTS
from archsearch.latency.cases import Case
from archsearch.latency.parts import build_part
from archsearch.latency.plan import Group
from archsearch.latency.plan import group_of
from archsearch.model import HybridLM
from archsearch.model import Layer

NORM_EPS = 1e-6


class Shelf:
    """Distinct layers (or, of embedding and head, models without layers) of the last group that
    was asked for."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._group: Group | None = None
        self._modules: list[nn.Module] = []

    def layers(self, case: Case, count: int) -> list[Layer]:
        """`count` layers of the case's operator."""
        return [module for module in self._take(case, count) if isinstance(module, Layer)]

    def parts(self, case: Case, count: int) -> list[HybridLM]:
        """`count` models that consist of the case's part."""
        return [module for module in self._take(case, count) if isinstance(module, HybridLM)]

    def clear(self) -> None:
        """Let go of everything, and give the device's memory back."""
        self._group = None
        self._modules.clear()
        if self.device.startswith("cuda"):
            gc.collect()
            torch.cuda.empty_cache()

    def _take(self, case: Case, count: int) -> list[nn.Module]:
        if group_of(case) != self._group:
            if self._modules:
                self.clear()
            self._group = group_of(case)
        while len(self._modules) < count:
            with made_on(self.device):
                self._modules.append(self._build(case))
        return self._modules[:count]

    def _build(self, case: Case) -> nn.Module:
        if case.operator in PARTS:
            return build_part(case, self.device)
        operator = operators.get(case.operator)
        config = operator.configure(case.hidden_size, **json.loads(case.config))
        layer = Layer(operator.build(config), NORM_EPS)
        seed = len(self._modules)
        layer.init_weights(torch.Generator(self.device).manual_seed(seed))
        return layer.to(device=self.device, dtype=getattr(torch, case.dtype))


@contextmanager
def made_on(device: str) -> Iterator[None]:
    """Whatever is made within begins its life on `device` (weights drawn on a CPU take seconds),
    and leaves the global generators as they are."""
    index = []
    if device.startswith("cuda"):
        chosen = torch.device(device).index
        index = [torch.cuda.current_device() if chosen is None else chosen]
    # torch's own layers draw weights when they are made, which init_weights replaces
    with torch.random.fork_rng(devices=index), torch.device(device):
        yield
