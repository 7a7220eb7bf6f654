from __future__ import annotations

import math

import pytest

from archsearch.search import loop
from archsearch.search.records import recorded_rows
from archsearch.search.records import table
from archsearch.search.screen import Screen
from archsearch.search.screen import check_limits


@pytest.mark.parametrize("sampler", ["evolution", "nsga2", "tpe", "random"])
def test_nothing_is_trained_twice(sampler, config, evaluator, search) -> None:
    fake = evaluator()
    # a small space, so that proposals repeat
    run = search(config(sampler=sampler, max_layers=4, widths=(64,)), fake)
    run.fill(15)
    assert len(fake.scored) == 15
    assert len(set(fake.scored)) == 15


def test_duplicates_copy_the_scores(config, evaluator, search) -> None:
    run = search(config(sampler="tpe", max_layers=4, widths=(64,)), evaluator())
    run.fill(15)
    rows = recorded_rows(run.study)
    trained = {row["id"]: row for row in rows if row["status"] == "trained"}
    copies = [row for row in rows if row["status"] == "duplicate"]
    assert copies
    assert all(row["loss"] == trained[row["id"]]["loss"] for row in copies)


def test_a_used_up_space_stops_with_a_sentence(config, evaluator, search, monkeypatch) -> None:
    monkeypatch.setattr(loop, "MAX_FREE", 8)
    fake = evaluator()
    run = search(config(max_layers=3, widths=(64,)), fake)
    reason = run.fill(1000)
    assert "stopped at" in reason
    assert len(set(fake.scored)) == len(fake.scored) > 0
    # asked again it says so at once, and records nothing more
    before = len(recorded_rows(run.study))
    assert run.fill(1000) == reason
    assert len(recorded_rows(run.study)) == before


@pytest.mark.parametrize("sampler", ["evolution", "nsga2", "tpe", "random"])
def test_infeasible_candidates_are_recorded_and_not_trained(
    sampler, config, evaluator, search
) -> None:
    fake = evaluator()
    cfg = config(sampler=sampler, width="choice", target_latency_ms=0.35)
    run = search(cfg, fake)
    run.fill(12)
    frame = table(recorded_rows(run.study))
    slow = frame[~frame["feasible"]]
    assert (slow["status"] == "infeasible").all()
    assert slow["loss"].isna().all()
    assert (slow["latency_us"] > 350).all()
    assert not set(slow["id"]) & set(fake.scored)
    assert (frame[frame["feasible"]]["latency_us"] <= 350).all()
    # samplers see how far off it was
    trials = run.study.trials
    assert [trial.constraints["latency_us"] > 0 for trial in trials] == (
        ~frame["feasible"]
    ).to_list()
    # evolution and random search draw again instead of recording what is too slow
    assert (len(slow) == 0) == (sampler in ("evolution", "random"))


def test_the_widest_that_meets_the_target_is_taken(config, evaluator, search) -> None:
    fake = evaluator()
    cfg = config(target_latency_ms=0.5)
    run = search(cfg, fake)
    run.fill(10)
    space = cfg.make_space()
    for trial, row in zip(run.study.trials, recorded_rows(run.study), strict=True):
        latency = {w: fake.costs(space.decode(trial.params, w)).latency_us for w in cfg.widths}
        assert row["hidden_size"] == max(w for w in cfg.widths if latency[w] <= 500)


def test_a_failed_candidate_is_recorded_and_counts(config, evaluator, search) -> None:
    fake = evaluator(fail=lambda spec: spec.layers[0].operator == "attention")
    run = search(config(), fake)
    run.fill(12)
    frame = table(recorded_rows(run.study))
    failed = frame[frame["status"] == "failed"]
    assert len(frame) == 12
    assert 0 < len(failed) < 12
    assert (failed["error"] == "RuntimeError: the loss is not finite").all()
    assert (failed["loss"] == math.log(256) + 1).all()
    # the evolution moves away from what fails
    assert (frame["status"][6:] == "failed").sum() < 6


def test_our_own_bugs_are_not_failed_candidates(config, evaluator, search) -> None:
    def bug(spec):
        raise TypeError("a bug")

    run = search(config(), evaluator(fail=bug))
    with pytest.raises(TypeError, match="a bug"):
        run.fill(1)
    assert recorded_rows(run.study) == []


def test_the_log_has_a_line_per_candidate(config, evaluator, search, tmp_path) -> None:
    run = search(config(), evaluator())
    run.fill(3)
    assert (tmp_path / "log.jsonl").read_text().count('"event": "candidate"') == 3


def test_an_impossible_target_names_the_fastest(config, evaluator) -> None:
    cfg = config(target_latency_ms=0.1)
    space = cfg.make_space()
    with pytest.raises(
        ValueError, match=r"meets the target latency of 0.1 ms.*@64.* takes 0\.\d+ ms"
    ):
        check_limits(Screen(cfg, space, evaluator().costs), cfg, space)


def test_an_impossible_size_names_the_smallest(config, evaluator) -> None:
    cfg = config(max_parameters=10)
    space = cfg.make_space()
    with pytest.raises(ValueError, match=r"at most 10 parameters: the smallest found.* has \d+"):
        check_limits(Screen(cfg, space, evaluator().costs), cfg, space)


def test_a_possible_target_passes(config, evaluator) -> None:
    cfg = config()
    space = cfg.make_space()
    check_limits(Screen(cfg, space, evaluator().costs), cfg, space)
