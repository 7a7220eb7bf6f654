"""Kernel settings found by an earlier autotuning, so that nobody waits minutes at first use.

Triton's autotuner tries every setting of a kernel when it first meets a key (some argument
values and the dtypes). `operators/tuned/sm<capability>.json` keeps what it found on a GPU of
that architecture; `use` hands it to the autotuners of a package. A key that was not met
before takes the entry with the nearest head count and batch size; anything else in it (head
widths, chunk lengths, flags, dtypes) must be equal, otherwise Triton tunes as usual.
`experiments/kernel-tuning` makes these files.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent.parent / "tuned"
# what may differ between the key that was tuned and the key that is asked for
LOOSE = {"B", "H", "HV", "HQ", "T", "NB", "NT", "M", "num_heads", "nheads", "batch"}
SETTINGS = ("num_warps", "num_stages", "num_ctas", "maxnreg")

logger = logging.getLogger(__name__)


class Tuned(dict[tuple[Any, ...], Any]):
    """An autotuner's memory (key -> setting) that answers for similar keys too."""

    def __init__(self, entries: dict[tuple[Any, ...], Any], loose: set[int]) -> None:
        super().__init__(entries)
        self.known = dict(entries)
        self.loose = loose

    def __contains__(self, key: object) -> bool:
        if super().__contains__(key):
            return True
        assert isinstance(key, tuple), f"{key} is no autotuning key"
        near = {known: self._distance(known, key) for known in self.known}
        best = min(near, key=lambda known: near[known], default=None)
        if best is None or near[best] == math.inf:
            return False
        self[key] = self.known[best]
        return True

    def _distance(self, known: tuple[Any, ...], key: tuple[Any, ...]) -> float:
        if len(known) != len(key):
            return math.inf
        total = 0.0
        for place, (left, right) in enumerate(zip(known, key, strict=True)):
            if left == right and type(left) is type(right):
                continue
            if place not in self.loose or not (_is_size(left) and _is_size(right)):
                return math.inf
            total += abs(math.log(left / right))
        return total


def use(package: str) -> None:
    """Give the autotuned kernels of an imported package the settings kept for this GPU;
    ARCHSEARCH_TUNED=0 leaves everything to Triton."""
    if os.environ.get("ARCHSEARCH_TUNED") == "0" or not torch.cuda.is_available():
        return
    kept = _kept(torch.cuda.get_device_capability())
    if not kept:
        return
    for name, tuner in autotuners(package):
        if name not in kept or isinstance(tuner.cache, Tuned):
            continue
        entries = _fitting(tuner, kept[name])
        if entries:
            loose = {place for place, key in enumerate(tuner.keys) if key in LOOSE}
            tuner.cache = Tuned({**entries, **tuner.cache}, loose)


def collect(package: str) -> dict[str, dict[str, Any]]:
    """What the autotuners of a package found in this process, in the form that is kept:
    {kernel: {"keys": names, "entries": [[key, setting], ...]}}."""
    found = {}
    for name, tuner in autotuners(package):
        # a hook (it zeroes an output, for example) cannot be kept: such a kernel is tuned anew
        if not tuner.cache or any(config.pre_hook for config in tuner.configs):
            continue
        entries = [[list(key), _setting(config)] for key, config in tuner.cache.items()]
        found[name] = {"keys": list(tuner.keys), "entries": entries}
    return found


def autotuners(package: str) -> Iterator[tuple[str, Any]]:
    """("module:kernel", autotuner) of every autotuned kernel in the package's loaded modules."""
    from triton.runtime.autotuner import Autotuner

    seen: set[int] = set()
    for module_name, module in sorted(sys.modules.items()):
        if module_name.split(".")[0] != package or module is None:
            continue
        for value in list(vars(module).values()):
            kernel = value
            while kernel is not None and not isinstance(kernel, type):
                if isinstance(kernel, Autotuner):
                    if id(kernel) not in seen:
                        seen.add(id(kernel))
                        yield f"{kernel.base_fn.__module__}:{kernel.base_fn.__name__}", kernel
                    break
                # decorators (heuristics) wrap one another
                kernel = vars(kernel).get("fn") if hasattr(kernel, "__dict__") else None


def _fitting(tuner: Any, kept: dict[str, Any]) -> dict[tuple[Any, ...], Any]:
    """The kept entries as Triton's own; none where the installed kernel is another version's."""
    import triton

    names = {tuple(sorted(config.kwargs)) for config in tuner.configs}
    hooks = any(config.pre_hook for config in tuner.configs)
    if kept["keys"] != list(tuner.keys) or hooks:
        logger.info("settings kept for %s are another version's", tuner.base_fn.__name__)
        return {}
    return {
        tuple(key): triton.Config(
            setting["kwargs"], **{name: setting[name] for name in SETTINGS if name in setting}
        )
        for key, setting in kept["entries"]
        if tuple(sorted(setting["kwargs"])) in names
    }


def _setting(config: Any) -> dict[str, Any]:
    return {
        "kwargs": config.kwargs,
        **{name: getattr(config, name) for name in SETTINGS if hasattr(config, name)},
    }


@lru_cache(maxsize=2)
def _kept(capability: tuple[int, int]) -> dict[str, dict[str, Any]]:
    file = FOLDER / f"sm{capability[0]}{capability[1]}.json"
    if not file.exists():
        return {}
    kernels: dict[str, dict[str, Any]] = json.loads(file.read_text())["kernels"]
    return kernels


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
