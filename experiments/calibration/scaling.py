"""How far is an estimate for another GPU from that GPU?

    python experiments/calibration/scaling.py nvidia-h200 nvidia-h100 [--phase prefill]

Scales the first table to the GPU of the second, as `archsearch predict --hardware` does, and holds
it against the whole models that were measured there; decode says something only where both tables
are of the same steps (plain or fused). Needs no GPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from archsearch.latency import predict
from archsearch.latency import scaled
from archsearch.latency.calibrate import read_architectures
from archsearch.latency.measured import read_rows
from archsearch.latency.measured import shape_of
from archsearch.profiles import load_table

FOLDER = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table")
    parser.add_argument("other")
    parser.add_argument("--phase", default="prefill")
    given = parser.parse_args()
    other = load_table(given.other, allow_stale=True)
    estimate = scaled(load_table(given.table), other.meta["hardware"]["name"])
    specs = {spec.name: spec for spec in read_architectures(FOLDER / "architectures.toml")}
    errors, inside = [], 0
    for row in read_rows(FOLDER / other.name):
        if row["phase"] != given.phase or row["error"]:
            continue
        found = predict(specs[row["name"]], shape_of(row), estimate)
        errors.append(found.latency_us / row["latency_us_p50"] - 1)
        inside += found.low_us <= row["latency_us_p50"] <= found.high_us
    if not errors:
        raise SystemExit(f"no {given.phase} of whole models was measured on {other.name}")
    size = np.abs(errors)
    print(
        f"{estimate.label}: {len(errors)} measurements of {given.phase};"
        f" error {np.median(errors):+.1%} in the median, in size {np.median(size):.1%}"
        f" (p90 {np.quantile(size, 0.9):.1%}); {inside} within the bounds"
    )


if __name__ == "__main__":
    main()
