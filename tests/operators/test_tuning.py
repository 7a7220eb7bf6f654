"""Kept kernel settings: which of them answers for which key."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from archsearch.operators.common import tuning
from archsearch.operators.common.tuning import FOLDER
from archsearch.operators.common.tuning import Tuned

Key = tuple[int | str | bool, ...]
# heads (loose), head width, a flag, a dtype
FEW: Key = (4, 128, False, "torch.bfloat16")
MANY: Key = (64, 128, False, "torch.bfloat16")


def tuned() -> Tuned:
    return Tuned({FEW: "few", MANY: "many"}, loose={0})


@pytest.mark.parametrize(("heads", "setting"), [(1, "few"), (4, "few"), (15, "few"), (17, "many")])
def test_nearest_head_count_answers(heads: int, setting: str) -> None:
    memory, key = tuned(), (heads, *FEW[1:])
    assert key in memory
    assert memory[key] == setting


@pytest.mark.parametrize(
    "key",
    [
        (4, 64, False, "torch.bfloat16"),
        (4, 128, True, "torch.bfloat16"),
        (4, 128, False, "torch.float32"),
        (4, 128, False, "torch.bfloat16", "torch.float32"),
        (0, 128, False, "torch.bfloat16"),
    ],
)
def test_anything_else_must_be_equal(key: Key) -> None:
    assert key not in tuned()


def test_what_triton_finds_later_is_remembered() -> None:
    memory, key = tuned(), (4, 64, False, "torch.bfloat16")
    memory[key] = "new"
    assert key in memory and memory[key] == "new"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("sm*.json")), ids=lambda file: file.name)
def test_kept_files_are_whole(file: Path) -> None:
    kept = json.loads(file.read_text())
    assert {"gpu", "triton"} <= set(kept["head"])
    for name, kernel in kept["kernels"].items():
        assert ":" in name and kernel["entries"], name
        keys = [tuple(key) for key, _ in kernel["entries"]]
        assert len(set(keys)) == len(keys), f"{name} has a key twice"
        assert all(len(key) >= len(kernel["keys"]) for key in keys), name
        assert all(
            setting["num_warps"] in (1, 2, 4, 8, 16, 32) for _, setting in kernel["entries"]
        )


def test_settings_of_another_version_are_left_out() -> None:
    pytest.importorskip("triton")
    from triton import Config

    class Kernel:
        keys = ("H", "K")
        configs = (Config({"BV": 32}), Config({"BV": 64}))
        base_fn = math.sqrt

    setting = {"kwargs": {"BV": 64}, "num_warps": 4, "num_stages": 2}
    same = {"keys": ["H", "K"], "entries": [[[4, 128], setting]]}
    assert list(tuning._fitting(Kernel, same)) == [(4, 128)]
    renamed = {"keys": ["HV", "K"], "entries": same["entries"]}
    other = {"keys": ["H", "K"], "entries": [[[4, 128], {**setting, "kwargs": {"BK": 64}}]]}
    assert not tuning._fitting(Kernel, renamed)
    assert not tuning._fitting(Kernel, other)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("sm*.json")), ids=lambda file: file.name)
def test_every_head_count_is_answered(file: Path) -> None:
    """A layer with another number of heads than those that were tuned waits for nothing."""
    kernels = json.loads(file.read_text())["kernels"]
    counted = [kernel for kernel in kernels.values() if {"H", "HV", "nheads"} & {*kernel["keys"]}]
    assert counted
    for kernel in counted:
        heads = {i for i, key in enumerate(kernel["keys"]) if key in ("H", "HV", "nheads")}
        loose = {i for i, key in enumerate(kernel["keys"]) if key in tuning.LOOSE}
        entries = {tuple(key): setting for key, setting in kernel["entries"]}
        assert all(
            tuple(37 if i in heads else part for i, part in enumerate(key))
            in Tuned(entries, loose)
            for key in entries
        )
