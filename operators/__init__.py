"""The operator zoo: one explicit table of everything a layer can be.

Looking an operator up imports no torch; its module is imported when a layer is built.
"""

from __future__ import annotations

if __name__ != "archsearch.operators":
    raise ImportError("import archsearch.operators, not operators: the folder is linked there")


from archsearch.names import suggestion
from archsearch.operators.attention import ATTENTION
from archsearch.operators.base import PHASES
from archsearch.operators.base import Cost
from archsearch.operators.base import Operator
from archsearch.operators.base import OperatorConfig
from archsearch.operators.base import Phase
from archsearch.operators.base import Shape
from archsearch.operators.deltanet import DELTANET
from archsearch.operators.ffn import FFN
from archsearch.operators.gated_deltanet import GATED_DELTANET
from archsearch.operators.gated_deltaproduct import GATED_DELTAPRODUCT
from archsearch.operators.gla import GLA
from archsearch.operators.kda import KDA
from archsearch.operators.mamba import MAMBA
from archsearch.operators.mamba2 import MAMBA2
from archsearch.operators.mamba3 import MAMBA3
from archsearch.operators.mla import MLA
from archsearch.operators.retention import RETENTION
from archsearch.operators.rwkv7 import RWKV7
from archsearch.operators.sliding_window import SLIDING_WINDOW

OPERATORS: tuple[Operator, ...] = (
    ATTENTION,
    SLIDING_WINDOW,
    MLA,
    MAMBA,
    MAMBA2,
    MAMBA3,
    DELTANET,
    GATED_DELTANET,
    GATED_DELTAPRODUCT,
    KDA,
    GLA,
    RETENTION,
    RWKV7,
    FFN,
)

_BY_NAME = {key: operator for operator in OPERATORS for key in (operator.name, operator.code)}


def get(name: str) -> Operator:
    """Look an operator up by name or code; raises ValueError that names what exists."""
    try:
        return _BY_NAME[name]
    except KeyError:
        pass
    known = ", ".join(f"{operator.code} ({operator.name})" for operator in OPERATORS)
    hint = suggestion(name, _BY_NAME)
    raise ValueError(f"unknown operator {name!r}; {hint}the zoo has {known}")


def names() -> tuple[str, ...]:
    """Names of all operators, in table order."""
    return tuple(operator.name for operator in OPERATORS)


__all__ = [
    "OPERATORS",
    "PHASES",
    "Cost",
    "Operator",
    "OperatorConfig",
    "Phase",
    "Shape",
    "get",
    "names",
]
