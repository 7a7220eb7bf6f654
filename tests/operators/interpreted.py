"""What Triton's interpreter needs to run upstream's kernels on a CPU.

Imported by test_*_interpreted.py where they run as scripts, in the processes that the fixture
`in_interpreter` starts.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from importlib.util import find_spec
from types import ModuleType
from types import SimpleNamespace
from typing import Any

import torch


def prepare() -> None:
    """Stand-ins for what the interpreter or a CPU lacks: compiled modules, device properties,
    tuning (the last setting is taken), and loop counters that are integers and scalars."""
    from triton.runtime import autotuner
    from triton.runtime import interpreter

    for module in ("selective_scan_cuda", "causal_conv1d_cuda"):
        if find_spec(module) is None:
            sys.modules[module] = ModuleType(module)
    torch.cuda.device = lambda index: nullcontext()  # type: ignore[assignment, misc]
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(multi_processor_count=8)

    def run_last(self: Any, *args: Any, **kwargs: Any) -> Any:
        setting = self.best_config = self.configs[-1]
        if setting.pre_hook is not None:
            names = dict(zip(self.arg_names, args, strict=False))
            setting.pre_hook({**names, **kwargs, **setting.all_kwargs()})
        return self.fn.run(*args, **kwargs, **setting.all_kwargs())

    autotuner.Autotuner.run = run_last
    patch = interpreter._patch_lang_tensor

    def patch_index(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_index
    call = interpreter.InterpretedFunction.run

    def run_counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        # a module's own name comes before the builtin one
        for name, module in list(sys.modules.items()):
            if name.startswith("fla.ops") and module is not None:
                vars(module).setdefault("range", counted)
        return call(self, *args, **kwargs)

    interpreter.InterpretedFunction.run = run_counted


class Counter(int):
    """A loop counter that kernels may convert, as they do with Triton's scalars."""

    def to(self, dtype: object) -> int:
        return int(self)


def counted(*bounds: Any, **options: Any) -> list[Counter]:
    """`range` of counters."""
    return [Counter(number) for number in range(*(int(bound) for bound in bounds))]
