"""What the blocks by rule lose against the best of those that `shapes.py` tried.

    python experiments/fused-decode/regret.py OUT/shapes-*.jsonl

Prints, by rows of the batch, kind of product and the largest power of two that divides its width,
what the rule as it is now loses, and which single settings would lose the least. Needs no GPU.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch

from archsearch.operators.fused.blocks import by_rule

Setting = tuple[int, ...]
Lines = list[dict[str, Any]]

SHOWN = 4
# wider tiles are not tried
MOST_COLUMNS = 1024


def main() -> None:
    found: dict[tuple[int, str, int], Lines] = defaultdict(list)
    for path in sys.argv[1:]:
        for text in Path(path).read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            # the first says where they are from
            if "us" in line:
                line["us"] = {tuple(json.loads(key)): us for key, us in line["us"].items()}
                divisor = min(line["width"] & -line["width"], MOST_COLUMNS)
                found[line["batch"], line["epilogue"], divisor].append(line)
    for (batch, epilogue, divisor), lines in sorted(found.items()):
        losses = [loss(line, rule(line)) for line in lines]
        print(f"{batch} rows, {epilogue}, columns in {divisor}s, {len(lines)} shapes:", end=" ")
        print(f"the rule loses {mean(losses):.1%}, at worst {max(losses):.1%}")
        for setting in best(lines)[:SHOWN]:
            losses = [loss(line, setting) for line in lines]
            print(f"    {list(setting)} {mean(losses):.1%}, at worst {max(losses):.1%}")


def rule(line: dict[str, Any]) -> Setting:
    """The setting by rule of a line's product."""
    rows = line["rows"] * (2 if line["epilogue"] == "swiglu" else 1)
    return astuple(by_rule(line["epilogue"], line["batch"], rows, line["width"], torch.bfloat16))


def loss(line: dict[str, Any], setting: Setting) -> float:
    """How much longer than with the best one it takes; infinite where it was not tried."""
    us: dict[Setting, float] = line["us"]
    return us.get(setting, float("inf")) / min(us.values()) - 1


def best(lines: Lines) -> list[Setting]:
    """Settings that were tried with all of these, the best in the mean first."""
    tried = set.intersection(*(set(line["us"]) for line in lines))
    return sorted(tried, key=lambda setting: mean([loss(line, setting) for line in lines]))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
