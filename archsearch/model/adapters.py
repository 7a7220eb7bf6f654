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
    places = [
        (index, name)
        for index, layer in enumerate(layers)
        for name in READ_ALONE.get(layer.mixer.operator, ())
    ]
    for index, name in places:
        mixer = layers[index].mixer
        found = getattr(mixer, name)
        if isinstance(found, nn.Linear):
            continue
        indices, names = zip(*places, strict=True)
        pattern = rf".*layers\.({_any(indices)})\.mixer\.({_any(names)})"
        raise ValueError(
            f"{name} of layer {index} ({mixer.operator}) is an adapter"
            f" ({type(found).__module__}.{type(found).__name__}) that may have no effect: the"
            f" weights of {', '.join(READ_ALONE[mixer.operator])} are read without a call; leave"
            f" out what matches {pattern!r} (PEFT: exclude_modules)"
        )


def _any(options: Iterable[object]) -> str:
    return "|".join(map(str, dict.fromkeys(options)))
