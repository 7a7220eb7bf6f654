"""Runs as users name them: a folder, or a name under `runs/`."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from archsearch.space import ArchSpec
from archsearch.space import load
from archsearch.space import presets

RUNS = Path("runs")
WINNER = Path("best") / "arch.json"


def load_source(text: str) -> ArchSpec:
    """An architecture from a preset, a pattern, a JSON file, or the winner of a run.

    Raises ValueError for what is none of them and for a run that has no winner yet.
    """
    if text in presets.names():
        return load(text)
    for folder in (Path(text), RUNS / text):
        if text and folder.is_dir():
            return _winner(folder)
    try:
        return load(text)
    except ValueError:
        runs = [config.parent.name for config in RUNS.glob("*/config.toml")]
        near = get_close_matches(text, runs, n=1)
        if not near or Path(text).is_file():
            raise
        raise ValueError(f"there is no run {text!r}; did you mean {near[0]!r}?") from None


def _winner(folder: Path) -> ArchSpec:
    file = folder / WINNER
    if not file.is_file():
        raise ValueError(f"the run {folder} has no winner yet: there is no {file}")
    return load(str(file))
