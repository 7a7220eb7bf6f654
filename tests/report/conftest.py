"""A real run folder, searched without training: latency and loss come from a formula."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from archsearch.operators import get
from archsearch.search import Costs
from archsearch.search import RunConfig
from archsearch.search import Scores
from archsearch.search import evolve
from archsearch.search import load_run
from archsearch.space import ArchSpec
from archsearch.space import count

OPERATOR_US = {"a": 40.0, "m2": 35.0, "d": 25.0, "f": 12.0}
OPERATOR_GAIN = {"a": 0.30, "m2": 0.32, "d": 0.27, "f": 0.20}
STEPS = 40


class FormulaEvaluator:
    """Latency grows with width and operators; loss falls with both, mixing helps a little."""

    def costs(self, spec: ArchSpec) -> Costs:
        layers = Counter(layer.operator for layer in spec.layers)
        scale = 1 + spec.hidden_size / 128
        parts = {name: OPERATOR_US[get(name).code] * n * scale for name, n in layers.items()}
        parts |= {"embedding": 5.0, "head": 60.0, "overhead": 25.0}
        return Costs(
            latency_us=sum(parts.values()),
            parameters=count.parameters(spec),
            state_bytes=count.state_bytes(spec, 1024),
            parts=parts,
        )

    def score(self, spec: ArchSpec, seed: int, *, on_step: Any = None) -> Scores:
        codes = [get(layer.operator).code for layer in spec.layers]
        if codes[0] == "f":
            raise RuntimeError("loss was not finite at step 12")
        gain = sum(OPERATOR_GAIN[code] * 0.9**place for place, code in enumerate(codes))
        noise = (int(spec.id, 16) % 97) / 970
        loss = 4.3 - gain - 0.1 * len(set(codes)) - 0.3 * math.log(spec.hidden_size / 64) + noise
        curve = tuple((step, loss + 3.5 * math.exp(-step / 8)) for step in range(1, STEPS + 1))
        if on_step is not None:
            for point in curve:
                on_step(*point)
        return Scores(
            loss=loss,
            bits_per_byte=loss / math.log(2),
            perplexity=math.exp(loss),
            seconds=0.5,
            tokens_per_s=20000.0,
            curve=curve,
        )

    def measure(self, spec: ArchSpec) -> Any:
        us = self.costs(spec).latency_us * (0.96 + (int(spec.id, 16) % 13) / 100)
        return SimpleNamespace(p10_us=us * 0.97, p50_us=us, p90_us=us * 1.08)


def make_config(**fields: Any) -> RunConfig:
    defaults: dict[str, Any] = {
        "name": "demo",
        "space": "nemotron-flash",
        "space_version": 1,
        "widths": (64, 128, 192, 256),
        "codes": ("a", "m2", "d"),
        "max_layers": 16,
        "fields": {"vocab_size": 256},
        "population": 6,
        "tournament": 3,
        "target_latency_ms": 1.5,
        "seed": 7,
        "table": "demo-cpu",
        "table_id": "t0",
        "data": "stdlib",
        "data_fingerprint": "d0",
        "recipe": {"steps": STEPS, "warmup_steps": 1},
        "versions": {"torch": "2.13.0"},
    }
    return RunConfig.create(**(defaults | fields))


@dataclass
class FakeRun:
    """What figures and pages use of a run, free to be changed by a test."""

    path: Path
    config: RunConfig
    candidates: pd.DataFrame
    front: pd.DataFrame


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    return evolve(make_config(), trials=10, evaluator=FormulaEvaluator(), root=root).path


@pytest.fixture
def run_folder(searched: Path, tmp_path: Path) -> Path:
    """A copy of the run, of the test's own."""
    return Path(shutil.copytree(searched, tmp_path / "runs" / searched.name))


@pytest.fixture
def run(searched: Path) -> FakeRun:
    run = load_run(searched)
    return FakeRun(run.path, run.config, run.candidates, run.front)


@pytest.fixture
def without_front(run: FakeRun) -> FakeRun:
    """A run that was stopped before it had a front."""
    return FakeRun(run.path, run.config, run.candidates[:5], run.front[:0])


@pytest.fixture
def without_candidates(run: FakeRun) -> FakeRun:
    """A run in which nothing was recorded yet."""
    return FakeRun(run.path, run.config, run.candidates[:0], run.front[:0])
