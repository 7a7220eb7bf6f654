"""Fixtures for comparing operators with implementations that nobody here wrote."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from archsearch import operators
from archsearch.operators.backends import Request
from archsearch.operators.base import Phase
from archsearch.operators.common import fla


@pytest.fixture(scope="session")
def load_naive() -> Callable[[str], ModuleType]:
    """Loads a file of flash-linear-attention, such as "ops/delta_rule/naive.py", by its path:
    importing the package itself needs triton."""

    def load(path: str) -> ModuleType:
        package = importlib.util.find_spec("fla")
        assert package is not None, "install archsearch[dev]: the tests need fla-core"
        assert package.submodule_search_locations is not None
        file = Path(next(iter(package.submodule_search_locations)), path)
        name = "naive_" + path.removesuffix(".py").replace("/", "_")
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None, f"{file} is not a Python file"
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def in_interpreter() -> Callable[..., None]:
    """Runs a test file as a script whose Triton kernels are interpreted on the CPU. Triton reads
    TRITON_INTERPRET when it is imported, hence a process of its own."""

    def run(file: str, *arguments: str) -> None:
        root = Path(__file__).parents[2]
        paths = [str(root), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "TRITON_INTERPRET": "1",
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }
        done = subprocess.run(
            [sys.executable, file, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.fixture
def hopper_refusal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Why a layer of width 512 cannot run on flash-linear-attention on a Hopper GPU with Triton
    3.6.0; "" if it can."""
    monkeypatch.setattr(fla, "is_hopper", lambda: True)
    monkeypatch.setattr(fla, "triton_version", lambda: (3, 6, 0))

    def refusal(name: str, options: dict[str, Any], phase: Phase, dtype: torch.dtype) -> str:
        operator = operators.get(name)
        mixer = operator.build(operator.configure(512, **options))
        return mixer.refuses("fla", Request(name, phase, "cuda", dtype))

    return refusal
