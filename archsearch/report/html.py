"""One self-contained HTML page about a run: no network, no scripts, figures inside."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Callable
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING
from typing import Any

import pandas as pd

from archsearch import __version__
from archsearch.profiles.store import META_FILE
from archsearch.report import figures
from archsearch.report import findings
from archsearch.report import view
from archsearch.report.layout import page as lay_out
from archsearch.report.layout import table
from archsearch.search.records import COUNTED
from archsearch.search.setup import TABLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from archsearch.search import Run


def page(run: Run) -> str:
    """The whole page as HTML; works on a run that has no front, or nothing at all, yet."""
    sections = [
        ("", _summary(run)),
        ("Front", _figure(figures.plot_front, run, "latency against held-out loss")),
        ("", _front_table(run)),
        ("Against the baselines", _comparison(run)),
        ("Patterns", _figure(figures.plot_patterns, run, "layer patterns")),
        (
            "Where the time goes",
            _figure(figures.plot_latency_by_operator, run, "latency by operator"),
        ),
        ("Search", _figure(figures.plot_history, run, "loss by candidate")),
        ("", _counts(run)),
        ("Training", _figure(figures.plot_loss_curves, run, "training loss")),
        ("Provenance", _provenance(run)),
        ("Reproduce", f"<pre>{escape(commands(run))}</pre>"),
    ]
    return lay_out(f"archsearch run {run.config.name}", sections)


def commands(run: Run) -> str:
    """Shell commands that make the run, this page and the winner's file again."""
    name = run.config.name
    words = (["evolve", *_flags(run)], ["report", name], ["export", name, "--to", "json"])
    return "\n".join(shlex.join(["archsearch", *command]) for command in words)


def _flags(run: Run) -> list[str]:
    config = run.config
    trials = int(run.candidates["status"].isin(COUNTED).sum())
    settings = {
        "name": config.name,
        "space": config.space,
        "sampler": config.sampler,
        "population": config.population,
        "tournament": config.tournament,
        "trials": max(1, trials),
        "seed": config.seed,
        "target-latency": config.target_latency_ms,
        "batch": config.batch,
        "context": config.context,
        "operators": ",".join(config.codes),
        "widths": ",".join(map(str, config.widths)),
        "width": config.width,
        "max-layers": config.max_layers,
        "objectives": ",".join(config.objectives),
        "max-parameters": config.max_parameters,
        "max-state-bytes": config.max_state_bytes,
        "profile": config.table,
        "data": config.data,
        "tokenizer": config.tokenizer,
        "steps": config.recipe.steps,
    }
    return [
        word
        for flag, value in settings.items()
        if value is not None
        for word in (f"--{flag}", str(value))
    ]


def _summary(run: Run) -> str:
    sentences = (findings.searched(run), findings.found(run), findings.verdict(run))
    notes = _list(findings.cautions(run))
    return f'<p class="lead">{escape(" ".join(sentences))}</p>{notes}'


def _front_table(run: Run) -> str:
    columns = (
        "model",
        "pattern",
        "width",
        "parameters",
        "loss",
        "bits/byte",
        "predicted ms",
        "measured ms (p10 to p90)",
        "gap",
    )
    rows = [_front_cells(row) for _, row in view.shown(run).iterrows()]
    if not rows:
        return "<p>There is no front yet.</p>"
    return table(columns, rows, left=2) + (
        "<p class=note>Latencies are per token. Predicted: the sum of the latency table's rows. "
        "Measured: the built model, median and 10th to 90th percentile.</p>"
    )


def _front_cells(row: pd.Series) -> list[str]:
    measured, gap = "not measured", ""
    if view.was_timed(row):
        low, middle, high = (row[f"measured_us_{q}"] / 1e3 for q in ("p10", "p50", "p90"))
        measured, gap = (
            f"{middle:.3f} ({low:.3f} to {high:.3f})",
            findings.signed(findings.gap(row)),
        )
    return [
        view.name(row),
        str(row["notation"]),
        f"{row['hidden_size']:.0f}",
        f"{row['parameters']:,.0f}",
        f"{row['loss']:.4f}",
        f"{row['bits_per_byte']:.4f}",
        f"{row['latency_us'] / 1e3:.3f}",
        measured,
        gap,
    ]


def _comparison(run: Run) -> str:
    said = [findings.comparison(pair) for pair in view.comparisons(run)]
    said += [
        f"{row['label']}: no comparison, {row['error']}."
        for _, row in view.failed_baselines(run).iterrows()
    ]
    if not said:
        return f"<p>{escape(findings.verdict(run))}</p>"
    intro = "Against each baseline, trained and timed the same way, the loss of the best is"
    return f"<p>{intro}</p>{_list(said)}"


def _counts(run: Run) -> str:
    if not len(run.candidates):
        return "<p>No candidate has been recorded yet.</p>"
    counts = run.candidates["status"].value_counts()
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    failed = run.candidates[run.candidates["status"] == "failed"]
    errors = _list(f"#{row['number']:.0f}: {row['error']}" for _, row in failed.iterrows())
    return f"<p>Candidates: {escape(said)}.</p>{errors}"


def _provenance(run: Run) -> str:
    settings = _flattened(run.config.model_dump(mode="json"))
    rows = [("report written by", f"archsearch {__version__}"), *_measured_on(run), *settings]
    return table(("setting", "value"), rows, left=2)


def _measured_on(run: Run) -> list[tuple[str, str]]:
    """Machine and software that the latency table was measured with, where the run keeps it."""
    file = run.path / TABLE / META_FILE
    if not file.is_file():
        return []
    meta = json.loads(file.read_text(encoding="utf-8"))
    shown = ("hardware", "software", "git_commit", "measured", "method_text")
    return _flattened({key: meta[key] for key in shown if key in meta}, "latency table: ")


def _flattened(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            pairs += _flattened(value, f"{prefix}{key}.")
        elif value not in (None, []):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            pairs.append((prefix + key, shown))
    return pairs


def _figure(draw: Callable[[Run], Figure], run: Run, title: str) -> str:
    data = base64.b64encode(figures.png(draw(run))).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{escape(title)}">'


def _list(items: Iterable[str]) -> str:
    lines = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<ul>{lines}</ul>" if lines else ""
