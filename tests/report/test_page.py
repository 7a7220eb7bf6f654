"""The page stands alone and says what is true of the run, either way."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from archsearch.cli.main import app
from archsearch.cli.main import call
from archsearch.report import findings
from archsearch.report import view
from archsearch.report.html import commands
from archsearch.report.html import page
from archsearch.search import load_run

VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Tags close in order; links are collected."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("state", ["run", "without_front", "without_candidates"])
def test_page_is_whole_small_and_asks_nothing_of_a_network(
    state: str, request: pytest.FixtureRequest
) -> None:
    text = page(request.getfixturevalue(state))
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert len(checker.links) == 5
    assert all(link.startswith("data:image/png;base64,") for link in checker.links)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert "<script" not in text
    assert len(text) < 5_000_000
    assert ("There is no front yet" in text) == (state != "run")


def test_table_has_predicted_and_measured_side_by_side(run: Any) -> None:
    text, winner = page(run), view.best(run)
    predicted = f"<td>{winner['latency_us'] / 1e3:.3f}</td>"
    measured = f"<td>{winner['measured_us_p50'] / 1e3:.3f} ("
    assert predicted + measured in text


def test_verdict_names_what_is_beaten(run: Any) -> None:
    run.front.loc[run.front["role"] == "baseline", "loss"] = 9.0
    assert "has a lower held-out loss than" in findings.verdict(run)
    assert "does not beat" not in findings.verdict(run)


def test_verdict_says_so_when_a_baseline_is_better(run: Any) -> None:
    attention = run.front["label"] == "Attention + FFN"
    run.front.loc[attention, "loss"] = 0.5
    verdict = findings.verdict(run)
    assert "does not beat Attention + FFN (+" in verdict
    difference = view.best(run)["loss"] - 0.5
    pair = next(p for p in view.comparisons(run) if p.label == "Attention + FFN")
    assert pair.loss_difference == pytest.approx(difference)
    assert f"higher by {difference:.3f} nats per token" in findings.comparison(pair)


def test_comparison_at_another_latency_is_called_that(run: Any) -> None:
    run.front.loc[run.front["label"] == "Mamba-2", "measured_us_p50"] *= 2
    pair = next(p for p in view.comparisons(run) if p.label == "Mamba-2")
    assert not pair.same_latency
    assert "not like for like" in findings.comparison(pair)


def test_a_winner_that_misses_the_target_is_named(run: Any) -> None:
    best = run.front["role"] == "best"
    run.front.loc[best, "measured_us_p50"] = 2000.0
    said = " ".join(findings.cautions(run))
    assert f"Slower than the target of 1.5 ms when measured: {view.name(view.best(run))}" in said


def test_a_failed_baseline_shows_its_error(run: Any) -> None:
    last = run.front.index[-1]
    run.front.loc[last, ["status", "error"]] = ["failed", "every width is <slower>"]
    run.front.loc[last, ["spec", "parts", "loss"]] = None
    assert "every width is &lt;slower&gt;" in page(run)


def test_a_front_that_was_not_timed_says_so(run: Any) -> None:
    run.front = run.front[run.front["role"] != "baseline"].copy()
    run.front[[f"measured_us_p{q}" for q in (10, 50, 90)]] = float("nan")
    text = page(run)
    assert "not re-measured" in text
    assert "not measured" in text
    assert "No baseline was trained" in text


def test_provenance_names_the_machine_that_latencies_were_measured_on(run_folder: Path) -> None:
    run = load_run(run_folder)
    assert "Some CPU" not in page(run)
    (run_folder / "profile").mkdir()
    meta = {"hardware": {"name": "Some CPU"}, "measured": "2026-01-02"}
    (run_folder / "profile" / "meta.json").write_text(json.dumps(meta))
    text = page(run)
    assert "Some CPU" in text
    assert "2026-01-02" in text
    assert "2.13.0" in text


def test_commands_repeat_the_run(run: Any) -> None:
    evolve, report, export = commands(run).splitlines()
    offered = {
        option
        for parameter in get_command(app).commands["evolve"].params  # type: ignore[attr-defined]
        for option in parameter.opts
    }
    assert {word for word in evolve.split() if word.startswith("--")} <= offered
    for flag in (
        "--name demo",
        "--trials 10",
        "--population 6",
        "--tournament 3",
        "--tokenizer bytes",
        "--seed 7",
        "--target-latency 1.5",
        "--operators a,m2,d",
        "--widths 64,128,192,256",
        f"--steps {run.config.recipe.steps}",
        "--profile demo-cpu",
    ):
        assert f" {flag} " in f"{evolve} "
    assert report == "archsearch report demo"
    assert export == "archsearch export demo --to json"


def test_report_command_writes_figure_and_page(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["report", str(run_folder)]) == 0
    written = [run_folder / "front.png", run_folder / "report.html"]
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    assert written[0].read_bytes().startswith(b"\x89PNG")
    assert "archsearch run demo" in written[1].read_text(encoding="utf-8")
    assert not [path for path in run_folder.iterdir() if path.name.startswith(".")]


def test_report_command_with_out_leaves_the_run_alone(run_folder: Path, tmp_path: Path) -> None:
    before = sorted(run_folder.rglob("*"))
    assert call(["report", str(run_folder), "--out", str(tmp_path / "page.html")]) == 0
    assert sorted(run_folder.rglob("*")) == before
    assert (tmp_path / "page.html").is_file()


def test_report_command_on_nothing_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["report", str(tmp_path / "nothing")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
