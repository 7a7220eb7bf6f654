"""Search spaces: every candidate is valid, and moves between candidates do what they say."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from archsearch.space import ArchSpec
from archsearch.space import Categorical
from archsearch.space import Params
from archsearch.space import SearchSpace
from archsearch.space import get_space
from archsearch.space import parse
from archsearch.space import presets
from archsearch.space import space_names
from archsearch.space.free import FreeSpace
from archsearch.space.nemotron_flash import values_of
from archsearch.space.staged import StagedSpace

WIDTHS = (64, 128, 256)
CASES = [
    pytest.param(name, width, max_layers, id=f"{name}-{width}-{max_layers}")
    for name in ("nemotron-flash", "nemotron-flash-wide", "free")
    for width, max_layers in (("largest", 30), ("choice", 8))
]
STAGED = ("nemotron-flash", "nemotron-flash-wide")


def small(name: str, **changes: Any) -> SearchSpace:
    settings = {"codes": ("a", "w", "d", "m2"), "widths": WIDTHS, "fields": {"vocab_size": 256}}
    return get_space(name, **{**settings, **changes})


def staged(name: str, **changes: Any) -> StagedSpace:
    space = small(name, **changes)
    assert isinstance(space, StagedSpace)
    return space


def draw(space: SearchSpace, number: int = 60, seed: int = 0) -> list[Params]:
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(number)]


def draw_raw(space: SearchSpace, rng: np.random.Generator) -> Params:
    """Every key by itself, as a foreign sampler would."""
    params: Params = {}
    for key, choice in space.distributions().items():
        values = values_of(choice)
        params[key] = values[int(rng.integers(len(values)))]
    return params


def key(space: SearchSpace, params: Params) -> tuple[Any, ...]:
    return (space.codes_of(params), params.get("hidden_size"))


@pytest.mark.parametrize(("name", "width", "max_layers"), CASES)
class TestEverySpace:
    @pytest.fixture
    def space(self, name: str, width: str, max_layers: int) -> SearchSpace:
        return small(name, width=width, max_layers=max_layers)

    def check(self, space: SearchSpace, params: Params) -> ArchSpec:
        assert list(params) == list(space.distributions())
        assert space.repair(params) == params
        spec = space.decode(params)
        assert space.min_layers <= spec.num_layers <= space.max_layers
        assert any(layer.operator != "ffn" for layer in spec.layers)
        assert spec.vocab_size == 256
        return spec

    def test_samples_are_valid(self, space: SearchSpace) -> None:
        specs = [self.check(space, params) for params in draw(space, 200)]
        assert len({spec.id for spec in specs}) > 100
        assert len({spec.num_layers for spec in specs}) >= space.max_layers // 2

    def test_repair_makes_anything_valid(self, space: SearchSpace) -> None:
        rng = np.random.default_rng(1)
        for _ in range(200):
            self.check(space, space.repair(draw_raw(space, rng)))

    def test_encode_inverts_decode(self, space: SearchSpace) -> None:
        for params in draw(space):
            spec = space.decode(params)
            encoded = space.encode(spec)
            self.check(space, encoded)
            assert space.decode(encoded).id == spec.id
            assert space.encode(space.decode(encoded)) == encoded

    def test_mutations_give_other_valid_architectures(self, space: SearchSpace) -> None:
        rng = np.random.default_rng(2)
        seen = set()
        for params in draw(space, 20):
            before = dict(params)
            child = space.mutate(params, rng)
            assert key(space, child) != key(space, params)
            self.check(space, child)
            for name, mutation in space.mutations.items():
                child = mutation(params, rng) or {}
                if child:
                    seen.add(name)
                    assert key(space, child) != key(space, params)
                    self.check(space, child)
            assert params == before
        assert seen == set(space.mutations)

    def test_children_come_from_their_parents(self, space: SearchSpace) -> None:
        rng = np.random.default_rng(3)
        firsts, seconds = draw(space), draw(space, seed=9)
        children = []
        for a, b in zip(firsts, seconds, strict=True):
            child = space.crossover(a, b, rng)
            self.check(space, child)
            if "hidden_size" in child:
                assert child["hidden_size"] in (a["hidden_size"], b["hidden_size"])
            children.append(key(space, child) not in (key(space, a), key(space, b)))
            assert space.crossover(a, a, rng) == a
        assert any(children)

    def test_a_seed_decides(self, space: SearchSpace) -> None:
        def walk(seed: int) -> list[Params]:
            rng = np.random.default_rng(seed)
            a, b = space.sample(rng), space.sample(rng)
            return [a, b, space.mutate(a, rng), space.crossover(a, b, rng)]

        assert walk(5) == walk(5)
        assert walk(5) != walk(6)

    def test_describes_itself(self, space: SearchSpace) -> None:
        description = space.describe()
        assert description["name"] == space.name
        assert description["size"] == space.size() > 0
        assert list(description["parameters"]) == list(space.distributions())
        assert description["mutations"] == list(space.mutations)

    def test_repair_refuses_foreign_parameters(self, space: SearchSpace) -> None:
        params = draw(space, 1)[0]
        some = next(iter(params))
        with pytest.raises(ValueError, match=f"lacks parameter '{some}'"):
            space.repair({k: v for k, v in params.items() if k != some})
        with pytest.raises(ValueError, match="knows no parameter 'colour'"):
            space.repair({**params, "colour": 1})
        with pytest.raises(ValueError, match=f"{some} must be in"):
            space.repair({**params, some: "many"})


@pytest.mark.parametrize("name", STAGED)
class TestStaged:
    def test_mutations_change_one_factor(self, name: str) -> None:
        space = staged(name)
        for params in draw(space, 20):
            before = space.stages(params)
            for mutation in space.mutations:
                for child in space.neighbours(mutation, params):
                    after = space.stages(child)
                    changed = [i for i in range(3) if before[i][0] != after[i][0]]
                    grown = [i for i in range(3) if after[i][1] > before[i][1]]
                    if mutation == "block_counts":
                        assert not changed
                        assert len(grown) <= 1
                        continue
                    assert len(changed) == 1
                    assert not grown
                    (index,) = changed
                    self.check_block(mutation, before[index][0], after[index][0])

    def check_block(self, mutation: str, old: Any, new: Any) -> None:
        mixers = [[mixer for mixer, _ in block] for block in (old, new)]
        ffns = [[count for _, count in block] for block in (old, new)]
        assert (mixers[0] == mixers[1]) == (mutation == "ffn_ratio")
        if mutation == "operator":
            assert ffns[0] == ffns[1]
        if mutation == "operator_ratio":
            assert len(old) != len(new)
            assert set(ffns[1]) <= set(ffns[0])

    def test_children_take_whole_stages(self, name: str) -> None:
        space = staged(name)
        rng = np.random.default_rng(0)
        for a, b in zip(draw(space), draw(space, seed=4), strict=True):
            stages = zip(
                space.stages(space.crossover(a, b, rng)),
                space.stages(a),
                space.stages(b),
                strict=True,
            )
            for (block, repeats), (block_a, repeats_a), (block_b, repeats_b) in stages:
                assert block in (block_a, block_b)
                assert repeats <= max(repeats_a, repeats_b)

    def test_overflow_cuts_the_last_stage_first(self, name: str) -> None:
        space = staged(name, max_layers=12)
        params = space.encode(parse("(a f)x2 (w f)x2 (d f)x2 @64"))
        assert space.stages(params) == [((("a", 1),), 2), ((("w", 1),), 2), ((("d", 1),), 2)]
        grown = {**params, "stage1_repeats": 3}
        assert space.decode(grown).notation == parse("(a f)x3 (w f)x2 d f @256").notation
        grown = {**params, "stage1_repeats": 4, "stage2_repeats": 4}
        assert space.decode(grown).notation == parse("(a f)x4 w f d f @256").notation

    def test_size_counts_repaired_settings(self, name: str) -> None:
        space = staged(name, codes=("a",), max_layers=6)
        values = [values_of(choice) for choice in space.distributions().values()]
        if name == "nemotron-flash":
            settings = (dict(zip(space.distributions(), s, strict=True)) for s in product(*values))
            repaired = {tuple(p.items()) for p in settings if space.repair(p) == p}
            assert space.size() == len(repaired)
        # by hand for the smallest: three mixers alone
        smallest = staged(name, max_layers=3)
        assert smallest.size() == 4**3
        assert staged(name, max_layers=3, width="choice").size() == 3 * 4**3

    def test_needs_a_mixer_per_stage(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"max_layers of .* must be at least 3; got 2"):
            small(name, max_layers=2)
        with pytest.raises(ValueError, match="each of its 3 stages needs a token mixer"):
            small(name).encode(parse("a f f w f @64"))


def test_wide_counts_blocks() -> None:
    space = staged("nemotron-flash-wide")
    choices = [values_of(choice) for choice in space._block_distributions().values()]
    names = list(space._block_distributions())
    blocks = {
        space._read_block(dict(zip(names, values, strict=True))) for values in product(*choices)
    }
    assert sum(space._count_blocks().values()) == len(blocks)


def test_inactive_keys_are_normalised() -> None:
    published = small("nemotron-flash")
    params = {**published.encode(parse("a w d @64")), "stage1_op1": "m2"}
    assert published.repair(params)["stage1_op1"] == "a"
    free = small("free")
    params = {**free.encode(parse("d w @64")), "layer9": "m2"}
    assert free.repair(params)["layer9"] == "a"
    wide = small("nemotron-flash-wide")
    params = wide.encode(parse("a w d @64"))
    holes = {**params, "stage1_mixer3": "d", "stage1_ffn2": 2}
    repaired = wide.repair(holes)
    assert (repaired["stage1_mixer2"], repaired["stage1_ffn2"]) == ("d", 0)
    assert (repaired["stage1_mixer3"], repaired["stage1_ffn3"]) == ("none", 0)


PUBLISHED_MODELS = [name for name in presets.names() if name.startswith("nemotron-flash")]


@pytest.mark.parametrize("name", PUBLISHED_MODELS)
def test_the_wide_space_expresses_the_published_models(name: str) -> None:
    spec = presets.get(name)
    space = get_space("nemotron-flash-wide", max_layers=36)
    again = space.decode(space.encode(spec))
    assert [layer.operator for layer in again.layers] == [layer.operator for layer in spec.layers]


@pytest.mark.parametrize("name", PUBLISHED_MODELS)
def test_the_published_space_refuses_the_published_models(name: str) -> None:
    space = get_space("nemotron-flash", max_layers=36)
    with pytest.raises(ValueError, match="at most two mixers in ratio") as caught:
        space.encode(presets.get(name))
    assert "nemotron-flash cannot express" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "nemotron-flash",
            "gla f gla f gla f @64",
            "'gla' is not among its operators a, w, d, m2",
        ),
        ("nemotron-flash", "(a f)x16 @64", "it holds 3 to 30 layers and this has 32"),
        ("nemotron-flash", "f a f a f a @64", "begins with a token mixer"),
        ("nemotron-flash-wide", "a fx3 (w f)x2 @64", "at most 2 FFNs follow"),
        ("free", "f f @64", "at least one token mixer"),
    ],
)
def test_what_cannot_be_expressed_is_said(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match="cannot express") as caught:
        small(name).encode(parse(text))
    assert message in str(caught.value)


class TestFree:
    def lengths(self, mutation: str, params: Params, space: SearchSpace) -> set[int]:
        return {len(space.codes_of(child)) for child in space.neighbours(mutation, params)}

    def test_mutations(self) -> None:
        space = small("free")
        params = space.encode(parse("a f w d f @64"))
        assert self.lengths("replace", params, space) == {5}
        assert self.lengths("insert", params, space) == {6}
        assert self.lengths("delete", params, space) == {4}
        assert self.lengths("swap", params, space) == {5}
        old = space.codes_of(params)
        for child in space.neighbours("replace", params):
            assert sum(a != b for a, b in zip(old, space.codes_of(child), strict=True)) == 1
        assert len(space.neighbours("swap", params)) == 4

    def test_the_last_mixer_stays(self) -> None:
        space = small("free")
        lone = space.encode(parse("f a @64"))
        assert [space.codes_of(child) for child in space.neighbours("delete", lone)] == [("a",)]
        assert ("f", "f") not in [space.codes_of(c) for c in space.neighbours("replace", lone)]
        assert space.codes_of({**lone, "layer2": "f"}) == ("a", "f")

    def test_full_depth_inserts_nothing(self) -> None:
        space = small("free", max_layers=2)
        assert space.neighbours("insert", space.encode(parse("a f @64"))) == []

    def test_size(self) -> None:
        space = small("free", codes=("a",), max_layers=3)
        assert isinstance(space, FreeSpace)
        assert space.size() == 1 + 3 + 7
        assert small("free", codes=("a",), max_layers=3, width="choice").size() == 3 * 11


class TestWidth:
    def meets(self, limit: int) -> Callable[[ArchSpec], bool]:
        return lambda spec: spec.hidden_size <= limit

    def test_the_largest_that_meets(self) -> None:
        space = small("free", widths=(256, 64, 128))
        params = draw(space, 1)[0]
        found = space.fit_width(params, self.meets(200))
        assert found is not None
        assert found.hidden_size == 128
        assert space.fit_width(params, self.meets(10)) is None
        assert space.decode(params).hidden_size == 256
        assert space.decode(params, 64).hidden_size == 64

    def test_a_choice_is_kept(self) -> None:
        space = small("free", width="choice")
        assert space.distributions()["hidden_size"] == Categorical(WIDTHS)
        params = space.encode(parse("a f @128"))
        assert space.decode(params).hidden_size == 128
        assert space.fit_width(params, self.meets(64)) is None
        found = space.fit_width(params, self.meets(200))
        assert found is not None
        assert found.hidden_size == 128
        assert {c["hidden_size"] for c in space.neighbours("width", params)} == {64, 256}
        with pytest.raises(ValueError, match="its widths are 64, 128, 256"):
            space.encode(parse("a f @512"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": ("a", "f")}, "codes must be token mixers; 'f' is always included"),
        ({"codes": ()}, "at least one token mixer"),
        ({"codes": ("q",)}, "unknown operator 'q'"),
        ({"widths": ()}, "at least one hidden size"),
        ({"widths": (100,)}, "space free at width 100: attention config: hidden_size must be"),
        ({"width": "wide"}, "width must be 'largest' or 'choice'"),
        ({"fields": {"hidden_size": 4}}, "hidden_size is what the space chooses"),
        ({"fields": {"colour": 4}}, "architecture has no field 'colour'"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        small("free", **changes)


def test_unknown_space() -> None:
    assert space_names() == ("nemotron-flash", "nemotron-flash-wide", "free")
    with pytest.raises(ValueError, match="did you mean 'nemotron-flash-wide'"):
        get_space("nemotron-wide")


def test_one_architecture_cannot_mutate() -> None:
    space = small("free", codes=("a",), max_layers=1)
    with pytest.raises(ValueError, match="nothing can mutate"):
        space.mutate(space.encode(parse("a @64")), np.random.default_rng(0))
