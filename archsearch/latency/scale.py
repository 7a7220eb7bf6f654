"""Estimates for GPUs without a table: measured rows, taken apart and rescaled. No torch.

A row's time is taken for max(bytes / bandwidth, FLOPs / rate) / efficiency + kernels x launch,
the efficiency being what it measured on its own GPU. The other GPU's peaks go in its place.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from archsearch.hardware import PEAKS
from archsearch.hardware import Peaks
from archsearch.hardware import peaks
from archsearch.profiles import Table
from archsearch.profiles.schema import LATENCIES

# of a layer, where no row of the table tells
KERNELS = 8
ESTIMATE = "estimate"

_Floats = NDArray[np.float64]


def scaled(table: Table, gpu: str) -> Table:
    """The table as `gpu` might measure it: an estimate with a range, never a measurement.

    The median of a row is the estimate; its 10 % and 90 % columns are bounds: the whole time
    scaled by the most and by the least favourable ratio of bandwidth, FLOP rate and launch
    time, not below the floor of that GPU. The one replay of a model's graph scales as launches do.
    `meta["estimate"]` names both GPUs. A table of that very GPU is returned as it is. Raises
    ValueError for an unknown GPU and for a table of a CPU or of a GPU without known peaks.
    """
    target_name = find_gpu(gpu)
    target = PEAKS[target_name]
    source_name, source = _source(table)
    if source is target:
        return table
    rows = table.rows[table.rows["error"] == ""].reset_index(drop=True)
    rows = rows[rows["bytes"].notna() & rows["flops"].notna()].reset_index(drop=True)
    time = rows["latency_us_p50"].to_numpy(np.float64)
    floor, target_floor = _floor_us(rows, source), _floor_us(rows, target)
    # a launch that hides behind the memory traffic of its neighbours counts as far as it shows
    launch = np.minimum(_kernels(rows) * source.launch_us, np.maximum(time - floor, 0.0))
    launches = target.launch_us / source.launch_us
    # the efficiency stays, so the rest stretches as the floor does; launches where there is none
    stretch = np.divide(target_floor, floor, out=np.full_like(floor, launches), where=floor > 0)
    middle = np.maximum((time - launch) * stretch, target_floor) + launch * launches
    ratios = (
        source.bandwidth_bytes_s / target.bandwidth_bytes_s,
        source.bf16_flops_s / target.bf16_flops_s,
        launches,
    )
    low = np.maximum(time * min(ratios), target_floor)
    high = time * max(ratios)
    times = (np.minimum(low, middle), middle, np.maximum(high, middle))
    rows = rows.assign(
        **dict(zip(LATENCIES, times, strict=True)),
        roofline_us=target_floor,
        energy_j=np.nan,
        steady_us=np.nan,
    )
    estimate = {"table": table.name, "source": source_name, "target": target_name}
    meta = {**table.meta, ESTIMATE: estimate, **_sessions(table, launches)}
    name = f"{target_name}, estimated from {table.name}"
    return Table(name, rows, meta, stale=table.stale, holds_stale=table.holds_stale)


def _sessions(table: Table, launches: float) -> dict[str, Any]:
    """The table's sessions, where it has some, with the cost of a graph's replay so many times as
    large."""
    found = []
    for entry in table.meta.get("sessions", ()):
        ceilings = dict(entry.get("ceilings", {}))
        if "replay_us" in ceilings:
            ceilings["replay_us"] *= launches
        found.append({**entry, "ceilings": ceilings})
    return {"sessions": found} if found else {}


def find_gpu(name: str) -> str:
    """The key of `PEAKS` that `name` means, blanks and case aside; raises ValueError that names
    those that are known."""
    plain = {_plain(key): key for key in PEAKS}
    wanted = _plain(name)
    if wanted in plain:
        return plain[wanted]
    inside = [key for short, key in plain.items() if short in wanted]
    if inside:
        return inside[0]
    near = get_close_matches(wanted, list(plain), n=1)
    hint = f"did you mean {plain[near[0]]!r}? " if near else ""
    raise ValueError(f"no GPU {name!r} is known; {hint}known are {', '.join(PEAKS)}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _source(table: Table) -> tuple[str, Peaks]:
    name = str(table.meta.get("hardware", {}).get("name", "an unknown device"))
    found = peaks(name)
    if found is None:
        raise ValueError(
            f"the table {table.name!r} was measured on {name}, whose peaks are not known;"
            " an estimate for another GPU needs a table of a known one, such as nvidia-h100"
        )
    return name, found


def _floor_us(rows: pd.DataFrame, peak: Peaks) -> _Floats:
    memory = rows["bytes"].to_numpy(np.float64) / peak.bandwidth_bytes_s
    compute = rows["flops"].to_numpy(np.float64) / peak.bf16_flops_s
    return np.asarray(1e6 * np.maximum(memory, compute))


def _kernels(rows: pd.DataFrame) -> _Floats:
    """Kernels of every row; where a row does not tell, what others of its operator and phase do,
    else those of its phase, else a usual number."""
    counted = rows["kernels"].astype("float64")
    for columns in (["operator", "phase"], ["phase"]):
        counted = counted.fillna(
            counted.groupby([rows[name] for name in columns]).transform("median")
        )
    return np.asarray(counted.fillna(KERNELS), dtype=np.float64)
