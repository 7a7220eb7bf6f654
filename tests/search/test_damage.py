"""A run folder that is damaged, or another run's, ends in one sentence."""

from __future__ import annotations

import contextlib
import sqlite3

import pandas as pd
import pytest

from archsearch.search import evolve
from archsearch.search import load_run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("delete from study_user_attributes where key = 'config'", "not made by this version"),
        ("delete from trial_user_attributes", "trial 0 of the study 'test' is no candidate"),
    ],
)
def test_a_foreign_study_is_one_sentence(change, message, config, evaluator, tmp_path) -> None:
    evolve(config(), trials=2, evaluator=evaluator(), root=tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "test" / "study.db")) as study:
        study.execute(change)
        study.commit()
    with pytest.raises(ValueError, match=message):
        _ = load_run(tmp_path / "test").candidates


@pytest.mark.parametrize("file", ["config.toml", "study.db", "front.parquet"])
def test_a_damaged_file_is_named_in_one_line(file, config, evaluator, tmp_path) -> None:
    evolve(config(), trials=2, evaluator=evaluator(), root=tmp_path)
    (tmp_path / "test" / file).write_bytes(b"\xfe\xff" * 1000)
    with pytest.raises(ValueError, match=file) as error:
        _ = load_run(tmp_path / "test").front
    assert "\n" not in str(error.value)


def test_a_foreign_front_names_the_missing_column(config, evaluator, tmp_path) -> None:
    run = evolve(config(), trials=2, evaluator=evaluator(), root=tmp_path)
    pd.DataFrame({"number": [1]}).to_parquet(tmp_path / "test" / "front.parquet")
    with pytest.raises(ValueError, match=r"front\.parquet is no front: .* 'id'"):
        _ = run.front


def test_other_settings_are_told_before_the_table_is_asked(config, evaluator, tmp_path) -> None:
    evolve(config(), trials=2, evaluator=evaluator(), root=tmp_path)
    judge = evaluator()
    judge.costs = lambda spec: pytest.fail("the run's table knows nothing of other widths")
    with pytest.raises(ValueError, match="cannot go on with another configuration: widths"):
        evolve(config(widths=(256,)), trials=2, evaluator=judge, root=tmp_path)


def test_an_unknown_name_lists_the_runs(config, evaluator, tmp_path, monkeypatch) -> None:
    evolve(config(), trials=2, evaluator=evaluator(), root=tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="did you mean 'test'"):
        load_run("tets")
