"""Feed-forward network: no mixing over time, no state. Legend: B rows, T tokens, H hidden."""

from __future__ import annotations

from torch import Tensor
from torch import nn
from torch.nn import functional as F

from archsearch.operators.ffn import reference
from archsearch.operators.ffn.config import FFNConfig
from archsearch.operators.layer import Mixer
from archsearch.operators.layer import State
from archsearch.operators.sequence import Rows


class FFN(Mixer):
    """down(silu(gate x) * up x), or down(relu(up x)^2)."""

    operator = "ffn"
    READS = ("gate_proj", "up_proj")
    WRITES = ("down_proj",)

    def __init__(self, config: FFNConfig) -> None:
        super().__init__(config)
        hidden, width = config.hidden_size, config.intermediate_size
        self.gate_proj = (
            nn.Linear(hidden, width, bias=False) if config.activation == "swiglu" else None
        )
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: State | None) -> Tensor:
        """See `Mixer.mix`."""
        return self.transform(x)

    def mix_step(self, x: Tensor, state: State, position: Tensor, active: Tensor) -> Tensor:
        """See `Mixer.mix_step`."""
        return self.transform(x)

    def transform(self, x: Tensor) -> Tensor:
        """The network itself on x[..., H]."""
        plain = self.backend(x) == "reference"
        up = self.up_proj(x)
        if self.gate_proj is None:
            return self.down_proj(reference.relu2(up) if plain else F.relu(up).square())
        gate = self.gate_proj(x)
        return self.down_proj(reference.swiglu(gate, up) if plain else F.silu(gate) * up)
