"""The optimiser: what is decayed, and the learning rate of every step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from archsearch.model import HybridLM
from archsearch.train.recipe import Recipe


def parameter_groups(model: HybridLM, weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups: the weights of the layers' linear maps, decayed, and all the rest.

    Not decayed: norms, biases, gates and decay rates (A_log, dt_bias, ...), convolutions and
    meta tokens, whose scale has a meaning of its own; and the embedding with the head, tied
    or not, because decay would shrink the rows of tokens that hardly ever occur.
    """
    maps = [module for module in model.layers.modules() if isinstance(module, nn.Linear)]
    decayed = [module.weight for module in maps]
    known = {id(weight) for weight in decayed}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: HybridLM, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; without decay where the recipe normalises weights."""
    decay = 0.0 if recipe.weight_norm else recipe.weight_decay
    groups = parameter_groups(model, decay)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)


def lr_at(step: int, recipe: Recipe) -> float:
    """Learning rate of 0-based `step`: linear warm-up, then a cosine that ends at
    `min_lr_ratio` of the peak in the last step."""
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    last = max(recipe.steps - 1 - recipe.warmup_steps, 1)
    progress = min((step - recipe.warmup_steps) / last, 1.0)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return recipe.lr * (recipe.min_lr_ratio + (1 - recipe.min_lr_ratio) * cosine)
