"""What the blocks by rule lose against the best of those that `shapes.py` tried.

    python experiments/fused-decode/regret.py OUT/shapes-*.jsonl

Prints, by rows of the batch, kind of product and the largest power of two that divides its width,
what the rule as it is now loses, and which single settings would lose the least. Needs no GPU.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path
from statistics import fmean

import torch
from shapes import Product

from archsearch.operators.fused.blocks import by_rule

Setting = tuple[int, ...]
# of several shapes: the setting by rule, and what every one took
Times = list[tuple[Setting, dict[Setting, float]]]

SHOWN = 4
# the rule and its candidates know no wider tiles
MOST_COLUMNS = 2048


def main() -> None:
    found: dict[tuple[int, str, int], Times] = defaultdict(list)
    for (batch, one), us in read(sys.argv[1:]).items():
        divisor = min(one.width & -one.width, MOST_COLUMNS)
        found[batch, one.epilogue, divisor].append((rule(batch, one), us))
    for (batch, epilogue, divisor), lines in sorted(found.items()):
        losses = [loss(us, setting) for setting, us in lines if setting in us]
        print(f"{batch} rows, {epilogue}, columns in {divisor}s, {len(lines)} shapes:", end=" ")
        if losses:
            print(f"the rule loses {fmean(losses):.1%}, at worst {max(losses):.1%}", end=" ")
        print(f"({len(lines) - len(losses)} not tried)" if len(losses) < len(lines) else "")
        measured = [us for _, us in lines]
        for setting in best(measured)[:SHOWN]:
            losses = [loss(us, setting) for us in measured]
            print(f"    {list(setting)} {fmean(losses):.1%}, at worst {max(losses):.1%}")


def read(paths: Iterable[str]) -> dict[tuple[int, Product], dict[Setting, float]]:
    """The least microseconds of every setting by rows of the batch and product."""
    found: dict[tuple[int, Product], dict[Setting, float]] = defaultdict(dict)
    for path in paths:
        for text in Path(path).read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            # the first of a run says where it is from
            if "us" in line:
                one = Product(line["epilogue"], line["rows"], line["width"])
                times = found[line["batch"], one]
                for key, us in line["us"].items():
                    setting = tuple(json.loads(key))
                    times[setting] = min(us, times.get(setting, us))
    return found


def rule(batch: int, one: Product) -> Setting:
    """The setting by rule of a product."""
    rows = one.num_weights * one.rows
    return astuple(by_rule(one.epilogue, batch, rows, one.width, torch.bfloat16))


def loss(us: dict[Setting, float], setting: Setting) -> float:
    """How much longer than with the best one it takes; infinite where it was not tried."""
    return us.get(setting, float("inf")) / min(us.values()) - 1


def best(measured: list[dict[Setting, float]]) -> list[Setting]:
    """Settings that were tried with all of these, the best in the mean first."""
    tried = set.intersection(*(set(us) for us in measured))
    return sorted(tried, key=lambda setting: fmean([loss(us, setting) for us in measured]))


if __name__ == "__main__":
    main()
