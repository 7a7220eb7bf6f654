"""Writes a run's figures and page, each file whole or not at all."""

from __future__ import annotations

from pathlib import Path

from archsearch.files import write_atomic
from archsearch.files import write_text
from archsearch.report import figures
from archsearch.report.html import page
from archsearch.search import Run

FIGURE, PAGE = "front.png", "report.html"


def write(run: Run) -> list[Path]:
    """Write `front.png` and `report.html` into the run's folder; raises OSError."""
    figure = figures.png(figures.plot_front(run))
    write_atomic(run.path / FIGURE, lambda file: file.write_bytes(figure))
    return [run.path / FIGURE, write_page(run, run.path / PAGE)]


def write_page(run: Run, path: Path) -> Path:
    """Write the page alone to `path`; raises OSError."""
    text = page(run)
    write_text(path, text)
    return path
