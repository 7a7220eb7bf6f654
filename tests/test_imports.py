"""What must start at once stays light, and every module imports without GPU or extras."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

import archsearch

LIGHT = ["archsearch.operators", "archsearch.space", "archsearch.profiles", "archsearch.hardware"]
MODULES = [
    module.name
    for module in pkgutil.walk_packages(archsearch.__path__, "archsearch.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("module", LIGHT)
def test_starts_without_torch(module: str) -> None:
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_module_imports_without_the_extras() -> None:
    # kernels of our own are written in Triton, and imported when they run
    kernels = re.compile(r"operators\.(fused\.(?!dispatch|table)|\w+\.step$)")
    modules = MODULES if find_spec("triton") else [m for m in MODULES if not kernels.search(m)]
    blocked = ["fla", "mamba_ssm", "causal_conv1d", "flash_attn", "datasets", "ray"]
    code = f"""
import sys, importlib
sys.modules.update(dict.fromkeys({blocked!r}))
for name in {modules!r}:
    importlib.import_module(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
