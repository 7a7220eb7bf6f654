"""Write architectures.toml: dense presets, homogeneous models, and hybrids drawn from a seed.

    python experiments/calibration/pick.py --profile nvidia-h200
    python experiments/calibration/pick.py --profile nvidia-h100 --add --seed 1
    python experiments/calibration/pick.py --profile nvidia-h100 --add --seed 2 --context 8192

The hybrids are drawn over all mixers and widths; the first of them get as many layers as one
batch-1 decode latency takes, by the table's predictions (without --profile by bytes and a guess
at the overhead of a layer). With --add the file keeps what it has, and gets as many hybrids more
whose latencies by this table, behind --context tokens, are spread evenly around one. The notation
in the file is what counts: nothing is drawn later.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.random import Generator

from archsearch import operators
from archsearch.latency import predict
from archsearch.operators import Shape
from archsearch.profiles import Table
from archsearch.profiles import load_table
from archsearch.space import ArchSpec
from archsearch.space import count
from archsearch.space import parse
from archsearch.space import presets
from archsearch.space.notation import write_pattern

HERE = Path(__file__).parent
PRESETS = ("qwen3-0.6b", "llama-3.2-1b", "qwen2.5-1.5b", "nemotron-flash-1b", "nemotron-flash-3b")
HOMOGENEOUS = ("(a f)x20 @1792", "(m2 f)x24 @1536", "(gd f)x18 @2304")
WIDTHS = (896, 1024, 1280, 1536, 1792, 2048, 2304, 2560, 3072)
NUM_MATCHED, NUM_FREE, NUM_DRAWN = 8, 4, 64
LAYERS = range(10, 61)
PARAMETERS = (0.3e9, 3.0e9)
TOLERANCE = 0.04
# those that are added lie within this of one latency, by the table, and so near to their places
SPREAD, NEAR = 0.08, 0.015
CONTEXT = 1024
# guesses for want of a table: bytes a second, microseconds that a layer takes beyond its bytes
BANDWIDTH, MIXER_US, FFN_US = 4.5e12, 40.0, 12.0

# None where the table has no rows for it
Latency = Callable[[ArchSpec], float | None]


def by_guess(context: int) -> Latency:
    def latency(spec: ArchSpec) -> float | None:
        costs = count.layers(spec, decode(context))
        moved = sum(cost.bytes for cost in costs) + 2 * spec.vocab_size * spec.hidden_size
        over = (FFN_US if layer.operator == "ffn" else MIXER_US for layer in spec.layers)
        return 1e6 * moved / BANDWIDTH + sum(over)

    return latency


class Deck:
    """Deals every mixer once before any comes again."""

    def __init__(self, rng: Generator) -> None:
        self.rng, self.cards = rng, list[str]()

    def deal(self, number: int) -> list[str]:
        dealt: list[str] = []
        while len(dealt) < number:
            if not self.cards:
                mixers = [op.code for op in operators.OPERATORS if op.kind == "mixer"]
                self.cards = [mixers[index] for index in self.rng.permutation(len(mixers))]
            dealt.append(self.cards.pop())
        return dealt


def draw_unit(rng: Generator, deck: Deck) -> list[str]:
    """Two to four mixers, most of them followed by one FFN."""
    unit: list[str] = []
    for mixer in deck.deal(int(rng.integers(2, 5))):
        unit += [mixer, *["f"] * int(rng.choice([0, 1, 1, 1, 2]))]
    return unit if "f" in unit else [*unit, "f"]


def of_length(unit: list[str], width: int, layers: int) -> ArchSpec:
    codes = tuple((unit * (layers // len(unit) + 1))[:layers])
    return parse(write_pattern(codes, width))


def in_size(spec: ArchSpec) -> bool:
    return PARAMETERS[0] <= count.parameters(spec) <= PARAMETERS[1]


def decode(context: int) -> Shape:
    return Shape("decode", 1, context, "bfloat16")


def by_table(table: Table, context: int) -> Latency:
    def latency(spec: ArchSpec) -> float | None:
        try:
            return predict(spec, decode(context), table).latency_us
        except ValueError:
            return None

    return latency


def candidates(unit: list[str], width: int, latency: Latency) -> Iterator[tuple[ArchSpec, float]]:
    """Models of this unit in every allowed length, with their latency."""
    for layers in LAYERS:
        try:
            spec = of_length(unit, width, layers)
        except ValueError:
            # a mixer that does not exist at this width
            return
        if in_size(spec) and (time := latency(spec)) is not None:
            yield spec, time


def draw_lengths(
    rng: Generator, latency: Latency
) -> tuple[list[list[tuple[ArchSpec, float]]], float]:
    """Drawn units, each in every length with its latency; and one latency that many of them can
    have."""
    deck, widths = Deck(rng), [WIDTHS[i] for i in rng.permutation(len(WIDTHS))]
    drawn = [(draw_unit(rng, deck), widths[n % len(widths)]) for n in range(NUM_DRAWN)]
    lengths = [list(candidates(unit, width, latency)) for unit, width in drawn]
    lengths = [timed for timed in lengths if timed]
    return lengths, float(np.median([timed[len(timed) // 3][1] for timed in lengths]))


def draw_spread(rng: Generator, latency: Latency) -> list[ArchSpec]:
    """Hybrids whose latencies are spread evenly around one."""
    lengths, target = draw_lengths(rng, latency)
    places = list(target * (1 + np.linspace(-SPREAD, SPREAD, NUM_MATCHED)))
    found: list[tuple[float, ArchSpec]] = []
    for timed in lengths:
        if not places:
            break
        pairs = [(abs(time / place - 1), place, one) for one, time in timed for place in places]
        off, place, one = min(pairs, key=lambda pair: pair[0])
        if off <= NEAR:
            places.remove(place)
            found.append((place, one))
    print(f"{len(found)} hybrids around {target / 1e3:.2f} ms")
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def draw_hybrids(rng: Generator, latency: Latency) -> list[ArchSpec]:
    """Hybrids of one latency first, then some of any."""
    lengths, target = draw_lengths(rng, latency)
    matched: list[ArchSpec] = []
    free: list[ArchSpec] = []
    for timed in lengths:
        nearest, time = min(timed, key=lambda item: abs(item[1] - target))
        if len(matched) < NUM_MATCHED and abs(time / target - 1) <= TOLERANCE:
            matched.append(nearest)
        elif len(free) < NUM_FREE:
            free.append(timed[int(rng.integers(len(timed)))][0])
    print(f"{len(matched)} hybrids of {target / 1e3:.2f} ms")
    return [*matched, *free]


def entry(name: str, text: str, spec: ArchSpec, latency: Latency) -> list[str]:
    size, time = count.parameters(spec) / 1e9, latency(spec)
    told = "no latency known" if time is None else f"{time / 1e3:.2f} ms"
    head = ["", f"# {size:.2f} B parameters, {told}"]
    return [*head, "[[architecture]]", f'name = "{name}"', f'spec = "{text}"']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", help="latency table that judges the hybrids")
    parser.add_argument("--add", action="store_true", help="hybrids to those that are there")
    parser.add_argument("--context", type=int, default=CONTEXT, help="tokens behind a decoded one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "architectures.toml")
    settings = parser.parse_args()
    latency = by_guess(settings.context)
    judge = "a guess from their bytes"
    if settings.profile:
        table = load_table(settings.profile)
        latency, judge = by_table(table, settings.context), f"the table {table.name}"
    rng = np.random.default_rng(settings.seed)
    if settings.add:
        content = settings.out.read_text(encoding="utf-8").rstrip()
        known = content.count('name = "near-')
        lines = [
            content,
            "",
            f"# Drawn with seed {settings.seed}: batch-1 decode latencies behind"
            f" {settings.context} tokens within {SPREAD:.0%} of one,",
            f"# spread evenly by {judge}.",
        ]
        for number, spec in enumerate(draw_spread(rng, latency), known + 1):
            lines += entry(f"near-{number:02}", spec.notation, spec, latency)
    else:
        lines = [
            "# Whole models that latency tables are held against: `archsearch calibrate`.",
            f"# The hybrids were drawn by pick.py, seed {settings.seed}; the first {NUM_MATCHED}"
            " have one batch-1 decode",
            f"# latency by {judge}.",
        ]
        named = [(name, name, presets.get(name)) for name in PRESETS]
        named += [(f"only-{n}", text, parse(text)) for n, text in enumerate(HOMOGENEOUS, 1)]
        hybrids = draw_hybrids(rng, latency)
        named += [(f"hybrid-{n:02}", one.notation, one) for n, one in enumerate(hybrids, 1)]
        for name, text, spec in named:
            lines += entry(name, text, spec, latency)
    settings.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
