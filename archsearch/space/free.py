"""The free space: any sequence of mixers and FFNs, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence

from numpy.random import Generator

from archsearch.space.search_space import FFN
from archsearch.space.search_space import Categorical
from archsearch.space.search_space import Codes
from archsearch.space.search_space import Distribution
from archsearch.space.search_space import Integer
from archsearch.space.search_space import Params
from archsearch.space.search_space import SearchSpace
from archsearch.space.search_space import pick


class FreeSpace(SearchSpace):
    """A depth and one operator per layer; at least one of them is a token mixer. Layers beyond
    the depth hold the first code."""

    name = "free"
    summary = "any sequence of mixers and FFNs, chosen layer by layer"

    def _pattern_distributions(self) -> dict[str, Distribution]:
        operators = Categorical((*self.codes, FFN))
        layers = {self._key(layer): operators for layer in range(self.max_layers)}
        return {"depth": Integer(1, self.max_layers), **layers}

    def _key(self, layer: int) -> str:
        return f"layer{layer + 1}"

    def _read(self, params: Params) -> Codes:
        return tuple(str(params[self._key(layer)]) for layer in range(int(params["depth"])))

    def _write(self, codes: Codes) -> Params:
        padding = [self.codes[0]] * (self.max_layers - len(codes))
        params: Params = {"depth": len(codes)}
        return params | {self._key(i): code for i, code in enumerate([*codes, *padding])}

    def _repair(self, params: Params) -> Params:
        codes = self._read(params)
        if not self._has_mixer(codes):
            codes = (self.codes[0], *codes[1:])
        return self._write(codes)

    def _sample(self, rng: Generator) -> Params:
        """Any depth; every other layer an FFN on average, however many mixers there are."""
        depth = int(rng.integers(1, self.max_layers + 1))
        while True:
            is_ffn = rng.integers(2, size=depth)
            codes = tuple(FFN if ffn else pick(self.codes, rng) for ffn in is_ffn)
            if self._has_mixer(codes):
                return self._write(codes)

    def _neighbours(self) -> dict[str, Callable[[Params], Iterable[Params]]]:
        return {
            "replace": self._replace,
            "insert": self._insert,
            "delete": self._delete,
            "swap": self._swap,
        }

    def _replace(self, params: Params) -> Iterator[Params]:
        codes = self._read(params)
        for layer in range(len(codes)):
            for code in (*self.codes, FFN):
                yield from self._valid((*codes[:layer], code, *codes[layer + 1 :]))

    def _insert(self, params: Params) -> Iterator[Params]:
        codes = self._read(params)
        for layer in range(len(codes) + 1):
            for code in (*self.codes, FFN):
                yield from self._valid((*codes[:layer], code, *codes[layer:]))

    def _delete(self, params: Params) -> Iterator[Params]:
        codes = self._read(params)
        for layer in range(len(codes)):
            yield from self._valid((*codes[:layer], *codes[layer + 1 :]))

    def _swap(self, params: Params) -> Iterator[Params]:
        """Two neighbouring layers change places."""
        codes = self._read(params)
        for layer in range(len(codes) - 1):
            pair = (codes[layer + 1], codes[layer])
            yield from self._valid((*codes[:layer], *pair, *codes[layer + 2 :]))

    def _valid(self, codes: Codes) -> Iterator[Params]:
        if len(codes) <= self.max_layers and self._has_mixer(codes):
            yield self._write(codes)

    def _has_mixer(self, codes: Sequence[str]) -> bool:
        return any(code != FFN for code in codes)

    def _keeps(self, before: Params, after: Params) -> bool:
        return self._read(before) == self._read(after)

    def _cross(self, a: Params, b: Params, rng: Generator) -> Params:
        """One point: the first layers of one parent, the rest of the other."""
        parents = (self._read(a), self._read(b))
        first, second = parents if rng.integers(2) else parents[::-1]
        for point in rng.permutation(min(len(first), len(second)) + 1):
            child = (*first[:point], *second[point:])
            if self._has_mixer(child):
                return self._write(child)
        raise AssertionError("the second parent alone is always a valid child")

    def _count(self) -> int:
        known = len(self.codes) + 1
        return sum(known**depth - 1 for depth in range(1, self.max_layers + 1))
