"""Measure a whole model: what a prediction is held against. Legend: B rows, T tokens."""

from __future__ import annotations

import gc
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from archsearch import timing
from archsearch.latency import nvml
from archsearch.latency.stack import fill
from archsearch.model import HybridLM
from archsearch.model import build
from archsearch.operators import Phase
from archsearch.operators import Shape
from archsearch.operators.backends import recorded
from archsearch.operators.base import DTYPE_BYTES
from archsearch.space import ArchSpec
from archsearch.space import count

# seconds of samples: of a model that is asked for, and of one among many
BUDGET_S = {"cpu": 1.5, "cuda": 0.1}
MANY_BUDGET_S = {"cpu": 0.2, "cuda": timing.ONE_REST_S}
MIN_REPEATS = 10
# a GPU repeats itself, and a long prefill takes a second
MIN_REPEATS_GPU = 5
GIB = 2**30


class DoesNotFit(ValueError):
    """A GPU's memory is too small, foreseen or met."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One call of a whole model (a decode step, a prefill, forward and backward) at a shape.

    `backends` names what ran for each operator; `peak_bytes` is all that the GPU's allocator
    held at once, weights included (None on a CPU); `reading` is what NVML said meanwhile.
    """

    shape: Shape
    timing: timing.Timing
    backends: Mapping[str, str]
    weight_bytes: int
    state_bytes: int
    peak_bytes: int | None
    reading: nvml.Reading

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all rows that are computed in a second, of one call after another."""
        return 1e6 * self.shape.tokens / self.timing.sustained_us

    @property
    def energy_j(self) -> float | None:
        """Energy of one call among others, where the power is known."""
        return self.reading.energy_j(self.timing.steady_us)

    @property
    def energy_per_token_j(self) -> float | None:
        """Energy of one computed token."""
        return None if self.energy_j is None else self.energy_j / self.shape.tokens

    @property
    def memory_bytes(self) -> int:
        """The measured peak, or where none is known weights and state."""
        return self.peak_bytes or self.weight_bytes + self.state_bytes


class WholeModel:
    """A freshly drawn model of `spec` on `device`, to be measured at one shape after another.

    Raises DoesNotFit, a ValueError, where the weights do not fit into a GPU's memory.
    """

    def __init__(self, spec: ArchSpec, *, device: str = "cpu", dtype: str = "float32") -> None:
        self.spec, self.device, self.dtype = spec, device, dtype
        weights = count.parameters(spec) * DTYPE_BYTES[dtype]
        with self._room(f"holding its weights in {dtype}", weights):
            self.model: HybridLM = build(spec, device=device, dtype=getattr(torch, dtype))

    def measure(
        self, shape: Shape, *, budget_s: float | None = None, capacity: int | None = None
    ) -> Measurement:
        """Time one decode step behind `context` real tokens, one prefill of `context` tokens,
        or forward and backward over them; on a CPU the quietest of several measurements. A
        decode step finds room for `capacity` tokens per row (None: for no more than its own).

        Raises DoesNotFit, a ValueError, where the shape does not fit into a GPU's memory.
        """
        if shape.dtype != self.dtype:
            raise ValueError(f"the model is in {self.dtype}; got a shape in {shape.dtype}")
        if capacity is not None and (shape.phase != "decode" or capacity <= shape.context):
            raise ValueError(
                f"capacity must exceed the context of a decode step; got {capacity} for {shape}"
            )
        what = f"{shape.phase} of batch {shape.batch} at context {shape.context}"
        if budget_s is None:
            budget_s = BUDGET_S[self.device.partition(":")[0]]
        with self._room(what, self._state_bytes(shape, capacity)):
            return self._measure(shape, budget_s, capacity)

    def _measure(self, shape: Shape, budget_s: float, capacity: int | None) -> Measurement:
        on_gpu = self.device.startswith("cuda")
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        call = (
            CALLS[shape.phase](self.model, shape)
            if capacity is None
            else decode_call(self.model, shape, capacity)
        )
        passes = 1 if on_gpu else timing.CPU_PASSES
        meter = nvml.Meter(nvml.sensor(self.device))
        with recorded() as backends:
            timings = [
                timing.measure(
                    call,
                    device=self.device,
                    budget_s=budget_s / passes,
                    min_repeats=MIN_REPEATS_GPU if on_gpu else MIN_REPEATS,
                    during=meter,
                )
                for _ in range(passes)
            ]
        return Measurement(
            shape=shape,
            timing=min(timings, key=lambda measured: measured.p50_us),
            backends=dict(backends),
            weight_bytes=sum(p.numel() * p.element_size() for p in self.model.parameters()),
            state_bytes=self._state_bytes(shape, capacity),
            peak_bytes=torch.cuda.max_memory_allocated(self.device) if on_gpu else None,
            reading=meter.reading,
        )

    def _state_bytes(self, shape: Shape, capacity: int | None) -> int:
        if shape.phase == "train":
            return 0
        tokens = capacity or shape.context
        return count.state_bytes(self.spec, tokens, shape.batch, shape.dtype)

    def free_bytes(self) -> int | None:
        """What a GPU's memory can still take, dead models and graphs cleared; None on a CPU."""
        if not self.device.startswith("cuda"):
            return None
        gc.collect()
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0])

    @contextmanager
    def _room(self, what: str, need: int) -> Iterator[None]:
        """Turn too little memory on a GPU, foreseen or met, into one sentence."""
        free = self.free_bytes()
        if free is None:
            yield
            return
        total = torch.cuda.mem_get_info(self.device)[1]
        full = DoesNotFit(
            f"{self.spec.name or self.spec.notation} does not fit the"
            f" {torch.cuda.get_device_name(self.device)}: {what} needs more than"
            f" {need / GIB:.1f} GiB, and {free / GIB:.1f} of its {total / GIB:.1f} GiB are free"
        )
        if need >= free:
            raise full
        try:
            yield
        except torch.OutOfMemoryError:
            raise full from None


def measure_model(
    spec: ArchSpec, shape: Shape, *, device: str = "cpu", budget_s: float | None = None
) -> timing.Timing:
    """Time a freshly drawn model of `spec` at one shape; see `WholeModel`."""
    model = WholeModel(spec, device=device, dtype=shape.dtype)
    return model.measure(shape, budget_s=budget_s).timing


def decode_call(
    model: HybridLM, shape: Shape, capacity: int | None = None
) -> Callable[[], Tensor]:
    """A call that decodes one token per row, always at the same position; see `measure`."""
    behind = shape.context + model.spec.num_meta_tokens
    state = model.init_state(shape.batch, capacity or shape.context + 1)
    fill(state.layers, torch.Generator(model.embed.weight.device).manual_seed(0))
    ids = _ids(model, shape.batch)

    @torch.inference_mode()
    def call() -> Tensor:
        state.position.fill_(behind)
        state.longest = behind
        return model.step(ids, state)

    return call


def prefill_call(model: HybridLM, shape: Shape) -> Callable[[], Tensor]:
    """A call that reads prompts of `context` tokens into fresh rows."""
    state = model.init_state(shape.batch, shape.context)
    ids = _ids(model, shape.batch, shape.context)

    @torch.inference_mode()
    def call() -> Tensor:
        state.position.zero_()
        state.longest = 0
        return model.prefill(ids, state)

    return call


def train_call(model: HybridLM, shape: Shape) -> Callable[[], object]:
    """A call of forward, loss and backward over `context` tokens per row."""
    ids = _ids(model, shape.batch, shape.context + 1)
    parameters = list(model.parameters())
    return lambda: torch.autograd.grad(model.loss(ids), parameters, allow_unused=True)


CALLS: dict[Phase, Callable[[HybridLM, Shape], Callable[[], object]]] = {
    "decode": decode_call,
    "prefill": prefill_call,
    "train": train_call,
}


def _ids(model: HybridLM, *size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.spec.vocab_size, size, generator=generator)
    return ids.to(model.embed.weight.device)
