"""How products are cut into programs: kept settings and the rule.

Run: pytest tests/operators/fused/test_blocks.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from archsearch.operators.fused import blocks
from archsearch.operators.fused.blocks import Blocks
from archsearch.operators.fused.table import decode_backends

KEPT = sorted(blocks.FOLDER.glob("products_*.json"))


def is_whole(one: Blocks, batch: int) -> bool:
    sizes = (one.m, one.n, one.k, one.warps)
    return (one.m == 1) == (batch == 1) and all(size == blocks.power_of_2(size) for size in sizes)


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.name)
def test_kept_files_are_whole(file: Path) -> None:
    kept = json.loads(file.read_text())
    assert {"gpu", "triton", "commit", "date"} <= set(kept["head"])
    for name, values in kept["blocks"].items():
        epilogue, batch, rows, width = name.split(":")
        one = Blocks(*values)
        assert is_whole(one, int(batch)), name
        assert one.splits == 1 or epilogue in ("residual", "parts"), name
        # more shares than columns would leave some without any
        assert (one.splits - 1) * one.k < int(width), name
        assert int(rows) > 0, name


def test_a_kept_setting_goes_before_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "residual:1:2048:4096"
    assert KEPT, "no settings are kept"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    kept = Blocks(*json.loads((blocks.FOLDER / "products_sm90.json").read_text())["blocks"][name])
    assert blocks.blocks_for("residual", 1, 2048, 4096, torch.bfloat16) == kept
    # they were found for 16-bit weights, and for this GPU
    by_rule = blocks.by_rule("residual", 1, 2048, 4096, torch.float32)
    assert blocks.blocks_for("residual", 1, 2048, 4096, torch.float32) == by_rule
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert blocks.blocks_for("residual", 1, 2048, 4096, torch.bfloat16) == by_rule


@pytest.mark.parametrize("batch", [1, 2, 17, 32, 100, 500])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_rule_gives_whole_blocks(batch: int, dtype: torch.dtype) -> None:
    for epilogue in ("store", "swiglu", "relu2", "residual", "head", "parts"):
        for rows, width in ((7, 40), (896, 4864), (2048, 6144), (131072, 2304)):
            one = blocks.by_rule(epilogue, batch, rows, width, dtype)
            assert is_whole(one, batch), (epilogue, rows, width)
            assert one.splits == 1 or epilogue in ("residual", "parts")


@pytest.mark.parametrize("batch", [8, 32, 64, 128])
def test_the_rule_fits_a_smaller_gpu(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = 101376  # of an RTX 4090
    for epilogue in ("store", "swiglu", "residual", "head", "parts"):
        for rows, width in ((896, 4864), (2048, 6144), (18432, 3072), (131072, 2304)):
            asked = (epilogue, batch, rows, width, torch.bfloat16)
            monkeypatch.setattr(blocks, "_shared_memory", lambda: 232448)
            hopper = blocks.by_rule(*asked)
            monkeypatch.setattr(blocks, "_shared_memory", lambda: memory)
            small = blocks.by_rule(*asked)
            assert small == replace(hopper, stages=small.stages)
            weights = 2 if epilogue == "swiglu" else 1
            assert small.stages * 2 * small.k * (small.m + weights * small.n) <= memory


@pytest.mark.parametrize("batch", [8, 32, 128])
def test_no_share_of_the_columns_is_empty(batch: int) -> None:
    for rows in range(64, 9000, 448):
        for width in (64, 896, 1792, 2304, 6912, 9216):
            one = blocks.by_rule("residual", batch, rows, width, torch.bfloat16)
            tiles = -(-width // one.k)
            assert (one.splits - 1) * -(-tiles // one.splits) < tiles, (rows, width)


def test_beyond_some_rows_the_plain_step_is_preferred() -> None:
    plain = ("mamba_ssm", "torch")
    assert decode_backends("mamba", plain, 32) == ("triton", *plain)
    assert decode_backends("mamba", plain, 33) == (*plain, "triton")
    assert decode_backends("mamba2", plain, 500) == ("triton", *plain)
    assert decode_backends("embedding", plain) == plain
