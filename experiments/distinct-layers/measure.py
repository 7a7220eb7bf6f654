"""Does a decode step of one layer take longer among more distinct layers?

    python experiments/distinct-layers/measure.py OUT [--spec nemotron-flash-3b]

Writes OUT/result.json and prints a line per operator and batch. Needs a GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from archsearch.files import write_text
from archsearch.latency import stack
from archsearch.latency.cases import Case
from archsearch.latency.cases import layer_case
from archsearch.latency.ceilings import measure_ceilings
from archsearch.latency.provenance import provenance
from archsearch.latency.shelf import Shelf
from archsearch.latency.sweep import measure_case
from archsearch.operators import Shape
from archsearch.space import ArchSpec
from archsearch.space import load

DEVICE, DTYPE, CONTEXT = "cuda", "bfloat16", 1024
BATCHES = (1, 32)
COUNTS = (2, 3, 4, 8, 16, 24)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--spec", default="nemotron-flash-3b")
    given = parser.parse_args()
    ceilings, rows = measure_ceilings(DEVICE), list[dict[str, Any]]()
    result = {"provenance": provenance(DEVICE), "ceilings": ceilings.to_dict(), "rows": rows}
    for case in cases(load(given.spec)):
        shelf, told = Shelf(DEVICE), []
        for count in COUNTS:
            with mock.patch.object(stack, "_num_distinct", return_value=count):
                row = measure_case(
                    case, device=DEVICE, budget_s=0.05, shelf=shelf, ceilings=ceilings
                )
            rows.append(row)
            told.append(row["error"] or f"{count}: {row['latency_us_p50']:.2f}")
        print(f"{case.operator:16} batch {case.batch:3}  us of a layer among", *told, flush=True)
        write_text(given.out / "result.json", json.dumps(result, indent=1, default=str) + "\n")


def cases(spec: ArchSpec) -> Iterator[Case]:
    """Each kind of layer of an architecture, at both batches."""
    kinds = {
        layer.operator: config for layer, config in zip(spec.layers, spec.configs, strict=True)
    }
    for name, config in kinds.items():
        for batch in BATCHES:
            yield layer_case(name, config, Shape("decode", batch, CONTEXT, DTYPE))


if __name__ == "__main__":
    main()
