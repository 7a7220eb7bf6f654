"""How long does a GPU keep its highest clocks, and when is its power known? Do rows come again?

    python experiments/power-cap/measure.py clocks OUT.json
    python experiments/power-cap/measure.py rows OUT.json [--table nvidia-h200] [--count 50]
    python experiments/power-cap/measure.py agree ONE.json OTHER.json
    python experiments/power-cap/measure.py spare ROWS.json TABLE ...

`rows` measures a sample of a table's cases by the present method; `agree` holds two such files
against each other; `spare` tells from such files and tables from which power on steady work is
slower than work from rest. The first two need a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from archsearch import cudagraph
from archsearch import timing
from archsearch.files import write_text
from archsearch.latency.cases import Case
from archsearch.latency.ceilings import measure_ceilings
from archsearch.latency.nvml import sensor
from archsearch.latency.provenance import provenance
from archsearch.latency.repeat import TOLERANCE
from archsearch.latency.repeat import sample_rows
from archsearch.latency.sweep import BUDGET_S
from archsearch.latency.sweep import measure_case
from archsearch.profiles import load_table

DEVICE = "cuda"
# an FFN of Nemotron-Flash-1B's width over 8,192 tokens
TOKENS, WIDTH, INNER = 8192, 2048, 6144
HOT_S, TRIES = 1.0, 3
RESTS_S = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
# milliseconds at work behind the rest
SPANS = ((0, 10), (10, 20), (20, 30), (30, 60), (60, 100), (100, 200))
WATCH_S, BURST = 0.5, 4
# of an H200 with a cap of 700 W
POWERS_W = (600, 651, 700, 750)
# seconds at work before NVML is asked for the first time in UNASKED_S
ASKED_S, UNASKED_S = (0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.125, 0.2), 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, run in (("clocks", clocks), ("rows", rows)):
        command = commands.add_parser(name)
        command.add_argument("out", type=Path)
        command.set_defaults(run=run)
    command.add_argument("--table", default="nvidia-h200")
    command.add_argument("--count", type=int, default=50)
    command.add_argument("--seed", type=int, default=0)
    command = commands.add_parser("agree")
    command.add_argument("one", type=Path)
    command.add_argument("other", type=Path)
    command.set_defaults(run=agree)
    command = commands.add_parser("spare")
    command.add_argument("sources", type=Path, nargs="+")
    command.set_defaults(run=spare)
    given = parser.parse_args()
    given.run(given)


def clocks(given: argparse.Namespace) -> None:
    """Times of an FFN behind a second at work and a rest, and the power that NVML tells."""
    with torch.inference_mode():
        recording = cudagraph.record(ffn(), device=DEVICE, warmup=3)
    found = []
    for rest_s in RESTS_S:
        tries = []
        for _ in range(TRIES):
            hot = np.median(replay(recording, HOT_S)[-20:])
            torch.cuda.synchronize()
            time.sleep(rest_s)
            samples = replay(recording, 0.21)
            at_ms = np.cumsum(samples) / 1e3
            spans = [samples[(at_ms > low) & (at_ms <= high)] for low, high in SPANS]
            tries.append([float(np.median(span)) for span in (hot, *spans)])
        hot_us, by_span = [one[0] for one in tries], [one[1:] for one in tries]
        found.append({"rest_s": rest_s, "hot_us": hot_us, "us_by_span": by_span})
        print(f"rest {rest_s:5.3f} s", *np.median(tries, axis=0).round(0), flush=True)
    torch.cuda.synchronize()
    time.sleep(1.0)
    power, reader = [], sensor(DEVICE)
    begin = time.perf_counter()

    def look() -> None:
        if reader is not None:
            power.append((time.perf_counter() - begin, reader.read().power_w))

    replay(recording, WATCH_S, look)
    print("power", *(f"{at:.3f} s {watts} W;" for at, watts in changes(power)))
    asked = [(after_s, first_power(recording, after_s)) for after_s in TRIES * ASKED_S]
    print("asked once", *(f"{after_s:.3f} s {watts} W;" for after_s, watts in asked))
    result = {"spans_ms": SPANS, "behind_a_rest": found, "power": power, "asked_once": asked}
    write(given.out, result)


def first_power(recording: cudagraph.Recording, after_s: float) -> float | None:
    """What NVML tells behind so long at work, when it was not asked for a while."""
    torch.cuda.synchronize()
    time.sleep(UNASKED_S)
    told, reader = [], sensor(DEVICE)
    begin = time.perf_counter()

    def look() -> None:
        if reader is not None and not told and time.perf_counter() - begin >= after_s:
            told.append(reader.read().power_w)

    while time.perf_counter() - begin < after_s + 0.02:
        replay(recording, 0.001, look)
    return told[0] if told else None


def changes(power: list[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """The readings that differ from the one before."""
    return [one for last, one in pairwise([(0.0, None), *power]) if one[1] != last[1]]


def ffn() -> Callable[[], Tensor]:
    """A gated FFN in bf16 over random numbers."""
    like: dict[str, Any] = {"device": DEVICE, "dtype": torch.bfloat16}
    x = torch.randn(TOKENS, WIDTH, **like)
    up, down = torch.randn(WIDTH, 2 * INNER, **like), torch.randn(INNER, WIDTH, **like)

    def call() -> Tensor:
        gate, value = (x @ up).chunk(2, -1)
        return (F.silu(gate) * value) @ down

    return call


def replay(
    recording: cudagraph.Recording, seconds: float, look: Callable[[], None] | None = None
) -> NDArray[np.float64]:
    """Microseconds of each replay; `look` runs while they wait."""
    samples: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        samples += timing._burst(recording, DEVICE, BURST, look or (lambda: None))
    return np.array(samples)


def rows(given: argparse.Namespace) -> None:
    """A sample of a table's cases, measured by the present method."""
    ceilings, found = measure_ceilings(DEVICE), []
    for row in sample_rows(load_table(given.table), given.count, given.seed).to_dict("records"):
        case = Case(**{name: row[name] for name in Case.__slots__})
        again = measure_case(case, device=DEVICE, budget_s=BUDGET_S["cuda"], ceilings=ceilings)
        found.append(again | {"table_us": row["latency_us_p50"]})
    write(given.out, {"seed": given.seed, "ceilings": asdict(ceilings), "rows": found})


def write(path: Path, result: dict[str, Any]) -> None:
    """The result with where it comes from, the very card among it."""
    card = str(torch.cuda.get_device_properties(DEVICE).uuid)
    origin = {"provenance": provenance(DEVICE), "card": card}
    write_text(path, json.dumps(origin | result, indent=1, default=str) + "\n")


def agree(given: argparse.Namespace) -> None:
    """How many rows of two files agree, and by how much."""
    one, other = (json.loads(path.read_text("utf-8")) for path in (given.one, given.other))
    pairs = list(zip(one["rows"], other["rows"], strict=True))
    cases = [[{key: row[key] for key in Case.__slots__} for row in pair] for pair in pairs]
    if any(a != b for a, b in cases):
        raise SystemExit("the files are of other rows: measure both with one --seed")
    print("on one card" if one["card"] == other["card"] else "on two cards")
    for key in ("latency_us_p50", "steady_us", "energy_j"):
        off = np.abs([b[key] / a[key] - 1 for a, b in pairs])
        within = int((off <= TOLERANCE).sum())
        print(
            f"{key:15} median {np.median(off):.2%}, largest {off.max():.1%},"
            f" {within} of {len(off)} within {TOLERANCE:.0%}"
        )


def spare(given: argparse.Namespace) -> None:
    """By power: rows that were timed both ways, and how many are slower in steady work."""
    found = [
        row
        for source in given.sources
        for row in (
            load_table(source, allow_stale=True).rows.to_dict("records")
            if source.is_dir()
            else json.loads(source.read_text("utf-8"))["rows"]
        )
        # with power to spare one measurement is both
        if not row["error"] and row["steady_us"] != row["latency_us_p50"]
    ]
    watts = np.array([row["power_w"] for row in found])
    slower = np.array([row["steady_us"] / row["latency_us_p50"] - 1 for row in found])
    print("watts       rows  steady slower: median     p95  largest  by 3 % and more")
    for low, high in pairwise((0, *POWERS_W, np.inf)):
        some = slower[(watts >= low) & (watts < high)]
        if len(some):
            print(
                f"{low:4} to {high:4} {len(some):5} {np.median(some):22.1%}"
                f" {np.quantile(some, 0.95):7.1%} {some.max():8.1%} {(some >= TOLERANCE).sum():16}"
            )


if __name__ == "__main__":
    main()
