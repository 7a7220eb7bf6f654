"""How far is an estimate for another GPU from that GPU?

    python experiments/calibration/scaling.py nvidia-h200 nvidia-h100

Scales the first table to the GPU of the second, as `archsearch predict --hardware` does, and holds
it against the whole models that were measured there, at the batches that the first table has.
Needs no GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from archsearch.latency import predict
from archsearch.latency import scaled
from archsearch.latency.calibrate import read_architectures
from archsearch.latency.measured import shape_of
from archsearch.latency.measured import valid_rows
from archsearch.profiles import Table
from archsearch.profiles import load_table
from archsearch.space import ArchSpec

FOLDER = Path(__file__).parent
PHASES = ("decode", "prefill")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table")
    parser.add_argument("other")
    given = parser.parse_args()
    # of the other nothing but its models is asked
    other = load_table(given.other, allow_stale=True)
    estimate = scaled(load_table(given.table), other.meta["hardware"]["name"])
    specs = {spec.id: spec for spec in read_architectures(FOLDER / "architectures.toml")}
    for phase in PHASES:
        print(f"{estimate.label}: {compare(specs, estimate, other, phase)}")


def compare(specs: Mapping[str, ArchSpec], estimate: Table, other: Table, phase: str) -> str:
    """One phase in a sentence."""
    rows = estimate.rows
    batches = set(rows[rows["phase"] == phase]["batch"])
    errors, inside = [], 0
    for row in valid_rows(FOLDER / other.name, other):
        if row["phase"] != phase or row["error"] or row["batch"] not in batches:
            continue
        found = predict(specs[row["id"]], shape_of(row), estimate)
        errors.append(found.latency_us / row["latency_us_p50"] - 1)
        inside += found.low_us <= row["latency_us_p50"] <= found.high_us
    if not errors:
        return f"no {phase} of whole models was measured on {other.name}"
    size = np.abs(errors)
    return (
        f"{len(errors)} measurements of {phase}; error {np.median(errors):+.1%} in the median,"
        f" in size {np.median(size):.1%} (p90 {np.quantile(size, 0.9):.1%});"
        f" {inside} within the bounds"
    )


if __name__ == "__main__":
    main()
