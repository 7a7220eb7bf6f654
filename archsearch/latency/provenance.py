"""Where a measurement comes from: what must be known to trust or repeat it."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import archsearch
from archsearch import hardware
from archsearch.hardware import Hardware
from archsearch.profiles import cache_root
from archsearch.timing import CPU_THREADS

# raise one when the way of measuring there changes: rows of two methods do not mix in one table
METHODS = {"cpu": 4, "cuda": 6}
METHOD_TEXT = (
    "Every row is the time of one layer, pre-norm and residual included. On a CPU (one thread)"
    " a sample is one of several distinct layers (column stack) that take turns, behind layers"
    " of other operators that run untimed, as in a hybrid; samples that lost the core count"
    " not, and of three measurements some seconds apart the quietest is kept. On a GPU"
    " a sample is a CUDA-graph replay of all of them, in decode up to 32 that have 4 GB as a model"
    " has, otherwise more bytes than the L2 holds several times over, so often in a row that it"
    " takes 1 ms, less what a replay costs once (replay_us of the session), divided by their"
    " number. steady_us, power, clock and energy are those of steady work, behind 0.125 s of the"
    " same; so are the quantiles where that draws less than 93 % of the power cap, else they are"
    " of the first 0.02 s behind a rest, in which the GPU keeps its highest clocks. Graphs, those"
    " of whole models too, end in a dependent launch where the GPU has it, with which their"
    " kernels follow each other faster."
    " Decode times the layer step at that context, prefill the forward pass that fills a"
    " state, train forward and backward."
)


def measured_hardware(device: str = "cpu") -> Hardware:
    """The device as latencies are measured on it: a CPU with the timer's number of threads."""
    return hardware.describe(device, threads=CPU_THREADS)


def default_folder(device: str = "cpu") -> Path:
    """Where this user's own table of `device` lies."""
    return cache_root() / measured_hardware(device).slug


def method(device: str) -> int:
    """The number of the way in which `device` is measured."""
    return METHODS[device.partition(":")[0]]


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
        from archsearch.latency.nvml import sensor

        found = sensor(device)
        software["cuda"] = str(torch.version.cuda)
        software["driver"] = (found.driver() if found else None) or "unknown"
    return {
        "hardware": measured_hardware(device).to_dict(),
        "software": software,
        "packages": backend_packages(device),
        "git_commit": git_commit(),
        "method": method(device),
        "method_text": METHOD_TEXT,
        "measured": now(),
    }


def session(number: int, meta: Mapping[str, Any], ceilings: Mapping[str, float]) -> dict[str, Any]:
    """The entry of one stretch of measuring in a table's list of `sessions`."""
    kept = ("measured", "git_commit", "software", "packages", "method_text")
    return {"id": number, **{key: meta[key] for key in kept}, "ceilings": dict(ceilings)}


def backend_packages(device: str) -> dict[str, dict[str, str]]:
    """For every backend that a package brings, {package: version} of what is installed; triton,
    which compiles most of their kernels, stands for itself. A CPU runs none of them."""
    from archsearch.operators.backends import PACKAGES

    if not device.startswith("cuda"):
        return {}
    found = {}
    for backend, package in {**PACKAGES, "triton": "triton"}.items():
        try:
            if package:
                found[backend] = {package: metadata.version(package)}
        except metadata.PackageNotFoundError:
            continue
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What keeps the rows of two provenances out of one table, as "torch 2.12 -> 2.13"."""
    pairs = {
        "hardware": (old.get("hardware", {}).get("slug"), new.get("hardware", {}).get("slug")),
        "torch": (old.get("software", {}).get("torch"), new.get("software", {}).get("torch")),
        "cuda": (old.get("software", {}).get("cuda"), new.get("software", {}).get("cuda")),
        "triton": (compiler(old), compiler(new)),
        "method": (old.get("method"), new.get("method")),
    }
    return [f"{key} {a} -> {b}" for key, (a, b) in pairs.items() if a != b]


def compiler(meta: Mapping[str, Any]) -> str | None:
    """The version of the Triton that compiled what this provenance is about."""
    version: str | None = meta.get("packages", {}).get("triton", {}).get("triton")
    return version


def now() -> str:
    """The time of a measurement, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_commit() -> str | None:
    """$ARCHSEARCH_COMMIT where the sources are a copy; else the commit of this checkout, "-dirty"
    with changes; None outside a checkout of this project."""
    if given := os.environ.get("ARCHSEARCH_COMMIT"):
        return given
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
