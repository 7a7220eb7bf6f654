"""What this machine is, and what GPUs can do at best by their datasheets."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Literal


@dataclass(frozen=True, slots=True)
class Peaks:
    """Upper limits of one GPU: dense bf16 without sparsity, memory bandwidth one way.

    `launch_us` is what one more kernel in a CUDA graph costs beyond its bytes; it was measured
    on the H200 and is an estimate elsewhere.
    """

    bandwidth_bytes_s: float
    bf16_flops_s: float
    l2_bytes: int
    memory_bytes: int
    launch_us: float


# keys are looked for in the device's name, in this order
PEAKS: dict[str, Peaks] = {
    # HGX B200 datasheet (per GPU); L2 as the driver reports it
    "B200": Peaks(8.0e12, 2250e12, 126 * 2**20, 180 * 10**9, 2.5),
    # H200 SXM datasheet; same chip as the H100
    "H200": Peaks(4.8e12, 989.4e12, 50 * 2**20, 141 * 10**9, 2.6),
    # H100 SXM5 datasheet, Hopper whitepaper
    "H100": Peaks(3.35e12, 989.4e12, 50 * 2**20, 80 * 10**9, 2.6),
    # A100 SXM4 datasheet, Ampere whitepaper; the first memory size has slower memory
    "A100-SXM4-40GB": Peaks(1.555e12, 312e12, 40 * 2**20, 40 * 10**9, 2.5),
    "A100": Peaks(2.039e12, 312e12, 40 * 2**20, 80 * 10**9, 2.5),
    # L40S datasheet, Ada whitepaper
    "L40S": Peaks(0.864e12, 362.05e12, 96 * 2**20, 48 * 10**9, 2.5),
    # Ada whitepaper, bf16 with fp32 accumulation
    "RTX 4090": Peaks(1.008e12, 165.2e12, 72 * 2**20, 24 * 10**9, 2.5),
    # Jetson AGX Orin 64GB datasheet: 85 dense int8 TOPS on the GPU, half as many in 16 bits
    "Orin": Peaks(0.2048e12, 42.5e12, 4 * 2**20, 64 * 10**9, 5.0),
}


@dataclass(frozen=True, slots=True)
class Hardware:
    """One device that latencies are measured on; `slug` names its tables.

    `threads` is how many of the CPU a measured model computes with; a GPU has none.
    """

    kind: Literal["cpu", "gpu"]
    name: str
    slug: str
    cores: int
    threads: int
    memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for provenance."""
        return asdict(self)

    @property
    def peaks(self) -> Peaks | None:
        """The datasheet's limits, where they are known."""
        return peaks(self.name) if self.kind == "gpu" else None


def describe(device: str = "cpu", *, threads: int = 1) -> Hardware:
    """Describe this machine's CPU, latencies being measured on `threads` of it, or the GPU that
    `device` ("cuda", "cuda:1") names. Raises ValueError for a device that does not exist."""
    if device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            raise ValueError(f"device {device!r} needs a CUDA GPU, and torch sees none")
        found = torch.cuda.get_device_properties(device)
        return Hardware(
            kind="gpu",
            name=found.name,
            slug=slugify(found.name),
            cores=found.multi_processor_count,
            threads=0,
            memory_bytes=found.total_memory,
        )
    if device != "cpu":
        raise ValueError(f"device must be 'cpu' or 'cuda[:index]'; got {device!r}")
    name = cpu_name()
    return Hardware(
        kind="cpu",
        name=name,
        slug=f"cpu-{slugify(name)}-{threads}t",
        cores=available_cores(),
        threads=threads,
        memory_bytes=memory_bytes(),
    )


def peaks(name: str) -> Peaks | None:
    """Limits of the GPU that calls itself `name`, or None if it is not in the table."""
    return next((value for key, value in PEAKS.items() if key.lower() in name.lower()), None)


def slugify(name: str) -> str:
    """A short lower-case file name for a device's marketing name."""
    plain = re.sub(r"\((R|TM|C)\)|@.*|\bw/.*|\bwith .*", " ", name, flags=re.IGNORECASE)
    plain = re.sub(r"\b(\d+-Core|CPU|Processor)\b", " ", plain, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-") or "unknown"


def cpu_name() -> str:
    """The processor's name as the operating system gives it."""
    if platform.system() == "Linux":
        info = Path("/proc/cpuinfo")
        if info.exists():
            for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "Model", "Hardware") and value.strip():
                    return value.strip()
    if platform.system() == "Darwin":
        ask = ["sysctl", "-n", "machdep.cpu.brand_string"]
        found = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
        if found:
            return found
    return platform.processor() or platform.machine() or "unknown"


def available_cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Physical memory, or 0 where the operating system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0
