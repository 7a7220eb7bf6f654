"""Named recipes of short training."""

from __future__ import annotations

from archsearch.names import suggestion
from archsearch.train.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    # seconds for 0.5M-3M parameters on two cores; many small steps beat few large ones
    "cpu": Recipe(
        steps=90, batch_size=4, seq_len=128, lr=3e-3, warmup_steps=10, eval_tokens=12288
    ),
}


def get(name: str) -> Recipe:
    """Look a recipe up; raises ValueError that names what exists."""
    if name in RECIPES:
        return RECIPES[name]
    hint = suggestion(name, RECIPES)
    raise ValueError(f"unknown recipe {name!r}; {hint}there is {', '.join(RECIPES)}")
