"""Budgets that keep the project readable: no source file is longer than 400 lines."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 400
FOLDERS = ("archsearch", "operators", "profiles", "experiments", "tests")
FILES = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    if "operators" not in path.relative_to(ROOT / folder).parts[:1] or folder == "tests"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{path.name} has {lines} lines; split it"


def test_every_package_folder_says_why_it_exists() -> None:
    for path in FILES:
        if path.name == "__init__.py":
            assert path.read_text().lstrip().startswith('"""'), f"{path} has no docstring"
