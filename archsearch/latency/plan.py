"""Which cases a sweep measures, in which order, and how long that takes. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from archsearch import operators
from archsearch.latency.cases import HEAD
from archsearch.latency.cases import Case
from archsearch.latency.cases import cases_for_space
from archsearch.latency.cases import cases_for_spec
from archsearch.names import suggestion
from archsearch.operators import Phase
from archsearch.operators import Shape
from archsearch.space import get_space
from archsearch.space import presets
from archsearch.space.search_space import SearchSpace

VOCABULARY = 131072
# more tokens at once are no prompt that one GPU reads in one go
MAX_PREFILL_TOKENS = 65536
# a GPU's seconds for one case: building, recording and replaying; then per TFLOP of a long one
BASE_S, TFLOP_S = 0.35, 0.03
# until so much of a plan is done, what is expected counts too: a first case may compile for long
EXPECTED_S = 2.0


class Group(NamedTuple):
    """What the layers of a case are made from: cases of one group share them."""

    operator: str
    config: str
    hidden_size: int
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Shapes by phase, crossed with operators (codes) at widths; whole `presets` on top.

    Decode and prefill: batches x contexts, decode at `decode_batches` too, prefill up to
    `MAX_PREFILL_TOKENS`. Train: batch 1 at `train_contexts`.
    """

    codes: tuple[str, ...]
    widths: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    decode_batches: tuple[int, ...] = ()
    train_contexts: tuple[int, ...] = ()
    presets: tuple[str, ...] = ()
    vocab_size: int = VOCABULARY
    dtype: str = "bfloat16"

    def shapes(self) -> list[Shape]:
        """Every shape that is asked of a model."""
        decoded = sorted({*self.batches, *self.decode_batches})
        return [
            *(
                Shape("decode", batch, context, self.dtype)
                for batch, context in product(decoded, self.contexts)
            ),
            *(
                Shape("prefill", batch, context, self.dtype)
                for batch, context in product(self.batches, self.contexts)
                if batch * context <= MAX_PREFILL_TOKENS
            ),
            *(Shape("train", 1, context, self.dtype) for context in self.train_contexts),
        ]

    def cases(self) -> list[Case]:
        """Every case, each once: the operators with their default configs at every width,
        then what the presets have of their own."""
        shapes = self.shapes()
        found = list(cases_for_space(zoo(self.codes, self.widths, self.vocab_size), shapes))
        for name in self.presets:
            found += cases_for_spec(presets.get(name), shapes)
        return list(dict.fromkeys(found))


def zoo(codes: Sequence[str], widths: Sequence[int], vocab_size: int) -> SearchSpace:
    """A space that holds the mixers `codes`, and the FFN, at these widths."""
    return get_space("free", widths=widths, codes=codes, fields={"vocab_size": vocab_size})


MIXERS = tuple(operator.code for operator in operators.OPERATORS if operator.kind == "mixer")
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)

GRIDS: dict[str, Grid] = {
    # what ships for a GPU
    "shipped": Grid(
        codes=MIXERS,
        widths=(896, 1024, 1280, 1536, 1792, 2048, 2304, 2560, 3072),
        batches=(1, 8, 32, 128),
        contexts=CONTEXTS,
        # one row runs other kernels than two: a straight line from 1 to 8 rows tells whole models
        # 20 % too low at 2, and 12 % at 4 (experiments/calibration)
        decode_batches=(2, 4, 16, 64),
        train_contexts=(1024, 4096),
        presets=presets.names(),
    ),
    # minutes: enough to search at one batch
    "quick": Grid(codes=MIXERS, widths=(1024, 2048), batches=(1, 8), contexts=(1024, 4096, 16384)),
}


def get_grid(name: str) -> Grid:
    """The grid called `name`; raises ValueError that names what exists."""
    if name not in GRIDS:
        hint = suggestion(name, GRIDS)
        raise ValueError(f"unknown grid {name!r}; {hint}there are {', '.join(GRIDS)}")
    return GRIDS[name]


def group_of(case: Case) -> Group:
    """The group of a case."""
    return Group(case.operator, case.config, case.hidden_size, case.dtype)


def in_groups(cases: Iterable[Case]) -> list[list[Case]]:
    """The cases of each group together, in the order of their first; within a group the small
    ones first."""
    groups: dict[Group, list[Case]] = {}
    for case in dict.fromkeys(cases):
        groups.setdefault(group_of(case), []).append(case)
    order = {phase: index for index, phase in enumerate(operators.PHASES)}
    return [
        sorted(group, key=lambda case: (order[case.phase], case.batch, case.context))
        for group in groups.values()
    ]


def shard(cases: Iterable[Case], which: str) -> list[Case]:
    """The part of the plan for one of several machines: `which` = "1/4" is the first of four.

    Groups stay whole and are dealt by estimated time, so that the parts take equally long.
    Raises ValueError for anything but two numbers in order.
    """
    index, _, count = which.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise ValueError(f"a shard is given as '1/4', the first of four; got {which!r}")
    groups = sorted(in_groups(cases), key=total_s, reverse=True)
    return [case for group in groups[int(index) - 1 :: int(count)] for case in group]


def expected_s(case: Case) -> float:
    """Roughly what a case takes on a GPU, in seconds."""
    return BASE_S + TFLOP_S * flops(case) / 1e12


def total_s(cases: Iterable[Case]) -> float:
    """Roughly what these cases take on a GPU, in seconds."""
    return sum(expected_s(case) for case in cases)


def flops(case: Case) -> float:
    """FLOPs of one call, to an order of magnitude for the parts that are no layers."""
    try:
        operator = operators.get(case.operator)
    except ValueError:
        logits = case.phase == "train" and case.operator == HEAD
        return 6.0 * case.shape.tokens * VOCABULARY * case.hidden_size if logits else 0.0
    config = operator.configure(case.hidden_size, **json.loads(case.config))
    return float(operator.cost(config, case.shape).flops)


class Pace:
    """How long the rest of a plan takes, from what its cases took so far, phase by phase."""

    def __init__(self, cases: Iterable[Case]) -> None:
        self._left: dict[Phase, float] = dict.fromkeys(operators.PHASES, 0.0)
        self._planned: dict[Phase, float] = dict.fromkeys(operators.PHASES, 0.0)
        self._taken: dict[Phase, float] = dict.fromkeys(operators.PHASES, 0.0)
        self._known: dict[Case, float] = {}
        for case in cases:
            self._left[case.phase] += self._expected(case)

    def done(self, case: Case, seconds: float) -> None:
        """A case of the plan took so long."""
        expected = self._expected(case)
        self._left[case.phase] -= expected
        self._planned[case.phase] += expected
        self._taken[case.phase] += seconds

    @property
    def left_s(self) -> float:
        """Seconds that the rest takes: each phase at its own pace, as far as that is known, and
        at the pace of all; 0 before the first is done."""
        planned, taken = sum(self._planned.values()), sum(self._taken.values())
        if not planned:
            return 0.0
        pace = (taken + EXPECTED_S) / (planned + EXPECTED_S)
        return sum(
            max(expected, 0.0)
            * (self._taken[phase] + EXPECTED_S * pace)
            / (self._planned[phase] + EXPECTED_S)
            for phase, expected in self._left.items()
        )

    def _expected(self, case: Case) -> float:
        if case not in self._known:
            self._known[case] = _safe_expected(case)
        return self._known[case]


def _safe_expected(case: Case) -> float:
    try:
        return expected_s(case)
    except ValueError:
        # a config that does not exist: its row will say so
        return BASE_S
