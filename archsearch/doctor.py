"""What this machine has, and which backend would serve each operator in each phase.

Nothing is measured and no weight is made: an operator is built without memory and asked.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version
from typing import Any
from typing import ClassVar
from typing import Protocol

import torch

import archsearch
from archsearch import hardware
from archsearch import operators
from archsearch.hardware import Hardware
from archsearch.model import fused_head
from archsearch.model.head import LMHead
from archsearch.operators import PHASES
from archsearch.operators import Phase
from archsearch.operators import backends
from archsearch.operators.backends import Request
from archsearch.operators.fused.dispatch import refuses_step
from archsearch.operators.fused.table import HEAD
from archsearch.operators.fused.table import decode_backends
from archsearch.operators.layer import Mixer
from archsearch.profiles.store import TableInfo
from archsearch.profiles.store import list_tables
from archsearch.profiles.store import read_table
from archsearch.timing import CPU_THREADS

# the width that operators are built at to be asked: every one of them exists there
WIDTH = 2048
# packages that are compiled when they are installed
COMPILED = ("mamba-ssm", "causal-conv1d", "flash-attn")
# what their builds import, without isolation
BUILD = ("ninja", "packaging", "psutil", "setuptools", "wheel")


class Chooser(Protocol):
    """A module whose implementation is chosen when it runs: an operator, or a part of one."""

    operator: ClassVar[str]

    @property
    def backends(self) -> tuple[str, ...]:
        """In order of preference."""

    def refuses(self, backend: str, request: Request) -> str:
        """Why it cannot serve the request."""


@dataclass(frozen=True, slots=True)
class Service:
    """What serves one operator in one phase, and why the backends before it do not."""

    operator: str
    phase: Phase
    backend: str
    refused: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TableState:
    """A latency table as seen from this machine: why an operator's rows are stale, and the
    `problem` where it cannot be read."""

    info: TableInfo
    rows: int
    measured: str
    fits: bool
    stale: Mapping[str, str]
    problem: str = ""


@dataclass(frozen=True)
class Findings:
    """All of it. Services are those of `device` and `dtype`."""

    cpu: Hardware
    gpu: Hardware | None
    capability: str
    driver: str
    software: Mapping[str, str]
    packages: Mapping[str, str]
    tables: tuple[TableState, ...]
    device: str
    dtype: str
    services: tuple[Service, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Kernel packages that are not installed."""
        return tuple(name for name, found in self.packages.items() if not found)


def examine() -> Findings:
    """Look at this machine, its packages, tables and backends."""
    has_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if has_gpu else ("cpu", torch.float32)
    cpu = hardware.describe("cpu", threads=CPU_THREADS)
    gpu = hardware.describe("cuda") if has_gpu else None
    capability = ".".join(map(str, torch.cuda.get_device_capability())) if has_gpu else ""
    slugs = {found.slug for found in (cpu, gpu) if found is not None}
    return Findings(
        cpu=cpu,
        gpu=gpu,
        capability=capability,
        driver=_driver() if has_gpu else "",
        software=_software(),
        packages={name: _version(name) for name in backends.PACKAGES.values() if name},
        tables=tuple(_table(info, slugs) for info in list_tables()),
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        services=tuple(services(device, dtype)),
    )


def services(device: str, dtype: torch.dtype) -> Iterator[Service]:
    """What would serve every operator, and every part that chooses for itself, by phase."""
    for module in _choosers():
        for phase in PHASES:
            request = Request(module.operator, phase, device, dtype)
            yield _service(request, _reasons(module, request))
    with torch.device("meta"):
        head = LMHead(WIDTH, WIDTH, norm_eps=1e-6, head_norm=False)
    request = Request(HEAD, "decode", device, dtype)
    refuses = partial(fused_head.refuses_head, head)
    yield _service(request, backends.explain(fused_head.BACKENDS, request, refuses))


def _service(request: Request, reasons: Mapping[str, str]) -> Service:
    offered = list(reasons)
    served = next((name for name, reason in reasons.items() if not reason), "")
    before = offered[: offered.index(served)] if served else offered
    refused = {name: reasons[name] for name in before}
    return Service(request.operator, request.phase, served, refused)


def _reasons(module: Chooser, request: Request) -> dict[str, str]:
    """Why each backend, the fused decode step among them, cannot serve the request."""
    if request.phase != "decode" or not isinstance(module, Mixer):
        return backends.explain(module.backends, request, module.refuses)
    return backends.explain(
        decode_backends(module.operator, module.backends),
        request,
        lambda backend, request: refuses_step(module, backend, request),
    )


def _choosers() -> Iterator[Chooser]:
    """Every operator of the zoo without its weights, then the parts they share."""
    parts: dict[str, Any] = {}
    for operator in operators.OPERATORS:
        with torch.device("meta"):
            mixer = operator.build(operator.configure(WIDTH))
        yield mixer
        for part in mixer.modules():
            if part is not mixer and hasattr(part, "refuses"):
                parts.setdefault(str(part.operator), part)
    yield from parts.values()


def _software() -> dict[str, str]:
    triton = ".".join(map(str, backends.triton_version()))
    return {
        "archsearch": archsearch.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": triton,
        "cuda": torch.version.cuda or "",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _driver() -> str:
    """The GPU driver's version, where NVML tells it."""
    from archsearch.latency import nvml

    sensor = nvml.sensor("cuda")
    return "" if sensor is None else sensor.driver() or ""


def _table(info: TableInfo, slugs: set[str]) -> TableState:
    try:
        table, _ = read_table(info.path)
    except ValueError as error:
        return TableState(info, 0, "", False, {}, str(error))
    return TableState(
        info,
        rows=len(table.rows),
        measured=str(table.meta.get("measured", ""))[:10],
        fits=table.meta.get("hardware", {}).get("slug") in slugs,
        stale=table.stale,
    )
