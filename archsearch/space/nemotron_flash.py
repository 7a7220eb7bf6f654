"""The search space of Nemotron-Flash as published, and one that holds what it published.

The published one cannot express either of the paper's two results: both need blocks of three
different mixers. The wide one can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product

from numpy.random import Generator

from archsearch.space.search_space import Categorical
from archsearch.space.search_space import Distribution
from archsearch.space.search_space import Integer
from archsearch.space.search_space import Params
from archsearch.space.search_space import pick
from archsearch.space.staged import MAX_FFNS
from archsearch.space.staged import MAX_SLOTS
from archsearch.space.staged import Block
from archsearch.space.staged import StagedSpace

RATIOS = ("0:1", "1:1", "1:2", "1:3")
MAX_DISTINCT = 3
NONE = "none"
FFN_COUNTS = range(MAX_FFNS + 1)
SLOTS = range(1, MAX_SLOTS + 1)


class NemotronFlashSpace(StagedSpace):
    """Published: a block is op1 followed by `ratio`-many op2 (0:1 is op2 alone), the same
    number of FFNs after each."""

    name = "nemotron-flash"
    summary = (
        "three stages; each repeats a block of one or two mixers in ratio 0:1, 1:1, 1:2 or 1:3 "
        "with 0, 1 or 2 FFNs after each (as published)"
    )
    block_rule = (
        "one block of at most two mixers in ratio 0:1, 1:1, 1:2 or 1:3 with the same number "
        "of FFNs after each"
    )

    def _block_distributions(self) -> dict[str, Distribution]:
        return {
            "op1": Categorical(self.codes),
            "op2": Categorical(self.codes),
            "ratio": Categorical(RATIOS),
            "ffn": Integer(0, MAX_FFNS),
        }

    def _read_block(self, keys: Params) -> Block:
        ffns, seconds = int(keys["ffn"]), RATIOS.index(str(keys["ratio"]))
        if seconds == 0:
            return ((str(keys["op2"]), ffns),)
        return ((str(keys["op1"]), ffns), *[(str(keys["op2"]), ffns)] * seconds)

    def _write_block(self, block: Block) -> Params | None:
        first, *rest = block
        if len(block) > len(RATIOS) or len(set(rest)) > 1 or len({n for _, n in block}) > 1:
            return None
        # op1 plays no part in 0:1: it holds the first code
        op1, op2 = (first[0], rest[0][0]) if rest else (self.codes[0], first[0])
        return {"op1": op1, "op2": op2, "ratio": RATIOS[len(rest)], "ffn": first[1]}

    def _sample_block(self, rng: Generator) -> Block:
        choices = self._block_distributions()
        keys: Params = {key: pick(values_of(choice), rng) for key, choice in choices.items()}
        return self._read_block(keys)

    def _vary(self, block: Block, mutation: str) -> Iterator[Block]:
        first, rest, ffns = block[0], block[1:], block[0][1]
        if mutation == "ffn_ratio":
            yield from (tuple((mixer, n) for mixer, _ in block) for n in FFN_COUNTS)
        elif mutation == "operator":
            for code in self.codes:
                yield ((code, ffns), *rest)
                yield (first, *[(code, ffns)] * len(rest))
        elif mutation == "operator_ratio":
            yield block[-1:]
            # out of 0:1 there is no op1 yet: any may come
            firsts = [first] if rest else [(code, ffns) for code in self.codes]
            for op1, seconds in product(firsts, range(1, len(RATIOS))):
                yield (op1, *[block[-1]] * seconds)

    def _count_blocks(self) -> Counter[int]:
        counts: Counter[int] = Counter()
        for seconds, ffns in product(range(len(RATIOS)), FFN_COUNTS):
            mixers = 1 + seconds
            counts[mixers * (1 + ffns)] += len(self.codes) ** min(mixers, 2)
        return counts


class NemotronFlashWideSpace(StagedSpace):
    """Superset: a block has one to four slots, at most three different mixers, and a number of
    FFNs after each slot of its own."""

    name = "nemotron-flash-wide"
    summary = (
        "three stages; each repeats a block of one to four mixers, at most three of them "
        "different, with 0, 1 or 2 FFNs after each by itself"
    )
    block_rule = "one block of at most four mixers, at most three of them different"

    def _block_distributions(self) -> dict[str, Distribution]:
        keys: dict[str, Distribution] = {}
        for slot in SLOTS:
            keys[f"mixer{slot}"] = Categorical((*([NONE] if slot > 1 else []), *self.codes))
            keys[f"ffn{slot}"] = Integer(0, MAX_FFNS)
        return keys

    def _read_block(self, keys: Params) -> Block:
        block: Block = ()
        for slot in SLOTS:
            mixer, ffns = str(keys[f"mixer{slot}"]), int(keys[f"ffn{slot}"])
            if mixer != NONE and _distinct((*block, (mixer, ffns))) <= MAX_DISTINCT:
                block = (*block, (mixer, ffns))
        return block

    def _write_block(self, block: Block) -> Params | None:
        if not 1 <= len(block) <= MAX_SLOTS or _distinct(block) > MAX_DISTINCT:
            return None
        keys: Params = {}
        for slot, (mixer, ffns) in zip(SLOTS, (*block, *[(NONE, 0)] * MAX_SLOTS), strict=False):
            keys[f"mixer{slot}"] = mixer
            keys[f"ffn{slot}"] = ffns
        return keys

    def _sample_block(self, rng: Generator) -> Block:
        block: Block = ()
        slots = pick(SLOTS, rng)
        while len(block) < slots:
            slot = (pick(self.codes, rng), pick(FFN_COUNTS, rng))
            if _distinct((*block, slot)) <= MAX_DISTINCT:
                block = (*block, slot)
        return block

    def _vary(self, block: Block, mutation: str) -> Iterator[Block]:
        for index, (mixer, ffns) in enumerate(block):
            before, after = block[:index], block[index + 1 :]
            if mutation == "ffn_ratio":
                yield from ((*before, (mixer, n), *after) for n in FFN_COUNTS)
            elif mutation == "operator":
                yield from ((*before, (code, ffns), *after) for code in self.codes)
            elif mutation == "operator_ratio":
                # the ratio of free slots: one mixer fewer, or one more with as many FFNs
                yield (*before, *after)
                for code in self.codes:
                    yield (*before, (mixer, ffns), (code, ffns), *after)
                    yield (*before, (code, ffns), (mixer, ffns), *after)

    def _count_blocks(self) -> Counter[int]:
        counts: Counter[int] = Counter()
        for slots in SLOTS:
            mixers = self._count_mixers(slots)
            for ffns in product(FFN_COUNTS, repeat=slots):
                counts[slots + sum(ffns)] += mixers
        return counts

    def _count_mixers(self, slots: int) -> int:
        """Sequences of mixers with at most three different ones."""
        known = len(self.codes)
        all_different = known * (known - 1) * (known - 2) * (known - 3)
        return known**slots - (all_different if slots > MAX_DISTINCT else 0)


def values_of(choice: Distribution) -> tuple[str | int, ...]:
    """All values of a distribution."""
    if isinstance(choice, Categorical):
        return choice.values
    return tuple(range(choice.low, choice.high + 1))


def _distinct(block: Block) -> int:
    return len({mixer for mixer, _ in block})
