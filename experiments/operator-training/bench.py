"""Training speed of every operator beside full attention: forward + backward of one mixer.

Question: does any operator make short training on a CPU impractical? Default shape: batch 8,
512 tokens, width 256, fp32, two threads. Every operator is timed in turn with attention, so
that a drifting machine moves both; the last line of the output is JSON, and --out keeps it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from archsearch import operators
from archsearch.latency.provenance import provenance
from archsearch.operators.layer import Mixer
from archsearch.timing import measure

LIMITS = {"mamba": 25.0, "rwkv7": 15.0}
LIMIT = 6.0


def training_step(mixer: Mixer, x: torch.Tensor) -> Callable[[], None]:
    parameters = [x, *mixer.parameters()]

    def step() -> None:
        torch.autograd.grad(mixer(x).sum(), parameters)

    return step


def make(name: str, width: int) -> Mixer:
    operator = operators.get(name)
    mixer = operator.build(operator.configure(width))
    mixer.init_weights(torch.Generator().manual_seed(0))
    return mixer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="per operator")
    parser.add_argument("--out", type=Path, help="keep the result with its provenance here")
    settings = parser.parse_args()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(settings.batch, settings.tokens, settings.width, generator=generator)
    x.requires_grad_()
    attention = training_step(make("attention", settings.width), x)

    def median_us(step: Callable[[], None]) -> float:
        budget = settings.seconds / 6
        timed = measure(step, budget_s=budget, warmup=1, min_repeats=3, threads=settings.threads)
        return timed.p50_us

    rows = []
    for name in operators.names():
        step = training_step(make(name, settings.width), x)
        ratios, times = [], []
        for _ in range(3):
            base, mine = median_us(attention), median_us(step)
            ratios.append(mine / base)
            times.append(mine / 1e3)
        ratio, limit = sorted(ratios)[1], LIMITS.get(name, LIMIT)
        rows.append(
            {"operator": name, "ms": sorted(times)[1], "ratio": ratio, "limit": limit}
            | {"ok": ratio <= limit}
        )

    shape = f"{settings.batch} x {settings.tokens} x {settings.width}"
    table = Table(title=f"forward + backward at {shape}, {settings.threads} threads")
    for column in ("operator", "ms (median)", "x attention", "limit"):
        table.add_column(column, justify="left" if column == "operator" else "right")
    for row in rows:
        style = None if row["ok"] else "red"
        table.add_row(
            str(row["operator"]),
            f"{row['ms']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['limit']:.0f}",
            style=style,
        )
    Console().print(table)
    result = {"shape": shape, "threads": settings.threads, "rows": rows}
    result["provenance"] = provenance("cpu")
    print(json.dumps(result))
    if settings.out is not None:
        settings.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
