"""Callbacks for `transformers.Trainer`."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from archsearch.model import HybridLM
from archsearch.model import normalize_weights_


class WeightNormCallback(TrainerCallback):  # type: ignore[misc]
    """Weight normalisation after every optimiser step, as `archsearch.model.weight_norm` says;
    what an adapter wraps stays as it is."""

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """transformers' hook."""
        for module in model.modules():
            if isinstance(module, HybridLM):
                normalize_weights_(module)
