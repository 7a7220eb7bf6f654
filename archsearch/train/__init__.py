"""Token data, recipes and the one training loop."""

from archsearch.train.data import TokenData
from archsearch.train.data import load
from archsearch.train.loop import TrainResult
from archsearch.train.loop import evaluate
from archsearch.train.loop import train
from archsearch.train.recipe import Recipe
from archsearch.train.tokenizer import Tokenizer
from archsearch.train.tokenizer import load_tokenizer

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
