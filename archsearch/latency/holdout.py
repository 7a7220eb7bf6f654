"""How good interpolation is inside a table: leave rows out, ask their neighbours for them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from archsearch.latency.calibration import CalibrationError
from archsearch.latency.lookup import index_of
from archsearch.operators import Phase
from archsearch.profiles import Table

COLUMNS = (
    *("operator", "config", "hidden_size", "phase", "dtype"),
    *("axis", "batch", "context", "measured_us", "predicted_us", "error"),
)


def leave_one_out(table: Table) -> pd.DataFrame:
    """One row for each inner context and inner batch of the table, left out and interpolated
    along that `axis`: `error` is predicted / measured - 1 of the medians.

    Summarise it by operator and phase with `summarise`.
    """
    found = [
        (*layer, one.axis, one.batch, one.context, one.measured.p50, one.predicted.p50)
        for layer, surface in index_of(table).surfaces.items()
        for one in surface.left_out()
    ]
    rows = pd.DataFrame(found, columns=list(COLUMNS[:-1]))
    rows["error"] = rows["predicted_us"].astype(float) / rows["measured_us"].astype(float) - 1
    return rows


def between_batches(table: Table, phase: Phase) -> CalibrationError | None:
    """How far a phase's rows are from what their neighbours along the batch say, which lie twice
    as far apart as those that a prediction has; None where no row has two."""
    summary = summarise(leave_one_out(table), ("phase", "axis"))
    found = summary[(summary["phase"] == phase) & (summary["axis"] == "batch")]
    if found.empty:
        return None
    median, p90, count = found[["median", "p90", "count"]].iloc[0]
    return CalibrationError(float(median), float(p90), int(count))


def summarise(
    left_out: pd.DataFrame, by: Sequence[str] = ("operator", "phase", "axis")
) -> pd.DataFrame:
    """Absolute relative error by operator, phase and axis, or fewer: count, median, p90 and the
    worst."""
    size = left_out.assign(error=left_out["error"].abs())
    groups = size.groupby(list(by), sort=False)["error"]
    summary = groups.agg(
        count="count", median="median", p90=lambda values: values.quantile(0.9), worst="max"
    )
    return summary.reset_index()
