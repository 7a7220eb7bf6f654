"""Final norm and logits. Legend: H hidden size, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn

from archsearch.operators.common.norm import RMSNorm

# rows whose norms are computed at a time
ROWS = 4096


class LMHead(nn.Module):
    """Final norm, then logits; with `head_norm` each logit is divided by the norm of its row
    of the head (an all-zero row, a padding token's, gives logit 0 and takes no gradient)."""

    def __init__(
        self, hidden_size: int, vocab_size: int, *, norm_eps: float, head_norm: bool
    ) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden_size, norm_eps)
        self.proj = nn.Linear(hidden_size, vocab_size, bias=False)
        self.head_norm = head_norm
        self._inverse: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, h: Tensor) -> Tensor:
        """fp32 logits[..., V] of the residual stream h[..., H]."""
        logits = self.proj(self.norm(h)).float()
        return logits * self.inverse_norms() if self.head_norm else logits

    def inverse_norms(self) -> Tensor:
        """1 / norm of each row [V] in fp32, 0 for a zero row; kept until the weight changes."""
        weight = self.proj.weight
        if torch.is_grad_enabled() and weight.requires_grad:
            return _inverse_row_norms(weight)
        key = (weight.data_ptr(), weight._version)
        if self._inverse is None or self._inverse[0] != key:
            # a frozen head is trained around: what is kept must not be an inference tensor
            with torch.inference_mode(False), torch.no_grad():
                self._inverse = (key, _inverse_row_norms(weight))
        return self._inverse[1]


def _inverse_row_norms(weight: Tensor) -> Tensor:
    # in parts: the squares of all rows in fp32 would take more memory than the weights
    square = torch.cat([part.float().square().sum(1) for part in weight.split(ROWS)])
    empty = square == 0
    return square.masked_fill(empty, 1.0).rsqrt().masked_fill(empty, 0.0)
