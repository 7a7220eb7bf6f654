"""A search without training: a cheap deterministic evaluator, and configs for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from archsearch.operators import get
from archsearch.search.config import RunConfig
from archsearch.search.evaluate import Costs
from archsearch.search.evaluate import Scores
from archsearch.search.loop import Search
from archsearch.search.loop import encode_seeds
from archsearch.search.observer import Observer
from archsearch.search.run import Run
from archsearch.search.screen import Screen
from archsearch.space import ArchSpec

OPERATOR_US = {"a": 40.0, "w": 25.0, "f": 10.0}
OPERATOR_GAIN = {"a": 0.5, "w": 0.3, "f": 0.2}


class FakeEvaluator:
    """Latency grows with width and operators; loss falls with both, with diminishing returns.

    `interrupt_at` raises KeyboardInterrupt in that call of `score`, counted from 1;
    `fail` and `slowdown` say which architectures fail and how measured differs from predicted.
    """

    def __init__(
        self,
        *,
        interrupt_at: int = 0,
        fail: Callable[[ArchSpec], bool] = lambda spec: False,
        slowdown: Callable[[ArchSpec], float] = lambda spec: 1.1,
    ) -> None:
        self.scored: list[str] = []
        self.calls = 0
        self._interrupt_at = interrupt_at
        self._fail = fail
        self._slowdown = slowdown

    def costs(self, spec: ArchSpec) -> Costs:
        codes = Counter(get(layer.operator).code for layer in spec.layers)
        parts = {code: OPERATOR_US[code] * n * spec.hidden_size / 64 for code, n in codes.items()}
        return Costs(
            latency_us=50.0 + sum(parts.values()),
            parameters=spec.hidden_size**2 * len(spec.layers),
            state_bytes=1024 * codes["a"] + 64,
            parts=parts,
        )

    def score(self, spec: ArchSpec, seed: int, *, on_step: Any = None) -> Scores:
        self.calls += 1
        if self.calls == self._interrupt_at:
            raise KeyboardInterrupt
        if self._fail(spec):
            raise RuntimeError("the loss is not finite")
        self.scored.append(spec.id)
        gain = sum(
            OPERATOR_GAIN[get(layer.operator).code] * 0.9**place
            for place, layer in enumerate(spec.layers)
        )
        loss = 6.0 - gain - 0.3 * math.log(spec.hidden_size / 64) + (int(spec.id, 16) % 97) / 970
        if on_step is not None:
            on_step(1, 6.0)
        return Scores(loss=loss, perplexity=math.exp(loss), seconds=0.5, curve=((1, 6.0),))

    def measure(self, spec: ArchSpec) -> Any:
        us = self.costs(spec).latency_us * self._slowdown(spec)
        return SimpleNamespace(p10_us=us * 0.9, p50_us=us, p90_us=us * 1.2)


@pytest.fixture
def evaluator() -> type[FakeEvaluator]:
    return FakeEvaluator


@pytest.fixture
def config() -> Callable[..., RunConfig]:
    """Make a small config; keywords replace its fields."""

    def make(**fields: Any) -> RunConfig:
        defaults: dict[str, Any] = {
            "name": "test",
            "space": "nemotron-flash",
            "space_version": 1,
            "widths": (64, 128, 192),
            "codes": ("a", "w"),
            "max_layers": 12,
            "fields": {"vocab_size": 256},
            "population": 6,
            "tournament": 3,
            "target_latency_ms": 0.7,
            "seed": 7,
            "table": "fake",
            "table_id": "t0",
            "data": "fake",
            "data_fingerprint": "d0",
            "recipe": {"steps": 4, "warmup_steps": 1},
            "baselines": ("a f", "w f"),
        }
        return RunConfig.create(**(defaults | fields))

    return make


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., Search]:
    """Make a search over a study in memory, or over `study`."""

    def make(config: RunConfig, evaluator: FakeEvaluator, study: Any = None) -> Search:
        space = config.make_space()
        if study is None:
            study = optuna.create_study(
                directions=["minimize"] * len(config.objectives),
                sampler=optuna.samplers.RandomSampler(),
            )
        return Search(
            Run(tmp_path, config, study),
            space,
            screen=Screen(config, space, evaluator.costs),
            evaluator=evaluator,
            observer=Observer(),
            seeds=encode_seeds(config, space),
        )

    return make
