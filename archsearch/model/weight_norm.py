"""Weight normalisation as published with Nemotron-Flash (arXiv 2511.18890, section 3.3).

After every optimiser step a matrix that reads hidden features has its rows scaled to unit
norm, and one whose output is added to the residual stream its columns: each mixer names them
in `READS` and `WRITES`. A gate (`b_proj`, `a_proj`, both halves of a low-rank one, Mamba's
`x_proj` and `dt_proj`) reads features too; a projection that makes several things at once, as
`in_proj` of the Mambas does, needs no parts, since its rows are scaled one by one.

The paper does not say what happens to the rest; here it is left alone, for these reasons.
Embeddings and head: a row's length says how much a token differs from the others, with
`head_norm` the logits are divided by the row norms anyway, and a padding token's zero row must
stay zero. Convolutions, decay rates, biases and norm weights:
vectors per channel, not maps between features. Meta tokens: they are inputs, not weights.
"""

from __future__ import annotations

import torch
from torch import nn

from archsearch.model.lm import HybridLM


@torch.no_grad()
def normalize_weights_(model: HybridLM) -> None:
    """Project the weights of all mixers in place; a zero row or column stays zero."""
    for layer in model.decoder:
        modules = dict(layer.mixer.named_modules())
        for names, dim in ((layer.mixer.READS, 1), (layer.mixer.WRITES, 0)):
            for name in names:
                # a config may leave a projection out (an output gate, for example)
                if isinstance(module := modules.get(name), nn.Linear):
                    norm = module.weight.float().norm(dim=dim, keepdim=True)
                    module.weight.div_(norm.masked_fill(norm == 0, 1.0))
