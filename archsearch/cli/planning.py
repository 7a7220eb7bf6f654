"""From the options of `archsearch profile` to the cases of its plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archsearch.cli import values

if TYPE_CHECKING:
    from archsearch.latency import Case
    from archsearch.operators import Shape

WIDTHS = {"cpu": "64,128,192,256", "cuda": "1024,1536,2048"}
CONTEXTS = {"cpu": "128,512,2048", "cuda": "1024,4096,16384"}
VOCABULARY = {"cpu": 256, "cuda": 131072}
PHASES = "decode,prefill"


def by_device(defaults: Mapping[str, object]) -> str:
    """A default that depends on the device, for the help."""
    return f"default: {defaults['cpu']} on a CPU, {defaults['cuda']} on a GPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options that say what is measured, as typed; None where one was not given."""

    specs: tuple[str, ...] = ()
    grid: str | None = None
    space: str | None = None
    operators: str | None = None
    widths: str | None = None
    phase: str | None = None
    batch: str | None = None
    context: str | None = None
    dtype: str | None = None
    vocab_size: int | None = None

    def cases(self, device: str) -> list[Case]:
        """The plan. Raises ValueError for options that are wrong or do not go together."""
        from archsearch import operators

        sources = [bool(self.specs), self.grid is not None, self.space is not None]
        if sum(sources) > 1:
            raise ValueError("give one of architectures, --grid and --space")
        found = self._grid_cases() if self.grid is not None else self._cases(device)
        chosen = None
        if self.operators is not None:
            chosen = {operators.get(word).name for word in values.words(self.operators)}
        return [case for case in found if chosen is None or case.operator in chosen]

    def _grid_cases(self) -> list[Case]:
        """The grid's cases; widths and phases only narrow it."""
        from archsearch.latency.plan import get_grid

        assert self.grid is not None
        fixed = ("batch", "context", "dtype", "vocab_size")
        given = [name for name in fixed if getattr(self, name) is not None]
        if given:
            option = given[0].replace("_", "-")
            raise ValueError(f"the grid {self.grid!r} has its own --{option}")
        cases = get_grid(self.grid).cases()
        if self.widths is not None:
            widths = values.integers(self.widths, "--widths")
            cases = [case for case in cases if case.hidden_size in widths]
        if self.phase is not None:
            phases = self._phases()
            cases = [case for case in cases if case.phase in phases]
        return cases

    def _cases(self, device: str) -> list[Case]:
        from archsearch.latency import cases_for_space
        from archsearch.latency import cases_for_spec
        from archsearch.latency.plan import MIXERS
        from archsearch.latency.plan import zoo
        from archsearch.space import get_space
        from archsearch.space import load

        kind = "cuda" if device.startswith("cuda") else "cpu"
        shapes = self._shapes(kind)
        if self.specs:
            specs = [load(spec) for spec in self.specs]
            return list(dict.fromkeys(c for s in specs for c in cases_for_spec(s, shapes)))
        widths = values.integers(self.widths or WIDTHS[kind], "--widths")
        vocabulary = self.vocab_size or VOCABULARY[kind]
        if self.space is not None:
            fields = {"vocab_size": vocabulary}
            return cases_for_space(get_space(self.space, widths=widths, fields=fields), shapes)
        return cases_for_space(zoo(MIXERS, widths, vocabulary), shapes)

    def _shapes(self, kind: str) -> list[Shape]:
        from archsearch.cli.device import usual_dtype
        from archsearch.operators import Shape

        return [
            Shape(phase, rows, length, self.dtype or usual_dtype(kind))  # type: ignore[arg-type]
            for phase in self._phases()
            for rows in values.integers(self.batch or "1", "--batch")
            for length in values.integers(self.context or CONTEXTS[kind], "--context")
        ]

    def _phases(self) -> list[str]:
        from archsearch.operators import PHASES as KNOWN

        phases = values.words(self.phase or PHASES)
        unknown = [phase for phase in phases if phase not in KNOWN]
        if unknown or not phases:
            raise ValueError(f"--phase must be among {', '.join(KNOWN)}; got {self.phase!r}")
        return phases
