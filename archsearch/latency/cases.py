"""What has to be measured: a `Case` is one row of a latency table. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from archsearch import operators
from archsearch.operators import Cost
from archsearch.operators import OperatorConfig
from archsearch.operators import Shape
from archsearch.profiles import canonical_json
from archsearch.space import ArchSpec
from archsearch.space.count import layer_shape
from archsearch.space.search_space import FFN
from archsearch.space.search_space import SearchSpace
from archsearch.space.spec import INHERITED

# the parts of a model that are no layers: embedding with the step's bookkeeping; final norm
# and logits (with the loss, in training)
EMBEDDING, HEAD = "embedding", "head"
PARTS = (EMBEDDING, HEAD)

# `context` of a row whose time does not depend on it
ANY_CONTEXT = 0


@dataclass(frozen=True, slots=True)
class Case:
    """The key of one row: everything but the backend, which the measurement finds out."""

    operator: str
    config: str
    hidden_size: int
    phase: operators.Phase
    batch: int
    context: int
    dtype: str

    @property
    def shape(self) -> Shape:
        """The shape to cost this case at."""
        return Shape(self.phase, self.batch, max(self.context, 1), self.dtype)

    def __str__(self) -> str:
        at = f"context {self.context}, " if self.context != ANY_CONTEXT else ""
        return (
            f"{self.operator} {self.config} at width {self.hidden_size}"
            f" ({self.phase}, batch {self.batch}, {at}{self.dtype})"
        )


def cases_for_spec(spec: ArchSpec, shapes: Iterable[Shape]) -> list[Case]:
    """What predicting `spec` at `shapes` needs, each once, in the order of the model."""
    return list(dict.fromkeys(case for shape in shapes for case in model_cases(spec, shape)))


def cases_for_space(space: SearchSpace, shapes: Iterable[Shape]) -> list[Case]:
    """What predicting every candidate of `space` at `shapes` needs: each of its operators, and
    the FFN, at each of its widths."""
    shapes = list(shapes)
    found: dict[Case, None] = {}
    for width, code in product(space.widths, dict.fromkeys([*space.codes, FFN])):
        spec = ArchSpec.create(**space.fields, hidden_size=width, layers=({"operator": code},))
        found.update(dict.fromkeys(cases_for_spec(spec, shapes)))
    return list(found)


def model_cases(spec: ArchSpec, shape: Shape) -> list[Case]:
    """Embedding, every layer and head of `spec` at `shape`, one case per occurrence."""
    seen = layer_shape(spec, shape)
    layers = [
        layer_case(layer.operator, config, seen)
        for layer, config in zip(spec.layers, spec.configs, strict=True)
    ]
    first, last = part_cases(spec, shape)
    return [first, *layers, last]


@lru_cache(maxsize=65536)
def layer_case(operator: str, config: OperatorConfig, shape: Shape) -> Case:
    """The row of one layer."""
    constant = shape.phase == "decode" and _is_constant(operator, config)
    return Case(
        operator,
        config_key(config),
        config.hidden_size,
        shape.phase,
        shape.batch,
        ANY_CONTEXT if constant else shape.context,
        shape.dtype,
    )


def part_cases(spec: ArchSpec, shape: Shape) -> tuple[Case, Case]:
    """The rows of embedding and head."""
    seen = layer_shape(spec, shape)
    tokens = ANY_CONTEXT if shape.phase == "decode" else seen.context
    # a prefill computes the logits of the last token alone
    logits = seen.context if shape.phase == "train" else ANY_CONTEXT
    vocabulary = {"vocab_size": spec.vocab_size}
    normed = {**vocabulary, "head_norm": spec.head_norm}
    rest = (spec.hidden_size, shape.phase, shape.batch)
    return (
        Case(EMBEDDING, canonical_json(vocabulary), *rest, tokens, shape.dtype),
        Case(HEAD, canonical_json(normed), *rest, logits, shape.dtype),
    )


def config_key(config: OperatorConfig) -> str:
    """The config as canonical JSON without the width and without what the whole model shares
    (rope, norm eps, longest position), which changes results but not times."""
    return canonical_json(config.model_dump(mode="json", exclude={"hidden_size", *INHERITED}))


def part_cost(case: Case, vocab_size: int) -> Cost:
    """Cost of embedding or head: what is read, computed and written."""
    shape, width = case.shape, case.hidden_size
    if case.operator == EMBEDDING:
        moved = 2 * shape.tokens * width * shape.element_bytes
        return Cost(vocab_size * width, 0, moved, 0)
    tokens = shape.tokens if shape.phase == "train" else shape.batch
    weights = (vocab_size * width + width) * shape.element_bytes
    # logits leave in fp32
    moved = weights + tokens * (width * shape.element_bytes + vocab_size * 4)
    passes = 3 if shape.phase == "train" else 1
    flops = 2 * tokens * vocab_size * width
    return Cost(vocab_size * width + width, passes * flops, passes * moved, 0)


@lru_cache(maxsize=65536)
def _is_constant(operator: str, config: OperatorConfig) -> bool:
    """Whether a decode step costs the same at every context: the state does not grow."""
    cost = operators.get(operator).cost
    short, long = (
        cost(config, Shape("decode", context=context)).state_bytes for context in (1, 1 << 20)
    )
    return short == long
