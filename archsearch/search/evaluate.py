"""What a candidate costs by the table, and what a short training says about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from typing import TYPE_CHECKING
from typing import Literal
from typing import Protocol

from archsearch.operators import Shape
from archsearch.space import ArchSpec
from archsearch.space import count

if TYPE_CHECKING:
    from archsearch.profiles import Table
    from archsearch.timing import Timing
    from archsearch.train import Recipe
    from archsearch.train import TokenData

OnStep = Callable[[int, float], None]

# nats above a uniform guess at which a failed candidate is recorded, so that samplers avoid it
FAILED_MARGIN = 1.0


@dataclass(frozen=True, slots=True)
class Costs:
    """What is known before training: µs per decode step, in all and by operator, and sizes."""

    latency_us: float
    parameters: int
    state_bytes: int
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scores:
    """What training gave: held-out loss in nats per token, and the curve of training losses."""

    loss: float
    status: Literal["trained", "failed"] = "trained"
    bits_per_byte: float = math.nan
    perplexity: float = math.nan
    seconds: float = math.nan
    tokens_per_s: float = math.nan
    curve: tuple[tuple[int, float], ...] = ()
    error: str = ""


class Evaluator(Protocol):
    """How candidates are judged. `score` may be slow, the others are not."""

    def costs(self, spec: ArchSpec) -> Costs:
        """Predict the costs; raises ValueError where the table lacks a row."""
        ...

    def score(self, spec: ArchSpec, seed: int, *, on_step: OnStep | None = None) -> Scores:
        """Train a model of `spec` for a short time; a run that diverges is a failed score."""
        ...

    def measure(self, spec: ArchSpec) -> Timing:
        """Time a decode step of the built model."""
        ...


class TableEvaluator:
    """The real evaluator: latency from a measured table, loss from a short training."""

    def __init__(
        self,
        table: Table,
        data: TokenData,
        recipe: Recipe,
        shape: Shape,
        *,
        device: str = "cpu",
    ) -> None:
        self.table = table
        self.data = data
        self.recipe = recipe
        self.shape = shape
        self.device = device
        self._timings: dict[str, Timing] = {}

    def costs(self, spec: ArchSpec) -> Costs:
        """Sum the table's rows; raises ValueError where it lacks one."""
        from archsearch.latency import predict

        prediction = predict(spec, self.shape, self.table)
        return Costs(
            latency_us=prediction.latency_us,
            parameters=count.parameters(spec),
            state_bytes=count.state_bytes(
                spec, self.shape.context, batch=self.shape.batch, dtype=self.shape.dtype
            ),
            parts=prediction.parts,
        )

    def score(self, spec: ArchSpec, seed: int, *, on_step: OnStep | None = None) -> Scores:
        """Train from scratch and read the held-out loss."""
        from archsearch.proxy.short_training import score

        result = score(
            spec, self.data, self.recipe, seed=seed, device=self.device, on_step=on_step
        )
        if result.loss is None:
            return failed(spec, result.error or result.status, curve=result.curve)
        return Scores(
            loss=result.loss,
            bits_per_byte=_number(result.bits_per_byte),
            perplexity=_number(result.perplexity),
            seconds=_number(result.seconds),
            tokens_per_s=_number(result.tokens_per_s),
            curve=result.curve,
        )

    def measure(self, spec: ArchSpec) -> Timing:
        """Time the built model at this evaluator's shape; asked again, the quieter time holds."""
        from archsearch.latency import measure_model

        measured = measure_model(spec, self.shape, device=self.device)
        known = self._timings.get(spec.id, measured)
        self._timings[spec.id] = min(measured, known, key=lambda timing: timing.p50_us)
        return self._timings[spec.id]


def failed(spec: ArchSpec, error: str, *, curve: tuple[tuple[int, float], ...] = ()) -> Scores:
    """The score of a candidate that could not be trained: worse than guessing."""
    return Scores(loss=worst_loss(spec), status="failed", error=error, curve=curve)


def worst_loss(spec: ArchSpec) -> float:
    """Nats per token of a uniform guess over the vocabulary, and a margin."""
    return math.log(spec.vocab_size) + FAILED_MARGIN


def _number(value: float | None) -> float:
    return math.nan if value is None else value
