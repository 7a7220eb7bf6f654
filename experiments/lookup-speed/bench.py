"""How fast a latency table answers, on one core.

Question: does a search ever wait for its table? The table is made up, of the size of a shipped
one; the architectures are random candidates of the space nemotron-flash. Times are CPU times of
this process, medians over repeats; the last line of the output is JSON, and --out keeps it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from archsearch import hardware
from archsearch import operators
from archsearch.latency import cases_for_space
from archsearch.latency import cases_for_spec
from archsearch.latency import predict
from archsearch.latency import predict_many
from archsearch.latency import predict_patterns
from archsearch.latency.lookup import LatencyIndex
from archsearch.latency.provenance import git_commit
from archsearch.operators import Shape
from archsearch.profiles import Table
from archsearch.profiles import make_rows
from archsearch.space import ArchSpec
from archsearch.space import get_space
from archsearch.space import load

SPACE, PRESET = get_space("nemotron-flash"), load("qwen3-0.6b")
MIXERS = [operator.code for operator in operators.OPERATORS if operator.kind == "mixer"]
WIDTHS = (896, *SPACE.widths, 3072)
ZOO = get_space("free", widths=WIDTHS, codes=MIXERS, fields=SPACE.fields)
# between two measured contexts and batches
SHAPE = Shape("decode", 4, 2000, "bfloat16")
NEEDED_PER_S, NEEDED_SINGLE_US, NEEDED_INDEX_S = 100_000, 1000, 0.5


def made_up_table(size: int, unit_us: float = 1.0) -> Table:
    """The first `size` rows of the preset, the space and the zoo, with made-up times."""
    batches, contexts = (1, 8, 32, 128), (1024, 2048, 4096, 8192, 16384, 32768)
    shapes = [Shape("decode", b, c, "bfloat16") for b in batches for c in contexts]
    shapes += [
        Shape("prefill", b, c, "bfloat16") for b in batches for c in contexts if b * c <= 65536
    ]
    shapes += [Shape("train", 1, c, "bfloat16") for c in contexts]
    cases = cases_for_spec(PRESET, shapes)
    cases += cases_for_space(SPACE, shapes) + cases_for_space(ZOO, shapes)
    rows = [
        {
            **asdict(case),
            "backend": "torch",
            "latency_us_p10": unit_us * (9 + place),
            "latency_us_p50": unit_us * (10 + place),
            "latency_us_p90": unit_us * (11 + place),
            "steady_us": unit_us * (12 + place),
            "repeats": 30,
            "stack": 6,
            "stack_bytes": 1,
            "used_cuda_graph": True,
            "error": "",
        }
        for place, case in enumerate(dict.fromkeys(cases))
    ]
    return Table("made-up", make_rows(rows[:size]), {"sources": {}})


def candidates(count: int, seed: int) -> list[ArchSpec]:
    """New objects, as a search decodes them from its parameters."""
    rng = np.random.default_rng(seed)
    return [SPACE.decode(SPACE.sample(rng), int(rng.choice(SPACE.widths))) for _ in range(count)]


def seconds(call: Callable[..., object], *arguments: object) -> float:
    begin = time.process_time()
    call(*arguments)
    return time.process_time() - begin


def measured(table: Table, count: int, repeats: int) -> Iterator[tuple[str, list[float]]]:
    """Names and samples: seconds, or predictions per second."""
    yield "index_s", [seconds(LatencyIndex, table) for _ in range(repeats)]
    yield "first_batch_s", [seconds(predict_many, candidates(1, 0), SHAPE, table)]
    decoding, new, again, foreign, patterns, single = [], [], [], [], [], []
    # every row that a candidate can ask for is found once
    predict_many(candidates(count, seed=0), SHAPE, table)
    for seed in range(1, repeats + 1):
        begin = time.process_time()
        specs = candidates(count, seed)
        decoding.append((time.process_time() - begin) / count)
        new.append(count / seconds(predict_many, specs, SHAPE, table))
        again.append(count / seconds(predict_many, specs, SHAPE, table))
        read = [ArchSpec.from_json(spec.model_dump_json()) for spec in specs]
        foreign.append(count / seconds(predict_many, read, SHAPE, table))
        codes = [(spec.hidden_size, [layer.operator for layer in spec.layers]) for spec in specs]
        patterns.append(count / seconds(predict_patterns, codes, SHAPE, table))
        single += [seconds(predict, spec, SHAPE, table) for spec in specs[:200]]
    preset = [PRESET] * count
    yield "new_specs_per_s", new
    yield "same_specs_again_per_s", again
    yield "specs_read_from_json_per_s", foreign
    yield "patterns_per_s", patterns
    yield (
        "qwen3-0.6b_56_overridden_layers_per_s",
        [count / seconds(predict_many, preset, SHAPE, table) for _ in range(repeats)],
    )
    # every call gives way to the power cap
    slow = made_up_table(len(table.rows), unit_us=1000.0)
    predict_many(candidates(count, seed=0), SHAPE, slow)
    yield (
        "long_calls_per_s",
        [
            count / seconds(predict_many, candidates(count, seed), SHAPE, slow)
            for seed in range(1, repeats + 1)
        ],
    )
    yield "single_s", single
    yield "making_one_spec_s", decoding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3500)
    parser.add_argument("--specs", type=int, default=2000, help="per repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="keep the result here")
    settings = parser.parse_args()
    table = made_up_table(settings.rows)
    layers = [len(spec.layers) for spec in candidates(settings.specs, seed=1)]
    found = {
        name: float(f"{statistics.median(samples):.3g}")
        for name, samples in measured(table, settings.specs, settings.repeats)
    }
    result = {
        "rows": len(table.rows),
        "specs": settings.specs,
        "mean_layers": round(statistics.mean(layers), 1),
        "repeats": settings.repeats,
        "medians": found,
        "reached": {
            "100k_per_s": found["new_specs_per_s"] >= NEEDED_PER_S,
            "single_1_ms": 1e6 * found["single_s"] <= NEEDED_SINGLE_US,
            "index_half_a_second": found["index_s"] <= NEEDED_INDEX_S,
        },
        "cpu": hardware.cpu_name(),
        "git_commit": git_commit(),
    }
    text = json.dumps(result, indent=2)
    if settings.out:
        settings.out.write_text(text + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
