"""The columns of a latency table, and the checks that every table passes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

PHASES = ("decode", "prefill", "train")

# columns that older tables were written without
ADDED = ("steady_us",)
KEY = ("operator", "config", "hidden_size", "phase", "batch", "context", "dtype", "backend")
LATENCIES = ("latency_us_p10", "latency_us_p50", "latency_us_p90")

# what each column means stands in README.md beside this file
SCHEMA = pa.schema(
    [
        pa.field("operator", pa.string(), nullable=False),
        pa.field("config", pa.string(), nullable=False),
        pa.field("hidden_size", pa.int64(), nullable=False),
        pa.field("phase", pa.string(), nullable=False),
        pa.field("batch", pa.int64(), nullable=False),
        pa.field("context", pa.int64(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("backend", pa.string(), nullable=False),
        *(pa.field(name, pa.float64()) for name in LATENCIES),
        pa.field("steady_us", pa.float64()),
        pa.field("repeats", pa.int64(), nullable=False),
        pa.field("stack", pa.int64(), nullable=False),
        pa.field("stack_bytes", pa.int64(), nullable=False),
        pa.field("kernels", pa.int64()),
        pa.field("bytes", pa.int64()),
        pa.field("flops", pa.int64()),
        pa.field("roofline_us", pa.float64()),
        pa.field("energy_j", pa.float64()),
        pa.field("power_w", pa.float64()),
        pa.field("sm_clock_mhz", pa.int64()),
        pa.field("throttled", pa.bool_()),
        pa.field("used_cuda_graph", pa.bool_(), nullable=False),
        pa.field("session", pa.int64(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
    ]
)


def canonical_json(value: Mapping[str, Any]) -> str:
    """One text per value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def empty_rows() -> pd.DataFrame:
    """A table without rows."""
    return SCHEMA.empty_table().to_pandas()


def make_rows(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows from dicts; optional columns may be left out, and the session where there is but
    the first. Raises as `checked` does."""
    frame = pd.DataFrame([dict(row) for row in rows])
    if frame.empty:
        return empty_rows()
    if "session" not in frame:
        frame["session"] = 0
    for field in SCHEMA:
        if field.name not in frame and field.nullable:
            frame[field.name] = None
    return checked(frame, "these rows")


def to_arrow(frame: pd.DataFrame, what: str) -> pa.Table:
    """The rows as an Arrow table of this schema; raises ValueError that names the column."""
    frame = frame.assign(**{name: None for name in ADDED if name not in frame})
    missing = [name for name in SCHEMA.names if name not in frame]
    if missing:
        raise ValueError(f"{what}: not a latency table: no column {missing[0]!r}")
    foreign = [name for name in frame if name not in SCHEMA.names]
    if foreign:
        raise ValueError(f"{what}: not a latency table: unknown column {foreign[0]!r}")
    arrays = []
    for field in SCHEMA:
        try:
            array = pa.Array.from_pandas(frame[field.name], type=field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise ValueError(f"{what}: column {field.name!r} must be {field.type}") from error
        if array.null_count and not field.nullable:
            raise ValueError(f"{what}: column {field.name!r} has empty cells")
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def checked(frame: pd.DataFrame, what: str) -> pd.DataFrame:
    """The rows with this schema's types; raises ValueError with the first thing wrong.

    A row is either measured (quantiles in order and positive) or has an `error`; keys are
    unique; `config` is canonical JSON.
    """
    rows: pd.DataFrame = to_arrow(frame, what).to_pandas()
    double = rows.duplicated(list(KEY))
    if double.any():
        raise ValueError(f"{what}: two rows for {describe_key(rows[double].iloc[0])}")
    unknown = sorted(set(rows["phase"]) - set(PHASES))
    if unknown:
        raise ValueError(f"{what}: phase must be one of {list(PHASES)}; got {unknown[0]!r}")
    for text in rows["config"].unique():
        if not _is_canonical(text):
            raise ValueError(f"{what}: config must be canonical JSON; got {text!r}")
    p10, p50, p90 = (rows[name] for name in LATENCIES)
    bad = (rows["error"] == "") & ~((p10 > 0) & (p10 <= p50) & (p50 <= p90))
    if bad.any():
        key = describe_key(rows[bad].iloc[0])
        raise ValueError(f"{what}: the latency quantiles of {key} are not positive and in order")
    return rows


def describe_key(row: Any) -> str:
    """A row's key for a sentence."""
    return (
        f"{row['operator']} at width {row['hidden_size']} ({row['phase']}, batch {row['batch']},"
        f" context {row['context']}, {row['dtype']})"
    )


def _is_canonical(text: str) -> bool:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return False
    return isinstance(value, dict) and canonical_json(value) == text
