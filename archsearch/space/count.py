"""Exact sizes of an architecture: parameters, FLOPs, state. Contexts count real tokens; meta
tokens are added here, since they are computed, cached and attended to like any other."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace

from archsearch import operators
from archsearch.operators import Cost
from archsearch.operators import Shape
from archsearch.space.spec import ArchSpec


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a model keeps: its parameters, the state of all rows, and in training
    gradients and the two moments of AdamW, all in one dtype. Activations are not counted."""

    parameters: int
    state: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.state + self.gradients + self.optimizer


def layer_shape(spec: ArchSpec, shape: Shape) -> Shape:
    """What every layer sees when the model sees `shape`: the meta tokens come first."""
    return replace(shape, context=shape.context + spec.num_meta_tokens)


def layers(spec: ArchSpec, shape: Shape) -> list[Cost]:
    """Cost of every layer's mixer (pre-norm not counted), the model seeing `shape`."""
    seen = layer_shape(spec, shape)
    return [
        operators.get(layer.operator).cost(config, seen)
        for layer, config in zip(spec.layers, spec.configs, strict=True)
    ]


def parameter_parts(spec: ArchSpec) -> dict[str, int]:
    """Parameters by part: embedding, meta_tokens, norms, mixers, head (0 where tied)."""
    table = spec.vocab_size * spec.hidden_size
    return {
        "embedding": table,
        "meta_tokens": spec.num_meta_tokens * spec.hidden_size,
        "norms": (len(spec.layers) + 1) * spec.hidden_size,
        "mixers": sum(cost.parameters for cost in layers(spec, Shape())),
        "head": 0 if spec.tie_embeddings else table,
    }


def parameters(spec: ArchSpec) -> int:
    """All parameters, a tied embedding counted once."""
    return sum(parameter_parts(spec).values())


def flops_per_token(spec: ArchSpec, context: int) -> int:
    """FLOPs of decoding one token that has `context` tokens behind it: mixers and head."""
    mixers = sum(cost.flops for cost in layers(spec, Shape("decode", context=context)))
    return mixers + 2 * spec.vocab_size * spec.hidden_size


def step_bytes(spec: ArchSpec, shape: Shape) -> int:
    """Bytes that one decode step of `shape` moves at least: weights and caches read, states read
    and written, and the head; of the embedding only rows are read."""
    head = spec.vocab_size * spec.hidden_size + parameter_parts(spec)["norms"]
    return head * shape.element_bytes + sum(cost.bytes for cost in layers(spec, shape))


def state_bytes(spec: ArchSpec, context: int, batch: int = 1, dtype: str = "float32") -> int:
    """Bytes of decode state that `batch` rows of `context` tokens keep."""
    shape = Shape("decode", batch=batch, context=context, dtype=dtype)
    return sum(cost.state_bytes for cost in layers(spec, shape))


def memory(spec: ArchSpec, shape: Shape) -> Memory:
    """What `spec` keeps in memory at `shape`, the state as it is at that context."""
    weights = parameters(spec) * shape.element_bytes
    if shape.phase == "train":
        return Memory(weights, 0, weights, 2 * weights)
    return Memory(weights, state_bytes(spec, shape.context, shape.batch, shape.dtype), 0, 0)
