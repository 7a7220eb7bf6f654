"""Figures show what is in the run, in every state that a run can be in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.figure import Figure

from archsearch import operators
from archsearch.report import figures
from archsearch.report import style
from archsearch.report import view

PLOTS = (
    figures.plot_front,
    figures.plot_patterns,
    figures.plot_latency_by_operator,
    figures.plot_loss_curves,
    figures.plot_history,
)


def texts(figure: Figure) -> list[str]:
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    found += [text.get_text() for legend in legends if legend for text in legend.get_texts()]
    ticks = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    return found + ticks


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("state", ["run", "without_front", "without_candidates"])
def test_every_plot_draws_every_state_of_a_run(
    plot: Callable[[Any], Figure], state: str, request: pytest.FixtureRequest
) -> None:
    assert figures.png(plot(request.getfixturevalue(state)), dpi=40).startswith(b"\x89PNG")


def test_figures_leave_pyplot_alone() -> None:
    code = "import sys, archsearch.report.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_style_is_there_without_matplotlib() -> None:
    code = "import sys, archsearch.report.style; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_operator_has_a_colour_of_its_own() -> None:
    codes = {operator.code for operator in operators.OPERATORS}
    assert codes <= style.COLOURS.keys()
    assert len(set(style.COLOURS.values())) == len(style.COLOURS)


def test_front_marks_winner_baselines_and_target(run: Any) -> None:
    shown = texts(figures.plot_front(run))
    winner = view.best(run)
    assert f"best (#{winner['number']})" in shown
    assert "target 1.5 ms" in shown
    for label in ("Attention + FFN", "Mamba-2 + FFN", "Mamba-2"):
        assert label in shown
    assert sum(f"#{winner['number']}" in text for text in shown) == 2


def test_front_line_goes_through_its_members(run: Any) -> None:
    axes = figures.plot_front(run).axes[0]
    members = view.members(run)
    line = next(line for line in axes.lines if len(line.get_xdata()) == len(members) > 1)
    assert list(line.get_ydata()) == list(members["loss"])
    assert list(line.get_xdata()) == pytest.approx(list(members["latency_us"] / 1e3))


def test_a_very_bad_candidate_does_not_flatten_the_rest(run: Any) -> None:
    run.candidates.loc[run.candidates["loss"].idxmax(), "loss"] = 500.0
    run.front = run.front[:0]
    figure = figures.plot_front(run)
    assert figure.axes[0].get_ylim()[1] < 10
    assert "1 more above" in texts(figure)


def test_patterns_have_one_cell_per_layer_in_order(run: Any) -> None:
    axes = figures.plot_patterns(run).axes[0]
    rows = view.shown(run)
    assert len(axes.patches) == rows["num_layers"].sum()
    first = view.codes(rows.iloc[0])
    cells = sorted((p for p in axes.patches if p.get_y() < 0), key=lambda cell: cell.get_x())
    from matplotlib.colors import to_hex

    assert [to_hex(cell.get_facecolor()).upper() for cell in cells] == [
        style.colour(code) for code in first
    ]


def test_latency_bars_add_up_to_the_prediction(run: Any) -> None:
    axes = figures.plot_latency_by_operator(run).axes[0]
    rows = view.shown(run)
    ends: dict[int, float] = {}
    for bar in axes.patches:
        y = round(bar.get_y() + bar.get_height() / 2)
        ends[y] = max(ends.get(y, 0.0), bar.get_x() + bar.get_width())
    assert [ends[y] for y in range(len(rows))] == pytest.approx(list(rows["latency_us"] / 1e3))


def test_history_falls_to_the_best_loss(run: Any) -> None:
    axes = figures.plot_history(run).axes[0]
    best = next(line for line in axes.lines if line.get_label() == "best so far")
    losses = list(best.get_ydata())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == run.candidates["loss"].min()


def test_a_baseline_that_failed_is_left_out_of_the_figures(run: Any) -> None:
    last = run.front.index[-1]
    run.front.loc[last, ["spec", "parts", "loss"]] = None
    run.front.loc[last, ["status", "label"]] = ["failed", "broken"]
    for plot in PLOTS:
        assert "broken" not in texts(plot(run))
