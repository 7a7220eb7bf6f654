"""Settings of Kimi Delta Attention."""

from __future__ import annotations

from archsearch.operators.deltanet.config import DeltaNetConfig


class KDAConfig(DeltaNetConfig):
    """Defaults as DeltaNet's: head width 128 (64 below hidden size 1024) for keys and values,
    heads that fill the width. The low-rank gates are as narrow as one head's values."""
