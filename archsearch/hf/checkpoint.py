"""A checkpoint fits or is refused: transformers reports what did not fit and goes on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

SHOWN = 5
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_loaded(model: nn.Module, report: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Raise ValueError for tensors that were missing, unexpected or of another shape, and for
    weights that are not finite; `report` is transformers' loading info, `names` gives a tensor
    its name in the file."""
    problems = []
    if missing := [names.get(key, key) for key in report["missing_keys"]]:
        problems.append(f"missing {shorten(missing)}")
    if unexpected := report["unexpected_keys"]:
        problems.append(f"unexpected {shorten(unexpected)}")
    if wrong := report["mismatched_keys"]:
        shapes = [
            f"{names.get(key, key)} {tuple(found)} instead of {tuple(expected)}"
            for key, found, expected in wrong
        ]
        problems.append(f"of another shape {shorten(shapes)}")
    if problems:
        raise ValueError(f"the checkpoint does not fit its config: {'; '.join(problems)}")
    if bad := [names.get(key, key) for key, tensor in model.named_parameters() if broken(tensor)]:
        raise ValueError(f"the checkpoint holds weights that are not finite: {shorten(bad)}")


def broken(tensor: torch.Tensor) -> bool:
    """Whether a weight holds NaN or infinity; False where that cannot be seen."""
    if tensor.is_meta or tensor.dtype not in FLOATS:
        return False
    # a sum is not finite if a term is not, and makes no copy
    return not math.isfinite(tensor.detach().sum(dtype=torch.float64).item())


def shorten(items: Iterable[str]) -> str:
    """The first few of the sorted items and the number of the others."""
    listed = sorted(items)
    more = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {more} more" if more > 0 else "")
