"""What the staged spaces share: three stages, each of which repeats one block.

A block is a sequence of slots: a mixer's code and the number of FFNs after it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from itertools import pairwise
from itertools import product

from numpy.random import Generator

from archsearch.space.search_space import FFN
from archsearch.space.search_space import Codes
from archsearch.space.search_space import Distribution
from archsearch.space.search_space import Integer
from archsearch.space.search_space import Params
from archsearch.space.search_space import SearchSpace
from archsearch.space.search_space import pick

STAGES = (1, 2, 3)
MAX_FFNS = 2
MAX_SLOTS = 4
# how often blocks that exceed a drawn depth are drawn again before they are cut
DRAWS = 32

Slot = tuple[str, int]
Block = tuple[Slot, ...]
Stage = tuple[Block, int]  # a block and how often it is repeated


class StagedSpace(SearchSpace):
    """Stages to parameters and back; repair, the four published mutations, crossover.

    Repair as published: where a candidate is too deep, blocks of the last stage are cut (down
    to one, then those of the stage before). Only where one block of each stage is still too
    deep are the longest blocks shortened.
    """

    min_layers = len(STAGES)
    block_rule: str

    @property
    def max_repeats(self) -> int:
        """Most repeats in one stage, where each of the others has one operator."""
        return self.max_layers - len(STAGES) + 1

    @abstractmethod
    def _block_distributions(self) -> dict[str, Distribution]:
        """The parameters of one block."""

    @abstractmethod
    def _read_block(self, keys: Params) -> Block:
        """The block that its keys spell, valid whatever they hold."""

    @abstractmethod
    def _write_block(self, block: Block) -> Params | None:
        """The canonical keys of a block, None where they cannot spell it."""

    @abstractmethod
    def _sample_block(self, rng: Generator) -> Block:
        """Draw a block."""

    @abstractmethod
    def _vary(self, block: Block, mutation: str) -> Iterable[Block]:
        """All blocks that differ by the named mutation; some may not be expressible."""

    @abstractmethod
    def _count_blocks(self) -> Counter[int]:
        """How many distinct blocks there are of each length in layers."""

    def stages(self, params: Params) -> list[Stage]:
        """The block and the repeats of every stage."""
        stages = []
        for stage in STAGES:
            prefix = f"stage{stage}_"
            keys = {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
            stages.append((self._read_block(keys), int(keys["repeats"])))
        return stages

    def _params(self, stages: Iterable[Stage]) -> Params:
        params: Params = {}
        for stage, (block, repeats) in zip(STAGES, stages, strict=True):
            keys = self._write_block(block)
            assert keys is not None, f"no parameters spell the block {block}"
            params |= {f"stage{stage}_{key}": value for key, value in keys.items()}
            params[f"stage{stage}_repeats"] = repeats
        return params

    def _pattern_distributions(self) -> dict[str, Distribution]:
        keys = {**self._block_distributions(), "repeats": Integer(1, self.max_repeats)}
        return {f"stage{stage}_{key}": choice for stage in STAGES for key, choice in keys.items()}

    def _repair(self, params: Params) -> Params:
        return self._params(cut(self.stages(params), self.max_layers))

    def _read(self, params: Params) -> Codes:
        return tuple(code for block, n in self.stages(params) for code in n * spell(block))

    def _write(self, codes: Codes) -> Params | str:
        slots = read_slots(codes)
        if isinstance(slots, str):
            return slots
        if len(slots) < len(STAGES):
            return f"each of its {len(STAGES)} stages needs a token mixer"
        found = list(self._segmentations(slots))
        if not found:
            return f"{len(STAGES)} stages, each repeating {self.block_rule}, do not cover it"
        return self._params(min(found, key=_complexity))

    def _segmentations(self, slots: Block) -> Iterator[tuple[Stage, ...]]:
        for cuts in combinations(range(1, len(slots)), len(STAGES) - 1):
            edges = (0, *cuts, len(slots))
            parts = [slots[begin:end] for begin, end in pairwise(edges)]
            yield from product(*map(self._as_stages, parts))

    def _as_stages(self, slots: Block) -> list[Stage]:
        """All ways to see a run of slots as one block repeated."""
        stages = []
        for size in range(1, min(MAX_SLOTS, len(slots)) + 1):
            block, repeats = slots[:size], len(slots) // size
            if (
                block * repeats == slots
                and repeats <= self.max_repeats
                and self._write_block(block) is not None
            ):
                stages.append((block, repeats))
        return stages

    def _sample(self, rng: Generator) -> Params:
        """Draw a depth and blocks that fit into it, then repeat blocks of random stages."""
        fewest = max(self.min_layers, self.max_layers // 3)
        target = int(rng.integers(fewest, self.max_layers + 1))
        for _ in range(DRAWS):
            stages: list[Stage] = [(self._sample_block(rng), 1) for _ in STAGES]
            if depth(stages) <= target:
                break
        stages = cut(stages, target)
        while True:
            room = target - depth(stages)
            growing = [
                index
                for index, (block, repeats) in enumerate(stages)
                if len(spell(block)) <= room and repeats < self.max_repeats
            ]
            if not growing:
                return self._params(stages)
            index = pick(growing, rng)
            block, repeats = stages[index]
            stages[index] = (block, repeats + 1)

    def _neighbours(self) -> dict[str, Callable[[Params], Iterable[Params]]]:
        blocks = ("operator", "operator_ratio", "ffn_ratio")
        vary = {name: partial(self._vary_blocks, mutation=name) for name in blocks}
        return {**vary, "block_counts": self._vary_counts}

    def _vary_blocks(self, params: Params, mutation: str) -> Iterator[Params]:
        stages = self.stages(params)
        for index, (block, repeats) in enumerate(stages):
            for other in self._vary(block, mutation):
                if self._write_block(other) is not None:
                    yield self._params(_replaced(stages, index, (other, repeats)))

    def _vary_counts(self, params: Params) -> Iterator[Params]:
        stages = self.stages(params)
        for index, (block, _) in enumerate(stages):
            for repeats in range(1, self.max_repeats + 1):
                yield self._params(_replaced(stages, index, (block, repeats)))

    def _keeps(self, before: Params, after: Params) -> bool:
        old, new = self.stages(before), self.stages(after)
        return [block for block, _ in old] == [block for block, _ in new]

    def _cross(self, a: Params, b: Params, rng: Generator) -> Params:
        """Every stage from either parent; blocks stay as the parents have them."""
        parents = self.stages(a), self.stages(b)
        origins = list(product((0, 1), repeat=len(STAGES)))
        for index in rng.permutation(len(origins)):
            stages = [parents[parent][stage] for stage, parent in enumerate(origins[index])]
            child = self._params(stages)
            if self._keeps(child, self._repair(child)):
                return child
        raise AssertionError("a parent alone is always a valid child")

    def _count(self) -> int:
        blocks = self._count_blocks()
        totals = Counter({0: 1})
        for _ in STAGES:
            longer: Counter[int] = Counter()
            for total, size in product(totals, blocks):
                for repeats in range(1, self.max_repeats + 1):
                    if total + size * repeats <= self.max_layers:
                        longer[total + size * repeats] += totals[total] * blocks[size]
            totals = longer
        return sum(totals.values())


def spell(block: Block) -> Codes:
    """The operator codes of a block."""
    return tuple(code for mixer, ffns in block for code in (mixer, *[FFN] * ffns))


def depth(stages: Sequence[Stage]) -> int:
    """Layers of all stages together."""
    return sum(len(spell(block)) * repeats for block, repeats in stages)


def read_slots(codes: Codes) -> Block | str:
    """The slots of a pattern, or why it has none."""
    slots: list[Slot] = []
    for code in codes:
        if code != FFN:
            slots.append((code, 0))
        elif not slots:
            return "a block begins with a token mixer"
        else:
            slots[-1] = (slots[-1][0], slots[-1][1] + 1)
    if any(ffns > MAX_FFNS for _, ffns in slots):
        return f"at most {MAX_FFNS} FFNs follow a token mixer"
    return tuple(slots)


def cut(stages: Sequence[Stage], max_layers: int) -> list[Stage]:
    """Cut blocks from the last stage backwards, then shorten the longest blocks, to the limit."""
    stages = list(stages)
    for index in reversed(range(len(stages))):
        block, repeats = stages[index]
        over = max(0, depth(stages) - max_layers)
        fewer = -(-over // len(spell(block)))
        stages[index] = (block, max(1, repeats - fewer))
    while depth(stages) > max_layers:
        index = max(range(len(stages)), key=lambda i: (len(spell(stages[i][0])), i))
        stages[index] = (_shorter(stages[index][0]), 1)
    return stages


def _shorter(block: Block) -> Block:
    """One FFN fewer after every mixer; where there is none, one mixer fewer."""
    if any(ffns for _, ffns in block):
        return tuple((mixer, max(0, ffns - 1)) for mixer, ffns in block)
    assert len(block) > 1, "a single mixer cannot be shortened"
    return block[:-1]


def _replaced(stages: Sequence[Stage], index: int, stage: Stage) -> list[Stage]:
    return [*stages[:index], stage, *stages[index + 1 :]]


def _complexity(stages: Iterable[Stage]) -> tuple[int, int]:
    """Short blocks first, then even stages: which of several spellings `encode` takes."""
    sizes = [(len(block), repeats) for block, repeats in stages]
    return sum(size for size, _ in sizes), max(repeats for _, repeats in sizes)
