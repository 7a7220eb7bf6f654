"""How long one layer's decode step takes, our own kernels beside the plain step, every operator.

    python experiments/fused-decode/layers.py OUT [--width 2048] [--batches 1 32] [--only NAME …]

Writes OUT/layers.json and prints a table. Needs a GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from archsearch import operators
from archsearch.files import write_text
from archsearch.latency.cases import layer_case
from archsearch.latency.ceilings import measure_ceilings
from archsearch.latency.provenance import provenance
from archsearch.latency.shelf import Shelf
from archsearch.latency.sweep import measure_case
from archsearch.operators import Shape
from archsearch.operators import backends
from archsearch.operators.fused import table

CONTEXT = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--batches", nargs="*", type=int, default=(1, 32))
    parser.add_argument("--only", nargs="*", default=table.STEPS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    ceilings, shelf, measured = measure_ceilings("cuda"), Shelf("cuda"), provenance("cuda")
    rows: list[dict[str, Any]] = []
    print(f"{'operator':20s} batch  plain us  fused us   floor us  launches")
    for name in given.only:
        config = operators.get(name).configure(given.width)
        for batch in given.batches:
            case = layer_case(name, config, Shape("decode", batch, CONTEXT, "bfloat16"))
            kinds = {}
            for kind, chosen in (("plain", plain()), ("fused", backends.override("triton", name))):
                with chosen:
                    kinds[kind] = measure_case(
                        case, device="cuda", budget_s=0.05, shelf=shelf, ceilings=ceilings
                    )
            row = {"operator": name, "batch": batch, **kinds}
            row["floor_us"] = 1e6 * kinds["fused"]["bytes"] / ceilings.read_bytes_s
            rows.append(row)
            show(row)
            result = {"provenance": measured, "ceilings": ceilings.to_dict(), "rows": rows}
            write_text(given.out / "layers.json", json.dumps(result, indent=1, default=str))


@contextmanager
def plain() -> Iterator[None]:
    """As if no fused step were preferred."""
    preferred = table.PREFERRED
    table.PREFERRED = ()
    try:
        yield
    finally:
        table.PREFERRED = preferred


def show(row: dict[str, Any]) -> None:
    told = [f"{row['operator']:20s} {row['batch']:5d}"]
    for kind in ("plain", "fused"):
        measured = row[kind]
        told.append(measured["error"] or f"{measured['latency_us_p50']:9.1f}")
    launches = [row[kind].get("kernels") for kind in ("plain", "fused")]
    print(*told, f"{row['floor_us']:10.1f}", f" {launches[0]} -> {launches[1]}", flush=True)


if __name__ == "__main__":
    main()
