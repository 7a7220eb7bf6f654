from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import optuna
import pytest

from archsearch.search.encoding import distributions
from archsearch.search.records import recorded_rows
from archsearch.search.samplers import AgingEvolution
from archsearch.search.samplers import make_sampler

SAMPLERS = ("evolution", "nsga2", "tpe", "random")
GOLDEN = Path(__file__).parent / "golden_evolution.json"


def signature(study):
    return [(row["number"], row["id"], row["status"], row["loss"]) for row in recorded_rows(study)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_halves_equal_one_whole_though_interrupted(sampler, config, evaluator, search) -> None:
    cfg = config(sampler=sampler)
    whole = search(cfg, evaluator())
    whole.fill(20)

    study = search(cfg, evaluator()).study
    for trials, interrupt_at in ((3, 0), (9, 3), (9, 1), (10, 0), (20, 4), (20, 0)):
        part = search(cfg, evaluator(interrupt_at=interrupt_at), study)
        if interrupt_at:
            with pytest.raises(KeyboardInterrupt):
                part.fill(trials)
        else:
            part.fill(trials)
    assert signature(study) == signature(whole.study)
    # what was interrupted left nothing
    assert [trial.number for trial in study.trials] == [row[0] for row in signature(study)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_candidate_can_be_interrupted(sampler, config, evaluator, search) -> None:
    cfg = config(sampler=sampler)
    whole = search(cfg, evaluator())
    whole.fill(16)

    study = search(cfg, evaluator()).study
    for trials in range(1, 17):
        with pytest.raises(KeyboardInterrupt):
            search(cfg, evaluator(interrupt_at=1), study).fill(trials)
        search(cfg, evaluator(), study).fill(trials)
    assert signature(study) == signature(whole.study)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_seeds_give_different_runs(sampler, config, evaluator, search) -> None:
    runs = []
    for seed in (0, 1):
        runs.append(search(config(sampler=sampler, seed=seed), evaluator()))
        runs[-1].fill(8)
    assert signature(runs[0].study) != signature(runs[1].study)


def test_golden_evolution(config, evaluator, search) -> None:
    run = search(config(), evaluator())
    run.fill(24)
    found = [row["notation"] for row in recorded_rows(run.study)]
    assert found == json.loads(GOLDEN.read_text())


def test_guided_samplers_beat_random_search(config, evaluator, search) -> None:
    best = {}
    for sampler in SAMPLERS:
        losses = []
        for seed in range(3):
            run = search(config(sampler=sampler, seed=seed), evaluator())
            run.fill(24)
            losses.append(min(row["loss"] for row in recorded_rows(run.study)))
        best[sampler] = np.mean(losses)
    assert max(best["evolution"], best["nsga2"], best["tpe"]) < best["random"]


def evolution(space, k, **settings):
    fields = {"population": 4, "tournament": 4, "accept": lambda params: True}
    return AgingEvolution(space, seed=0, k=k, **(fields | settings))


def recorded(space, losses, violations=None):
    """Trials of random candidates with these losses."""
    rng = np.random.default_rng(5)
    violations = violations or [0.0] * len(losses)
    return [
        optuna.trial.create_trial(
            params=space.sample(rng),
            distributions=distributions(space),
            values=[loss, 1.0],
            constraints={"latency_us": violation},
        )
        for loss, violation in zip(losses, violations, strict=True)
    ]


def test_tournament_takes_the_best_feasible(config) -> None:
    space = config().make_space()
    trials = recorded(space, [1.0, 3.0, 2.0, 4.0], [0.5, 0.0, -0.1, 0.0])
    assert evolution(space, 4).select(trials) is trials[2]


def test_tournament_without_feasible_takes_the_nearest(config) -> None:
    space = config().make_space()
    trials = recorded(space, [1.0, 3.0, 2.0, 4.0], [0.5, 0.2, 0.1, 0.3])
    assert evolution(space, 4).select(trials) is trials[2]


def test_tournament_is_drawn_from_the_population(config) -> None:
    space = config().make_space()
    trials = recorded(space, [4.0, 3.0, 2.0, 1.0])
    winners = {evolution(space, k, tournament=2).select(trials).values[0] for k in range(4, 60)}
    # the worst of four never wins among two
    assert winners == {1.0, 2.0, 3.0}


def test_the_oldest_leaves(config) -> None:
    space = config().make_space()
    # the best is the oldest: with five recorded it is no longer in a population of four
    trials = recorded(space, [0.1, 3.0, 2.0, 4.0, 5.0])
    child = evolution(space, 5).propose(trials)
    assert one_mutation_apart(space, trials[2].params, child)
    child = evolution(space, 4).propose(trials[:4])
    assert one_mutation_apart(space, trials[0].params, child)


def one_mutation_apart(space, parent, child) -> bool:
    parent = space.repair(parent)
    return any(child in space.neighbours(name, parent) for name in space.mutations)


def test_seed_architectures_come_first(config, evaluator, search) -> None:
    space = config().make_space()
    spec = space.decode(space.sample(np.random.default_rng(3)), 64)
    run = search(config(seeds=(spec.notation,), target_latency_ms=None), evaluator())
    run.fill(2)
    first = recorded_rows(run.study)[0]
    assert first["notation"].split("@")[0] == spec.notation.split("@")[0]
    assert first["hidden_size"] == 192


def test_a_rejected_proposal_is_drawn_again(config) -> None:
    cfg = config()
    space = cfg.make_space()
    study = optuna.create_study(directions=["minimize"] * 2)
    seen = []

    def accept(params):
        seen.append(params)
        return len(seen) == 5

    sampler = make_sampler(cfg, space, k=0, accept=accept)
    params = sampler.sample_relative(study, study.ask(), {})
    assert len(seen) == 5
    assert params == seen[-1]
