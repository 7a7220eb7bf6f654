"""Where a measurement comes from: what must be known to trust or repeat it."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC
from datetime import datetime
from pathlib import Path
from typing import Any

import archsearch
from archsearch import hardware
from archsearch.hardware import Hardware
from archsearch.profiles import cache_root
from archsearch.timing import CPU_THREADS

# raise it when the way of measuring changes: rows of two methods do not mix in one table
METHOD = 2
METHOD_TEXT = (
    "Every row is the time of one layer, pre-norm and residual included. On a CPU (one thread)"
    " a sample is one of several distinct layers (column stack) that take turns, behind layers"
    " of other operators that run untimed, as in a hybrid; samples that lost the core count"
    " not, and of three measurements some seconds apart the quietest is kept. On a GPU"
    " a sample is a CUDA-graph replay of all of them, divided by their number."
    " Decode times the layer step at that context, prefill the forward pass that fills a"
    " state, train forward and backward."
)


def measured_hardware(device: str = "cpu") -> Hardware:
    """The device as latencies are measured on it: a CPU with the timer's number of threads."""
    return hardware.describe(device, threads=CPU_THREADS)


def default_folder(device: str = "cpu") -> Path:
    """Where this user's own table of `device` lies."""
    return cache_root() / measured_hardware(device).slug


def provenance(device: str) -> dict[str, Any]:
    """Hardware, software, method and date of measurements made now on `device`."""
    import torch

    software = {
        "archsearch": archsearch.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "os": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
    }
    if device.startswith("cuda"):
        software["cuda"] = str(torch.version.cuda)
    return {
        "hardware": measured_hardware(device).to_dict(),
        "software": software,
        "git_commit": git_commit(),
        "method": METHOD,
        "method_text": METHOD_TEXT,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What keeps the rows of two provenances out of one table, as "torch 2.12 -> 2.13"."""
    pairs = {
        "hardware": (old.get("hardware", {}).get("slug"), new["hardware"]["slug"]),
        "torch": (old.get("software", {}).get("torch"), new["software"]["torch"]),
        "cuda": (old.get("software", {}).get("cuda"), new["software"].get("cuda")),
        "method": (old.get("method"), new["method"]),
    }
    return [f"{key} {a} -> {b}" for key, (a, b) in pairs.items() if a != b]


def git_commit() -> str | None:
    """Commit of this checkout, "-dirty" with changes; None outside a checkout of this project."""
    package = Path(archsearch.__file__).parent
    try:
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        return _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()
