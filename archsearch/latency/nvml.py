"""Power, clocks and throttling of an NVIDIA GPU, read through NVML while it works.

Everything is optional: without nvidia-ml-py, or where the driver does not tell, values are None.
Nothing is ever set.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cached_property
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

# clock event reasons that slow a GPU down: power cap, heat, power brake
SLOWDOWNS = 0x4 | 0x8 | 0x20 | 0x40 | 0x80
POWER_INSTANT = 186
SM_CLOCK = 1
# a GPU that draws less than this share of its power cap keeps its highest clocks
# (experiments/power-cap)
SPARE = 0.93


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the device."""

    power_w: float | None = None
    sm_clock_mhz: int | None = None
    throttled: bool | None = None

    def energy_j(self, us: float | None) -> float | None:
        """Joules of so many microseconds at this power, where both are known."""
        return None if self.power_w is None or us is None else 1e-6 * self.power_w * us


class Sensor:
    """One GPU as NVML sees it."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def read(self) -> Reading:
        """What the GPU is doing now."""
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        clock = self._ask("nvmlDeviceGetClockInfo", SM_CLOCK)
        return Reading(
            power_w=self._power(),
            sm_clock_mhz=None if clock is None else int(clock),
            throttled=None if reasons is None else bool(int(reasons) & SLOWDOWNS),
        )

    def has_spare(self, reading: Reading) -> bool:
        """Whether the power cap is far then; False where the device does not tell."""
        power_w, limit_w = reading.power_w, self._limit_w
        if power_w is None or limit_w is None or reading.throttled is not False:
            return False
        return power_w < SPARE * limit_w

    @cached_property
    def _limit_w(self) -> float | None:
        """The power cap."""
        limit = self._ask("nvmlDeviceGetEnforcedPowerLimit")
        return None if limit is None else float(limit) / 1000

    def driver(self) -> str | None:
        """The driver's version."""
        try:
            found = self._nvml.nvmlSystemGetDriverVersion()
        except self._nvml.NVMLError:
            return None
        return found.decode() if isinstance(found, bytes) else str(found)

    def _power(self) -> float | None:
        """Watts: at this instant where the device tells, else its own average."""
        fields = self._ask("nvmlDeviceGetFieldValues", [POWER_INSTANT])
        if fields is not None and fields[0].nvmlReturn == 0 and fields[0].value.uiVal:
            return float(fields[0].value.uiVal) / 1000
        average = self._ask("nvmlDeviceGetPowerUsage")
        return None if average is None else float(average) / 1000

    def _ask(self, name: str, *arguments: Any) -> Any:
        function = getattr(self._nvml, name, None)
        if function is None:
            return None
        try:
            return function(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None


class Meter:
    """Collects readings during one measurement; without a sensor it collects none."""

    def __init__(self, sensor: Sensor | None) -> None:
        self._sensor = sensor
        self._readings: list[Reading] = []

    def __call__(self) -> bool:
        """Take a reading; whether the GPU is known to have power to spare."""
        if self._sensor is None:
            return False
        self._readings.append(self._sensor.read())
        return self._sensor.has_spare(self._readings[-1])

    @property
    def reading(self) -> Reading:
        """Medians; throttled if it ever was."""
        watts = [one.power_w for one in self._readings if one.power_w is not None]
        clocks = [one.sm_clock_mhz for one in self._readings if one.sm_clock_mhz is not None]
        flags = [one.throttled for one in self._readings if one.throttled is not None]
        return Reading(
            statistics.median(watts) if watts else None,
            round(statistics.median(clocks)) if clocks else None,
            any(flags) if flags else None,
        )


@lru_cache(maxsize=8)
def sensor(device: str) -> Sensor | None:
    """The sensor of the CUDA device that torch calls `device`; None where NVML does not help."""
    if not device.startswith("cuda") or find_spec("pynvml") is None:
        return None
    nvml = import_module("pynvml")
    try:
        nvml.nvmlInit()
        return Sensor(nvml, _handle(nvml, device))
    except (nvml.NVMLError, AttributeError):
        return None


def _handle(nvml: Any, device: str) -> Any:
    """NVML counts all GPUs of the machine, torch those it may see: the identity decides."""
    import torch

    found: Any = torch.cuda.get_device_properties(device)
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{found.uuid}")
    except nvml.NVMLError:
        domain, bus, slot = found.pci_domain_id, found.pci_bus_id, found.pci_device_id
        return nvml.nvmlDeviceGetHandleByPciBusId(f"{domain:08X}:{bus:02X}:{slot:02X}.0")
