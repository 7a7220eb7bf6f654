"""Plans: what a grid holds by its rules, how it is dealt to machines, how long it takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from archsearch.latency import plan
from archsearch.latency.cases import Case
from archsearch.latency.cases import cases_for_spec
from archsearch.space import get_space
from archsearch.space import presets
from archsearch.space import space_names
from archsearch.space.catalog import PUBLISHED_WIDTHS

SMALL = plan.Grid(
    codes=("a", "d"),
    widths=(1024,),
    batches=(1, 32),
    contexts=(1024, 4096),
    decode_batches=(4,),
    train_contexts=(1024,),
)


def test_a_grid_holds_what_its_rules_say() -> None:
    cases = SMALL.cases()
    found = Counter((case.operator, case.phase) for case in cases)
    assert found == {
        # 3 batches x 2 contexts; those whose decode does not depend on it: 3 batches
        ("attention", "decode"): 6,
        ("deltanet", "decode"): 3,
        ("ffn", "decode"): 3,
        ("embedding", "decode"): 3,
        ("head", "decode"): 3,
        # 32 x 4096 tokens are too many for a prompt; a head sees the last token alone
        **{(name, "prefill"): 3 for name in ("attention", "deltanet", "ffn", "embedding")},
        ("head", "prefill"): 2,
        **{(name, "train"): 1 for name in ("attention", "deltanet", "ffn", "embedding", "head")},
    }
    assert {case.dtype for case in cases} == {"bfloat16"}
    largest = max(case.batch * case.context for case in cases if case.phase == "prefill")
    assert largest == 32 * 1024 <= plan.MAX_PREFILL_TOKENS
    assert {case.batch for case in cases if case.phase == "train"} == {1}


def test_the_shipped_grid_scales_by_the_same_rules() -> None:
    grid = replace(plan.get_grid("shipped"), presets=())
    growing = sum(code in ("a", "w", "mla") for code in grid.codes)
    constant = len(grid.codes) + 1 - growing
    decode = 8 * (6 * growing + constant + 2)
    # contexts by batch: 6, 4 (8 x 8192), 2 (32 x 2048), none
    prefill = 12 * (len(grid.codes) + 2) + 3
    train = 2 * (len(grid.codes) + 3)
    assert Counter(case.phase for case in grid.cases()) == {
        "decode": 9 * decode,
        "prefill": 9 * prefill,
        "train": 9 * train,
    }


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_has_its_rows_in_the_shipped_grid(name: str) -> None:
    grid = plan.get_grid("shipped")
    assert set(cases_for_spec(presets.get(name), grid.shapes())) <= set(grid.cases())


@pytest.mark.parametrize("name", space_names())
def test_every_candidate_has_its_rows_in_the_shipped_grid(name: str) -> None:
    grid = plan.get_grid("shipped")
    known, shapes = set(grid.cases()), grid.shapes()
    rng = np.random.default_rng(0)
    space = get_space(name, codes=plan.MIXERS, width="choice")
    assert set(PUBLISHED_WIDTHS) <= set(grid.widths)
    for _ in range(5):
        spec = space.decode(space.sample(rng))
        assert set(cases_for_spec(spec, shapes)) <= known


def test_unknown_grids_are_told() -> None:
    with pytest.raises(ValueError, match=r"unknown grid 'shiped'; did you mean 'shipped'\?"):
        plan.get_grid("shiped")


def test_shards_are_a_partition_and_keep_groups_whole() -> None:
    cases = plan.get_grid("quick").cases()
    shards = [plan.shard(cases, f"{index}/3") for index in (1, 2, 3)]
    assert sorted(map(str, cases)) == sorted(str(case) for part in shards for case in part)
    groups = [{plan.group_of(case) for case in part} for part in shards]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    seconds = [plan.total_s(part) for part in shards]
    assert max(seconds) < 1.3 * min(seconds)
    assert set(plan.shard(cases, "1/1")) == set(cases)


@pytest.mark.parametrize("wrong", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_is_two_numbers_in_order(wrong: str) -> None:
    with pytest.raises(ValueError, match="a shard is given as '1/4'"):
        plan.shard(SMALL.cases(), wrong)


def test_groups_hold_the_cases_that_share_layers() -> None:
    groups = plan.in_groups(SMALL.cases())
    assert [group[0].operator for group in groups] == [
        "embedding",
        "attention",
        "head",
        "deltanet",
        "ffn",
    ]
    for group in groups:
        assert len({plan.group_of(case) for case in group}) == 1
        sizes = [(case.phase, case.batch, case.context) for case in group]
        assert sizes == sorted(sizes), "decode, prefill, train; small ones first"


def test_the_rest_takes_as_long_as_its_phases_took() -> None:
    cases = SMALL.cases()
    decode = [case for case in cases if case.phase == "decode"]
    prefill = [case for case in cases if case.phase == "prefill"]
    pace = plan.Pace([*decode, *prefill])
    assert pace.left_s == 0.0
    for case in decode:
        pace.done(case, 3 * plan.expected_s(case))
    # nothing is known of prefill yet: the pace of all, and what is expected of it
    pace_of_all = (3 * plan.total_s(decode) + plan.EXPECTED_S) / (
        plan.total_s(decode) + plan.EXPECTED_S
    )
    assert 1 < pace_of_all < 3
    assert pace.left_s == pytest.approx(pace_of_all * plan.total_s(prefill))
    for case in prefill[:4]:
        pace.done(case, plan.expected_s(case))
    assert plan.total_s(prefill[4:]) < pace.left_s < pace_of_all * plan.total_s(prefill[4:])


def test_one_case_that_compiles_for_long_does_not_foretell_hours() -> None:
    cases = SMALL.cases()
    pace = plan.Pace(cases)
    pace.done(cases[0], 60 * plan.expected_s(cases[0]))
    assert pace.left_s < 20 * plan.total_s(cases)


def test_a_config_that_does_not_exist_has_a_pace_too() -> None:
    wrong = Case("attention", '{"num_heads":0}', 64, "decode", 1, 8, "float32")
    pace = plan.Pace([wrong])
    pace.done(wrong, 1.0)
    assert pace.left_s == 0.0
