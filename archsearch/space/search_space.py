"""What a search may choose from: the interface that every search space keeps.

A candidate is a flat dict of parameters that always holds every key. `repair` makes any
such dict valid and gives inactive keys one canonical value; everything returned is repaired.
"""

from __future__ import annotations

from abc import ABC
from abc import abstractmethod
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from typing import ClassVar
from typing import Literal
from typing import TypeVar

from numpy.random import Generator

from archsearch import operators
from archsearch.space.notation import write_pattern
from archsearch.space.spec import ArchSpec
from archsearch.space.spec import LayerSpec

FFN = "f"
WIDTH = "hidden_size"
WidthMode = Literal["largest", "choice"]
Params = dict[str, str | int]
Mutation = Callable[[Params, Generator], Params | None]
Codes = tuple[str, ...]
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Categorical:
    """One of `values`, which have no order."""

    values: tuple[str | int, ...]

    def __contains__(self, value: object) -> bool:
        return value in self.values


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int

    def __contains__(self, value: object) -> bool:
        is_int = isinstance(value, int) and not isinstance(value, bool)
        return is_int and self.low <= int(str(value)) <= self.high


Distribution = Categorical | Integer


def pick(items: Sequence[_Item], rng: Generator) -> _Item:
    """One of `items`, uniformly."""
    return items[int(rng.integers(len(items)))]


class SearchSpace(ABC):
    """Base of all spaces.

    `codes` are the mixers to choose from (the FFN is always there), `max_layers` limits the
    operators of a candidate, FFNs included. width="largest": a candidate's hidden size is
    found by `fit_width`; width="choice": it is one more parameter. `fields` are the fields
    of `ArchSpec` that all candidates share. Raises ValueError where these do not fit together.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    summary: ClassVar[str]
    min_layers: ClassVar[int] = 1

    def __init__(
        self,
        *,
        widths: Sequence[int],
        codes: Sequence[str],
        max_layers: int = 30,
        width: WidthMode = "largest",
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        if width not in ("largest", "choice"):
            raise ValueError(f"width must be 'largest' or 'choice'; got {width!r}")
        if not widths:
            raise ValueError("widths must name at least one hidden size")
        if max_layers < self.min_layers:
            raise ValueError(
                f"max_layers of {self.name} must be at least {self.min_layers}; got {max_layers}"
            )
        self.widths = tuple(sorted(set(widths)))
        self.codes = _mixers(codes)
        self.max_layers = max_layers
        self.width: WidthMode = width
        self.fields = dict(fields or {})
        self._check_fields()
        self._distributions = self._pattern_distributions()
        if width == "choice":
            self._distributions[WIDTH] = Categorical(self.widths)

    def _check_fields(self) -> None:
        taken = {"layers", WIDTH} & set(self.fields)
        if taken:
            raise ValueError(f"{min(taken)} is what the space chooses: it cannot be a field")
        for width in self.widths:
            for code in (*self.codes, FFN):
                try:
                    self._spec((code,), width)
                except ValueError as error:
                    reason = str(error).removeprefix("layers[0]: ")
                    where = f"space {self.name} at width {width}"
                    raise ValueError(f"{where}: {reason}") from None

    @abstractmethod
    def _pattern_distributions(self) -> dict[str, Distribution]:
        """The parameters of the layer pattern, in order."""

    @abstractmethod
    def _repair(self, params: Params) -> Params:
        """Repair the keys of the pattern, all within their distributions; others are left out."""

    @abstractmethod
    def _sample(self, rng: Generator) -> Params:
        """Draw the keys of the pattern; repaired afterwards."""

    @abstractmethod
    def _read(self, params: Params) -> Codes:
        """The operator codes that repaired parameters spell."""

    @abstractmethod
    def _write(self, codes: Codes) -> Params | str:
        """Parameters that spell `codes`, or why there are none."""

    @abstractmethod
    def _neighbours(self) -> Mapping[str, Callable[[Params], Iterable[Params]]]:
        """By mutation: all candidates that differ in one place, unrepaired."""

    @abstractmethod
    def _keeps(self, before: Params, after: Params) -> bool:
        """Whether a repair cut the depth alone and so left the mutated factor as it was."""

    @abstractmethod
    def _cross(self, a: Params, b: Params, rng: Generator) -> Params:
        """A child's pattern keys, each part of them from one of the repaired parents."""

    @abstractmethod
    def _count(self) -> int:
        """How many repaired settings the keys of the pattern have."""

    def distributions(self) -> dict[str, Distribution]:
        """Every parameter and its values; the same for all candidates."""
        return dict(self._distributions)

    def repair(self, params: Mapping[str, str | int]) -> Params:
        """The nearest valid candidate; raises ValueError for a missing or unknown parameter
        and for a value outside its distribution."""
        for key in self._distributions.keys() ^ params.keys():
            problem = "lacks" if key in self._distributions else "knows no"
            raise ValueError(f"a candidate of {self.name} {problem} parameter {key!r}")
        for key, choice in self._distributions.items():
            if params[key] not in choice:
                raise ValueError(f"{key} must be in {choice}; got {params[key]!r}")
        return self._repaired(dict(params))

    def _repaired(self, params: Params) -> Params:
        repaired = self._repair(params)
        if self.width == "choice":
            repaired[WIDTH] = params[WIDTH]
        return repaired

    def codes_of(self, params: Params) -> Codes:
        """The operator codes of a candidate, in order."""
        return self._read(self.repair(params))

    def sample(self, rng: Generator) -> Params:
        """Draw a candidate."""
        params = self._sample(rng)
        if self.width == "choice":
            params[WIDTH] = pick(self.widths, rng)
        return self._repaired(params)

    @property
    def mutations(self) -> dict[str, Mutation]:
        """Functions (params, rng) -> a candidate that differs by this one factor and is another
        architecture; None where the factor leaves no other."""
        names = [*self._neighbours(), *(["width"] if self.width == "choice" else [])]
        return {name: self._mutation(name) for name in names}

    def _mutation(self, name: str) -> Mutation:
        def mutation(params: Params, rng: Generator) -> Params | None:
            changed = self._changed(name, params)
            drawn = (changed[index] for index in rng.permutation(len(changed)))
            return next(self._others(params, drawn), None)

        return mutation

    def neighbours(self, mutation: str, params: Params) -> list[Params]:
        """Everything that one named mutation can make of a candidate, repaired."""
        return list(self._others(params, self._changed(mutation, params)))

    def _changed(self, mutation: str, params: Params) -> list[Params]:
        parent = self.repair(params)
        if mutation == "width":
            return [{**parent, WIDTH: width} for width in self.widths]
        return [{**parent, **changed} for changed in self._neighbours()[mutation](parent)]

    def _others(self, params: Params, changed: Iterable[Params]) -> Iterator[Params]:
        """Those, repaired, that are another architecture and keep the mutated factor."""
        pattern, width = self.codes_of(params), params.get(WIDTH)
        for candidate in changed:
            child = self._repaired(candidate)
            differs = self._read(child) != pattern or child.get(WIDTH) != width
            if differs and self._keeps(candidate, child):
                yield child

    def mutate(self, params: Params, rng: Generator) -> Params:
        """Apply one mutation, drawn among those that have something to change."""
        mutations = self.mutations
        for name in rng.permutation(sorted(mutations)):
            child = mutations[str(name)](params, rng)
            if child is not None:
                return child
        raise ValueError(f"the space {self.name} holds one architecture: nothing can mutate")

    def crossover(self, a: Params, b: Params, rng: Generator) -> Params:
        """A child whose parts come from either parent, repaired."""
        a, b = self.repair(a), self.repair(b)
        child = self._cross(a, b, rng)
        if self.width == "choice":
            child[WIDTH] = pick((a[WIDTH], b[WIDTH]), rng)
        return self._repaired(child)

    def size(self) -> int:
        """Exact number of candidates, counted as repaired parameter settings: what an inactive
        key holds does not count, two settings that spell one architecture count twice. With
        width="choice" times the number of widths."""
        return self._count() * (len(self.widths) if self.width == "choice" else 1)

    def decode(self, params: Params, hidden_size: int | None = None) -> ArchSpec:
        """The architecture of a candidate. With width="largest" at `hidden_size`, the largest
        width when it is not given; with width="choice" the candidate says its own."""
        repaired = self.repair(params)
        if self.width == "choice":
            hidden_size = int(repaired[WIDTH])
        return self._spec(self._read(repaired), hidden_size or self.widths[-1])

    def encode(self, spec: ArchSpec) -> Params:
        """The parameters of an architecture's pattern (and width, where it is a choice); what
        its layers override and its other fields are the space's own. Raises ValueError with
        the reason where the space cannot express it."""
        codes = tuple(operators.get(layer.operator).code for layer in spec.layers)
        params = self._problem(codes) or self._write(codes)
        if self.width == "choice" and spec.hidden_size not in self.widths:
            params = f"its widths are {', '.join(map(str, self.widths))}"
        if isinstance(params, str):
            text = write_pattern(codes, spec.hidden_size)
            raise ValueError(f"the space {self.name} cannot express {text}: {params}")
        if self.width == "choice":
            params[WIDTH] = spec.hidden_size
        return self._repaired(params)

    def _problem(self, codes: Codes) -> str | None:
        unknown = [code for code in codes if code not in (*self.codes, FFN)]
        if unknown:
            return f"{unknown[0]!r} is not among its operators {', '.join(self.codes)}"
        if not self.min_layers <= len(codes) <= self.max_layers:
            limits = f"{self.min_layers} to {self.max_layers}"
            return f"it holds {limits} layers and this has {len(codes)}"
        if not set(codes) - {FFN}:
            return "a candidate needs at least one token mixer"
        return None

    def fit_width(self, params: Params, meets: Callable[[ArchSpec], bool]) -> ArchSpec | None:
        """The candidate at the largest width for which `meets` holds, or None. Where the width
        is a choice, the candidate's own width is the only one tried."""
        widths = self.widths if self.width == "largest" else self.widths[-1:]
        for width in reversed(widths):
            spec = self.decode(params, width)
            if meets(spec):
                return spec
        return None

    def describe(self) -> dict[str, Any]:
        """The space in plain values, for printing."""
        return {
            "name": self.name,
            "version": self.version,
            "summary": self.summary,
            "codes": list(self.codes),
            "max_layers": self.max_layers,
            "widths": list(self.widths),
            "width": self.width,
            "fields": {key: _plain(value) for key, value in self.fields.items()},
            "size": self.size(),
            "mutations": list(self.mutations),
            "parameters": {
                key: {name: _plain(value) for name, value in asdict(choice).items()}
                for key, choice in self._distributions.items()
            },
        }

    def _spec(self, codes: Codes, hidden_size: int) -> ArchSpec:
        layers = tuple(_layer(code) for code in codes)
        return ArchSpec.create(hidden_size=hidden_size, layers=layers, **self.fields)


# one object in all candidates: they are made and looked up by the thousands
@lru_cache(maxsize=64)
def _layer(code: str) -> LayerSpec:
    return LayerSpec(operator=code)


def _mixers(codes: Sequence[str]) -> Codes:
    """Codes of the named mixers, each once."""
    found = [operators.get(code) for code in codes]
    for operator in found:
        if operator.kind != "mixer":
            raise ValueError(f"codes must be token mixers; {operator.code!r} is always included")
    if not found:
        raise ValueError("codes must name at least one token mixer")
    return tuple(dict.fromkeys(operator.code for operator in found))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value
