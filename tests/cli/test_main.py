"""Start-up is fast, and mistakes end in one sentence and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import archsearch
from archsearch.cli import presets
from archsearch.cli.main import call
from archsearch.cli.main import run

HEAVY = ("torch", "pandas", "optuna", "matplotlib", "pyarrow", "transformers")
LIGHT_COMMANDS = (
    ["--help"],
    ["--version"],
    ["operators"],
    ["presets"],
    ["arch", "show", "nemotron-flash-1b"],
    ["space", "list"],
    ["space", "show", "free"],
    ["export", "nemotron-flash-1b"],
)


def process(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )


def test_light_commands_import_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from archsearch.cli.main import call\n"
        f"codes = [call(words) for words in {LIGHT_COMMANDS!r}]\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'{codes} {heavy}' if any(codes) or heavy else 0)"
    )
    done = process(code)
    assert done.returncode == 0, done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["--version"]) == 0
    assert capsys.readouterr().out == f"archsearch {archsearch.__version__}\n"


def test_nothing_to_do_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert call([]) == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["operatosr"], "operators"),
        (["arch", "show"], "SPEC"),
        (["arch", "show", "a f @128", "--contxt", "3"], "--context"),
        (["arch", "show", "nemotron-flash-2b"], "nemotron-flash-1b"),
        (["arch", "show", "a q f @128"], "q"),
        (["arch", "show", "a f @100"], "multiple of the head width"),
        (["arch", "show", "a f @128", "--context", "0"], "positive"),
        (["arch", "show", "a f @128", "--dtype", "int8"], "float32"),
        (["arch", "show", "missing.json"], "missing.json"),
        (["space", "show", "nemotron-flsh"], "nemotron-flash"),
        (["operators", "--width", "100"], "100"),
        (["export", "a f @128", "--to", "onnxx"], "json"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: Sequence[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert expected in captured.err
    assert captured.err.startswith("archsearch: ")
    assert "Traceback" not in captured.err


def test_debug_shows_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHSEARCH_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown space"):
        call(["space", "show", "nope"])


def test_our_own_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(presets.terminal, "print_json", broken)
    with pytest.raises(AssertionError, match="a bug"):
        call(["presets", "--json"])


def test_ctrl_c_is_130_and_a_short_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(presets.terminal, "print_json", interrupted)
    with pytest.raises(SystemExit) as exit_:
        run(["presets", "--json"])
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "archsearch: interrupted\n"


def test_a_closed_pipe_is_no_error() -> None:
    code = (
        "import os, sys\n"
        "reader, writer = os.pipe()\n"
        "os.close(reader)\n"
        "os.dup2(writer, 1)\n"
        "from archsearch.cli.main import run\n"
        "run(['presets', '--json'])"
    )
    assert "Traceback" not in process(code).stderr


def test_a_misspelt_run_is_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "config.toml").touch()
    monkeypatch.chdir(tmp_path)
    assert call(["export", "frist"]) == 2
    assert "did you mean 'first'" in capsys.readouterr().err
    (tmp_path / "frist").write_text("{")
    assert call(["export", "frist"]) == 2
    assert "frist: the architecture is not JSON" in capsys.readouterr().err
