"""Latency: operators measured into tables, tables summed into models, models timed whole.

Planning and predicting import no torch; measuring does, when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from archsearch.latency.cases import Case
from archsearch.latency.cases import cases_for_space
from archsearch.latency.cases import cases_for_spec
from archsearch.latency.predict import Part
from archsearch.latency.predict import Prediction
from archsearch.latency.predict import predict
from archsearch.latency.predict import predict_many
from archsearch.latency.predict import predict_patterns
from archsearch.latency.provenance import default_folder
from archsearch.latency.scale import scaled

if TYPE_CHECKING:
    from archsearch.latency.holdout import leave_one_out
    from archsearch.latency.sweep import profile
    from archsearch.latency.whole import measure_model

_LAZY = {
    "leave_one_out": "archsearch.latency.holdout",
    "measure_model": "archsearch.latency.whole",
    "profile": "archsearch.latency.sweep",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Case",
    "Part",
    "Prediction",
    "cases_for_space",
    "cases_for_spec",
    "default_folder",
    "leave_one_out",
    "measure_model",
    "predict",
    "predict_many",
    "predict_patterns",
    "profile",
    "scaled",
]
