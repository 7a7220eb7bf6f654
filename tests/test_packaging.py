"""The wheel carries one top-level name, and the linked folders inside it.

Building needs no network: it uses the setuptools of this environment.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    # through an sdist, as an index would build it
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (path,) = out.glob("*.whl")
    return path


def test_one_top_level_name(wheel: Path) -> None:
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"archsearch"}


def test_linked_folders_and_data_are_inside(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "archsearch/operators/attention/module.py" in names
    assert "archsearch/operators/tuned/sm90.json" in names
    assert "archsearch/profiles/schema.py" in names
    assert "archsearch/py.typed" in names
    data = [name for name in names if name.startswith("archsearch/profiles/data/")]
    assert {Path(name).name for name in data} == {"calibration.json", "meta.json", "table.parquet"}
    assert not any("/tests/" in name for name in names)


def test_wheel_runs_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import archsearch.operators as o, archsearch.profiles; print(o.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout.startswith(str(tmp_path))


@pytest.mark.parametrize("folder", ["operators", "profiles"])
def test_folders_refuse_to_be_imported_by_their_own_name(folder: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert f"import archsearch.{folder}, not {folder}" in done.stderr
