"""Token data, recipes and the one training loop.

Names load when they are first asked for: a search reads recipes where torch need not be.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING
from typing import Any

from archsearch.train.recipe import Recipe

if TYPE_CHECKING:
    from archsearch.train.data import TokenData
    from archsearch.train.data import load
    from archsearch.train.loop import TrainResult
    from archsearch.train.loop import evaluate
    from archsearch.train.loop import train
    from archsearch.train.tokenizer import Tokenizer
    from archsearch.train.tokenizer import load_tokenizer

_MODULES = {
    "TokenData": "data",
    "load": "data",
    "TrainResult": "loop",
    "evaluate": "loop",
    "train": "loop",
    "Tokenizer": "tokenizer",
    "load_tokenizer": "tokenizer",
}

__all__ = [
    "Recipe",
    "TokenData",
    "Tokenizer",
    "TrainResult",
    "evaluate",
    "load",
    "load_tokenizer",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
