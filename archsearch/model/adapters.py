"""Where an adapter, such as PEFT's LoRA, would have no effect."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence

from torch import nn

from archsearch.model.layer import Layer

# projections whose weights are read without calling the module, by some backend or by all
READ_ALONE = {"mamba": ("in_proj", "x_proj", "dt_proj"), "mla": ("kv_b_proj",)}


def refuse_unheard(layers: Sequence[Layer]) -> None:
    """Raise ValueError where something stands in the place of a projection whose weights may be
    read without a call."""
    for index, layer in enumerate(layers):
        names = READ_ALONE.get(layer.mixer.operator, ())
        for name in names:
            found = getattr(layer.mixer, name)
            if not isinstance(found, nn.Linear):
                alike = [n for n, one in enumerate(layers) if one.mixer.operator in READ_ALONE]
                every = dict.fromkeys(name for n in alike for name in _names(layers[n]))
                pattern = rf".*layers\.({_any(alike)})\.mixer\.({_any(every)})"
                raise ValueError(
                    f"{name} of layer {index} ({layer.mixer.operator}) is an adapter"
                    f" ({type(found).__module__}.{type(found).__name__}) that may have no effect:"
                    f" the weights of {', '.join(names)} are read without a call; leave out what"
                    f" matches {pattern!r} (PEFT: exclude_modules)"
                )


def _names(layer: Layer) -> tuple[str, ...]:
    return READ_ALONE[layer.mixer.operator]


def _any(options: Iterable[object]) -> str:
    return "|".join(map(str, options))
