"""One layer: pre-norm, mixer, residual. Legend: B rows, T tokens, H hidden size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn

from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.fused.dispatch import find_step
from archsearch.operators.layer import Mixer
from archsearch.operators.layer import State
from archsearch.operators.sequence import SequenceInfo


class Layer(nn.Module):
    """h + mixer(norm(h))."""

    def __init__(self, mixer: Mixer, norm_eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(mixer.config.hidden_size, norm_eps)
        self.mixer = mixer

    def forward(
        self, h: Tensor, *, state: State | None = None, seq: SequenceInfo | None = None
    ) -> Tensor:
        """Residual stream h[B,T,H] in and out: training and prefill."""
        return h + self.mixer(self.norm(h), state=state, seq=seq)

    def step(self, h: Tensor, state: State, position: Tensor, active: Tensor) -> Tensor:
        """Residual stream h[B,H] in and out: decode of one token per active row."""
        run = find_step(self.mixer, self.norm, h)
        if run is None:
            return self.mixer.step(h, state, position, active, self.norm)
        return run(self.mixer, self.norm, h.contiguous(), state, position, active)

    def init_weights(self, generator: torch.Generator) -> None:
        """The norm begins at one, the mixer as it says."""
        self.norm.reset()
        self.mixer.init_weights(generator)
