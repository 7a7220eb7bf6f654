from __future__ import annotations

import json
import math

import optuna
import pandas as pd
import pytest
from optuna.exceptions import StorageInternalError

from archsearch.search import evolve
from archsearch.search import files
from archsearch.search import load_run
from archsearch.search import non_dominated
from archsearch.search.config import from_toml
from archsearch.search.config import to_toml
from archsearch.search.observer import Observer
from archsearch.search.pace import Pace
from archsearch.search.records import COLUMNS
from archsearch.search.records import FRONT_COLUMNS


def test_config_survives_toml(config) -> None:
    cfg = config(
        recipe={"grad_clip": None, "steps": 9, "warmup_steps": 0},
        fields={"vocab_size": 256, "rope": {"theta": 1e6}},
        seeds=("(a f)x4 @64",),
        data='a "quoted" \\ path\nöü',
        versions={"torch": "2.13"},
    )
    assert from_toml(to_toml(cfg)) == cfg


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tournament": 9}, "tournament must be at most the population 6"),
        ({"objectives": ("latency_us",)}, "must start with loss"),
        ({"target_latency_ms": -1}, "target_latency_ms"),
        ({"colour": 1}, "no field 'colour'"),
        ({"name": "a/b"}, "name"),
        ({"sampler": "cmaes"}, "sampler"),
        ({"sampler": "evolutoin"}, "did you mean 'evolution'"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_bad_configs_are_one_sentence(fields, message, config) -> None:
    with pytest.raises(ValueError, match=message) as error:
        config(**fields)
    assert "\n" not in str(error.value)


def test_a_run_from_start_to_front(config, evaluator, tmp_path) -> None:
    run = evolve(config(), trials=12, evaluator=evaluator(), root=tmp_path)
    names = {path.name for path in (tmp_path / "test").iterdir()}
    assert names == {"config.toml", "study.db", "front.parquet", "best", "log.jsonl"}

    loaded = load_run(tmp_path / "test")
    assert loaded.config == run.config == config()
    candidates = loaded.candidates
    assert tuple(candidates.columns) == COLUMNS
    pd.testing.assert_frame_equal(candidates, run.candidates)
    assert (candidates["status"] == "trained").sum() == 12
    assert candidates["curve"][0] == [[1, 6.0]]

    front = loaded.front
    assert tuple(front.columns) == FRONT_COLUMNS
    assert list(front["role"]).count("best") == 1
    assert list(front[front["role"] == "baseline"]["label"]) == [
        "Attention + FFN",
        "Sliding-window attention + FFN",
    ]
    searched = front[front["role"] != "baseline"]
    assert non_dominated(searched[["loss", "latency_us"]]).all()
    trained = candidates[candidates["status"] == "trained"]
    assert len(searched) == non_dominated(trained[["loss", "latency_us"]]).sum()
    assert (front["measured_us_p50"] / front["latency_us"]).to_numpy() == pytest.approx(1.1)

    best = front[front["role"] == "best"].iloc[0]
    assert best["measured_us_p50"] <= 700
    meeting = searched[searched["measured_us_p50"] <= 700]
    assert best["loss"] == meeting["loss"].min()
    assert loaded.best is not None
    assert loaded.best.id == best["id"]
    assert json.loads((tmp_path / "test/best/arch.json").read_text())["hidden_size"] > 0


def test_baselines_have_the_latency_of_the_winner(config, evaluator, tmp_path) -> None:
    run = evolve(config(), trials=12, evaluator=evaluator(), root=tmp_path)
    front = run.front.set_index("role")
    limit = front.loc["best", "latency_us"]
    for _, row in front.loc[["baseline"]].iterrows():
        assert 0.8 * limit < row["latency_us"] <= 1.02 * limit
        assert math.isfinite(row["loss"])


def test_going_on_equals_one_go(config, evaluator, tmp_path) -> None:
    first = evaluator()
    evolve(config(), trials=5, evaluator=first, root=tmp_path / "a")
    again = evaluator()
    evolve(config(), trials=10, evaluator=again, root=tmp_path / "a")
    evolve(config(), trials=10, evaluator=evaluator(), root=tmp_path / "b")
    halves, whole = load_run(tmp_path / "a/test"), load_run(tmp_path / "b/test")
    pd.testing.assert_frame_equal(halves.candidates, whole.candidates)
    columns = ["id", "role", "loss", "measured_us_p50"]
    pd.testing.assert_frame_equal(halves.front[columns], whole.front[columns])
    # only what is new was trained
    assert not set(first.scored[:5]) & set(again.scored[:5])


def test_a_baseline_is_not_trained_again_as_a_candidate(config, evaluator, tmp_path) -> None:
    # the second seed is what the first one is held against
    seeds = ("(w f)x6 @64", "(a f)x4 @64")
    cfg = config(widths=(64,), baselines=("a f",), seeds=seeds)
    fake = evaluator()
    first = evolve(cfg, trials=1, evaluator=fake, root=tmp_path / "a")
    assert first.front["notation"].to_list() == list(seeds)
    halves = evolve(cfg, trials=4, evaluator=fake, root=tmp_path / "a").candidates
    assert halves["notation"][:2].to_list() == list(seeds)
    assert (halves["status"] == "trained").sum() == 4
    assert len(fake.scored) == len(set(fake.scored))
    whole = evolve(cfg, trials=4, evaluator=evaluator(), root=tmp_path / "b").candidates
    pd.testing.assert_frame_equal(halves, whole)


def test_a_failed_candidate_is_not_trained_again_as_a_baseline(
    config, evaluator, tmp_path
) -> None:
    tried = []

    def plain(spec) -> bool:
        tried.append(spec.id)
        return "sliding_window" not in {layer.operator for layer in spec.layers}

    cfg = config(max_layers=6, widths=(64,), baselines=("a f",), seeds=("(a f)x3 @64",))
    evolve(cfg, trials=12, evaluator=evaluator(fail=plain), root=tmp_path)
    assert len(tried) == len(set(tried))


def test_asking_for_what_is_there_trains_nothing(config, evaluator, tmp_path) -> None:
    evolve(config(), trials=5, evaluator=evaluator(), root=tmp_path)
    again = evaluator()
    evolve(config(), trials=4, evaluator=again, root=tmp_path)
    assert again.scored == []


def test_interrupt_leaves_a_usable_run(config, evaluator, tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        evolve(config(), trials=10, evaluator=evaluator(interrupt_at=7), root=tmp_path)
    run = load_run(tmp_path / "test")
    assert len(run.candidates) == 6
    last = (tmp_path / "test/log.jsonl").read_text().splitlines()[-1]
    assert (json.loads(last)["event"], json.loads(last)["number"]) == ("interrupted", 6)
    assert set(run.front["role"]) <= {"best", "front"}
    assert run.front["measured_us_p50"].isna().all()
    assert run.best is not None
    evolve(config(), trials=10, evaluator=evaluator(), root=tmp_path)
    evolve(config(), trials=10, evaluator=evaluator(), root=tmp_path / "whole")
    pd.testing.assert_frame_equal(
        load_run(tmp_path / "test").candidates, load_run(tmp_path / "whole/test").candidates
    )


def test_interrupt_before_anything_is_trained(config, evaluator, tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        evolve(config(), trials=3, evaluator=evaluator(interrupt_at=1), root=tmp_path)
    run = load_run(tmp_path / "test")
    assert run.candidates.empty
    assert run.front.empty
    assert run.best is None


def test_a_winner_that_is_too_slow_says_so(config, evaluator, tmp_path) -> None:
    slow = evaluator(slowdown=lambda spec: 10.0)
    run = evolve(config(), trials=6, evaluator=slow, root=tmp_path)
    best = run.front[run.front["role"] == "best"].iloc[0]
    assert not best["meets_target"]
    searched = run.front[run.front["role"] != "baseline"]
    assert best["measured_us_p50"] == searched["measured_us_p50"].min()


def test_baselines_are_matched_by_measurement(config, evaluator, tmp_path) -> None:
    def plain(spec) -> bool:
        return {layer.operator for layer in spec.layers} == {"attention", "ffn"}

    # the table is off by a factor for one pattern alone
    fake = evaluator(slowdown=lambda spec: 0.6 if plain(spec) else 1.1)
    run = evolve(config(codes=("w", "a")), trials=8, evaluator=fake, root=tmp_path)
    best = run.front[run.front["role"] == "best"].iloc[0]
    baseline = run.front[run.front["label"] == "Attention + FFN"].iloc[0]
    assert baseline["measured_us_p50"] == pytest.approx(best["measured_us_p50"], rel=0.15)
    assert baseline["latency_us"] > 1.3 * best["latency_us"]


def test_a_baseline_that_cannot_be_made_is_a_row(config, evaluator, tmp_path, monkeypatch) -> None:
    fake = evaluator()
    costs = fake.costs

    def lacking(spec):
        if {layer.operator for layer in spec.layers} == {"attention", "ffn"}:
            raise ValueError("the table lacks a row")
        return costs(spec)

    cfg = config(target_latency_ms=None, seed=1)
    monkeypatch.setattr(fake, "costs", lacking)
    # only the baseline is pure attention here
    cfg = config(codes=("w",))
    run = evolve(cfg, trials=4, evaluator=fake, root=tmp_path)
    row = run.front[run.front["role"] == "baseline"].iloc[0]
    assert row["status"] == "failed"
    assert "the table lacks a row" in row["error"]


@pytest.mark.parametrize(
    ("fields", "clause"),
    [
        ({"seed": 8}, "seed was 7 and is now 8"),
        ({"space": "free"}, "space was 'nemotron-flash' and is now 'free'"),
        ({"data_fingerprint": "d1"}, "data_fingerprint was 'd0' and is now 'd1'"),
        ({"recipe": {"steps": 5, "warmup_steps": 1}}, "recipe.steps was 4 and is now 5"),
        ({"table_id": "t1"}, "table_id was 't0' and is now 't1'"),
    ],
)
def test_another_config_is_refused(fields, clause, config, evaluator, tmp_path) -> None:
    evolve(config(), trials=2, evaluator=evaluator(), root=tmp_path)
    with pytest.raises(ValueError, match=clause):
        evolve(config(**fields), trials=4, evaluator=evaluator(), root=tmp_path)
    assert len(load_run(tmp_path / "test").candidates) == 2


def test_other_package_versions_are_no_difference(config, evaluator, tmp_path) -> None:
    evolve(config(), trials=2, evaluator=evaluator(), root=tmp_path)
    evolve(config(versions={"torch": "9"}), trials=3, evaluator=evaluator(), root=tmp_path)


def test_another_space_version_is_refused(config, evaluator, tmp_path) -> None:
    with pytest.raises(ValueError, match="version 99 of the space 'nemotron-flash'"):
        evolve(config(space_version=99), trials=2, evaluator=evaluator(), root=tmp_path)


def test_a_study_of_another_run_is_refused(config, evaluator, tmp_path) -> None:
    evolve(config(), trials=1, evaluator=evaluator(), root=tmp_path / "a")
    evolve(config(seed=8), trials=1, evaluator=evaluator(), root=tmp_path / "b")
    (tmp_path / "a/test/study.db").replace(tmp_path / "b/test/study.db")
    with pytest.raises(ValueError, match=r"does not belong to its config.toml: seed was 7"):
        load_run(tmp_path / "b/test")


def test_a_file_in_the_way_is_one_sentence(config, evaluator, tmp_path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(OSError, match="cannot create the run folder"):
        evolve(config(), trials=2, evaluator=evaluator(), root=tmp_path / "runs")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_full_disk_leaves_nothing_behind(config, evaluator, tmp_path, monkeypatch) -> None:
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"^cannot write to the run folder .*No space left"):
        evolve(config(), trials=2, evaluator=evaluator(), root=tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_impossible_target_makes_no_folder(config, evaluator, tmp_path) -> None:
    with pytest.raises(ValueError, match="meets the target"):
        evolve(config(target_latency_ms=0.01), trials=2, evaluator=evaluator(), root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_broken_run_folders(config, evaluator, tmp_path) -> None:
    evolve(config(), trials=1, evaluator=evaluator(), root=tmp_path)
    with pytest.raises(ValueError, match=r"no run at .*did you mean 'test'"):
        load_run(tmp_path / "tset")
    database = tmp_path / "test/study.db"
    database.write_bytes(b"this is no database" * 100)
    with pytest.raises(ValueError, match=r"cannot open the study in .*not a database"):
        load_run(tmp_path / "test")
    database.unlink()
    with pytest.raises(ValueError, match=r"has no study.db"):
        load_run(tmp_path / "test")
    (tmp_path / "test/config.toml").write_text("name = ")
    with pytest.raises(ValueError, match=r"config.toml is broken: not valid TOML"):
        load_run(tmp_path / "test")
    (tmp_path / "test/config.toml").write_text('name = "x"')
    with pytest.raises(ValueError, match=r"config.toml is broken: run config needs a field"):
        load_run(tmp_path / "test")


def test_a_shared_storage(config, evaluator, tmp_path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    evolve(config(), trials=2, evaluator=evaluator(), root=tmp_path / "a", storage=url)
    # another machine goes on with the same study
    run = evolve(config(), trials=4, evaluator=evaluator(), root=tmp_path / "b", storage=url)
    assert len(run.candidates) == 4
    assert not (tmp_path / "b/test/study.db").exists()
    with pytest.raises(ValueError, match="does not belong"):
        evolve(config(seed=1), trials=2, evaluator=evaluator(), root=tmp_path / "c", storage=url)


def test_two_processes_cannot_share_a_folder(config, evaluator, tmp_path) -> None:
    evolve(config(), trials=1, evaluator=evaluator(), root=tmp_path)
    with (
        files.exclusive(tmp_path / "test/config.toml", "this"),
        pytest.raises(ValueError, match="in use by another process"),
    ):
        evolve(config(), trials=2, evaluator=evaluator(), root=tmp_path)
    evolve(config(), trials=2, evaluator=evaluator(), root=tmp_path)


def test_a_storage_that_fails_is_one_sentence(config, evaluator, tmp_path, monkeypatch) -> None:
    evolve(config(), trials=1, evaluator=evaluator(), root=tmp_path)

    def full(study, trial):
        raise StorageInternalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "add_trials", lambda study, trials: None)
        patch.setattr(optuna.Study, "add_trial", full)
        with pytest.raises(OSError, match=r"cannot write the study of .*disk is full"):
            evolve(config(), trials=2, evaluator=evaluator(), root=tmp_path)
    assert len(load_run(tmp_path / "test").candidates) == 1


def test_a_seed_that_the_space_lacks_makes_no_folder(config, evaluator, tmp_path) -> None:
    cfg = config(seeds=("(a f)x20 @64",))
    with pytest.raises(ValueError, match="cannot express"):
        evolve(cfg, trials=1, evaluator=evaluator(), root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_storage_makes_no_folder(config, evaluator, tmp_path) -> None:
    with pytest.raises(ValueError, match="cannot open the study in the storage"):
        evolve(config(), trials=1, evaluator=evaluator(), root=tmp_path, storage="nonsense")
    assert list(tmp_path.iterdir()) == []


def test_events_come_in_order(config, evaluator, tmp_path) -> None:
    events = []

    class Recorder(Observer):
        def start(self, config, *, trials, counted):
            events.append(("start", trials, counted))

        def candidate_started(self, k, candidate):
            events.append(("candidate", k))

        def training_step(self, k, step, steps, loss):
            events.append(("step", k, step, steps))

        def candidate_recorded(self, k, row, *, counted):
            events.append(("recorded", k, counted))

        def baseline_started(self, label, candidate):
            events.append(("baseline", label))

        def done(self, winner):
            events.append(("done", winner["role"]))

    evolve(config(), trials=2, evaluator=evaluator(), root=tmp_path, observer=Recorder())
    assert events[:4] == [("start", 2, 0), ("candidate", 0), ("step", 0, 1, 4), ("recorded", 0, 1)]
    assert ("baseline", "Attention + FFN") in events
    assert events[-1] == ("done", "best")


def test_pace_counts_what_is_left(config) -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    pace.start(config(), trials=10, counted=4)
    assert pace.remaining_s() is None
    now[0] = 10.0
    pace.training_step(4, 2, 4, 3.0)
    # half a candidate in 10 s, of 6 candidates and 2 baselines
    assert pace.remaining_s() == pytest.approx(7.5 * 20)
    pace.candidate_recorded(4, {"status": "trained"}, counted=5)
    pace.candidate_recorded(5, {"status": "infeasible"}, counted=5)
    assert pace.remaining_s() == pytest.approx(7 * 10)
