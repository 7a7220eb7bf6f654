"""Where an adapter, such as PEFT's LoRA, would have no effect."""

from __future__ import annotations

from torch import nn

from archsearch.model import HybridLM
from archsearch.model import Layer

# projections whose weights are read without calling the module, by some backend or by all
READ_ALONE = {"mamba": ("in_proj", "x_proj", "dt_proj"), "mla": ("kv_b_proj",)}


def refuse_unheard(model: HybridLM) -> None:
    """Raise ValueError where something stands in the place of a projection that nobody calls."""
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        operator = layer.mixer.operator
        names = READ_ALONE.get(operator, ())
        for name in names:
            found = getattr(layer.mixer, name)
            if not isinstance(found, nn.Linear):
                raise ValueError(
                    f"{name} of layer {index} ({operator}) is an adapter ({type(found).__module__}"
                    f".{type(found).__name__}), which would have no effect: the weights of"
                    f" {', '.join(names)} are read without calling it; leave them out"
                    f" (exclude_modules={[*names]})"
                )
