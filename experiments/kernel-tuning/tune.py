"""Tune the Triton kernels behind the GPU backends once, and keep what was found.

Question: which settings of each kernel are the fastest on this GPU? A new process would
spend minutes on finding out at first use. Every operator is tuned in its own process, all at
once, so that compilation uses all cores; the timing itself waits for its turn on the GPU.

    python experiments/kernel-tuning/tune.py OUT [--limit 420] [--only gla kda]

OUT/sm90.json (the GPU's architecture) is the file for operators/tuned/; OUT/raw/ and OUT/log/
keep what each process found and said. A process that exceeds the limit is stopped, what it
found until then counts.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).resolve().parent))

COMPILE_THREADS = 4
WARMUP_MS, REPEAT_MS = 5, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=float, default=420, help="seconds, for all together")
    parser.add_argument("--only", nargs="*", default=(), help="these cases alone")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.case:
        run_case(settings.case, settings.out)
    else:
        run_all(settings.out, settings.limit, settings.only)


def run_all(out: Path, limit: float, only: list[str]) -> None:
    """Start a process for every case, wait, stop the late ones, merge and tell."""
    import cases

    for folder in ("raw", "log"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    names = only or list(cases.CASES)
    begin = time.monotonic()
    children = {name: start(name, out) for name in names}
    ended: dict[str, float] = {}
    while len(ended) < len(children) and time.monotonic() - begin < limit:
        for name, child in children.items():
            if name not in ended and child.poll() is not None:
                ended[name] = time.monotonic() - begin
                print(f"{name:24} {ended[name]:6.0f} s  {told(name, out)}", flush=True)
        time.sleep(0.5)
    for name, child in children.items():
        if name not in ended:
            child.kill()
            child.wait()
            print(f"{name:24} stopped after {limit:.0f} s  {told(name, out)}", flush=True)
    merge(out)


def start(name: str, out: Path) -> subprocess.Popen[bytes]:
    """One case in a process of its own, which neither reads kept settings nor old results."""
    environment = {
        **os.environ,
        "ARCHSEARCH_TUNED": "0",
        "FLA_CACHE_MODE": "disabled",
        "FLA_CACHE_RESULTS": "0",
        "TRITON_CACHE_AUTOTUNING": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    with (out / "log" / f"{name}.txt").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, __file__, str(out), "--case", name],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def told(name: str, out: Path) -> str:
    """How far a case came, in one line."""
    file = out / "raw" / f"{name}.json"
    if not file.exists():
        lines = (out / "log" / f"{name}.txt").read_text(errors="replace").strip().splitlines()
        return f"nothing found: {lines[-1][:200] if lines else 'no output'}"
    raw = json.loads(file.read_text())
    kernels = raw["kernels"].values()
    stages = ", ".join(f"{stage} {what}" for stage, what in raw["stages"].items())
    entries = sum(len(kernel["entries"]) for kernel in kernels)
    return f"{len(kernels)} kernels, {entries} entries; {stages}"


def merge(out: Path) -> None:
    """Put what all cases found into OUT/sm<capability>.json."""
    from harvest import write

    kernels: dict[str, dict[str, Any]] = {}
    head: dict[str, Any] = {}
    for file in sorted((out / "raw").glob("*.json")):
        raw = json.loads(file.read_text())
        head = raw["head"]
        for name, kernel in raw["kernels"].items():
            merged = kernels.setdefault(name, {"keys": kernel["keys"], "entries": []})
            present = {json.dumps(key) for key, _ in merged["entries"]}
            merged["entries"] += [e for e in kernel["entries"] if json.dumps(e[0]) not in present]
    if not head:
        print("nothing was tuned", flush=True)
        return
    target = out / f"sm{head['capability']}.json"
    write(target, {"head": head, "kernels": kernels})
    entries = sum(len(kernel["entries"]) for kernel in kernels.values())
    print(f"{len(kernels)} kernels, {entries} entries in {target}", flush=True)


def run_case(name: str, out: Path) -> None:
    """Run every stage of a case (in the child process) and save after each."""
    import cases
    import torch
    import triton

    from archsearch.operators.common import tuning

    polite_autotuning(out / "gpu.lock")
    major, minor = torch.cuda.get_device_capability()
    raw: dict[str, Any] = {
        "head": {
            "capability": f"{major}{minor}",
            "gpu": torch.cuda.get_device_name(),
            "triton": triton.__version__,
            "torch": str(torch.__version__),
        },
        "stages": {},
        "kernels": {},
    }
    for stage, work in cases.CASES[name]():
        begin = time.monotonic()
        try:
            work()
            torch.cuda.synchronize()
            raw["stages"][stage] = f"{time.monotonic() - begin:.0f} s"
        except Exception as error:
            traceback.print_exc()
            raw["stages"][stage] = f"FAILED ({type(error).__name__}: {str(error)[:120]})"
        for package in ("fla", "mamba_ssm"):
            raw["kernels"].update(tuning.collect(package))
        part = out / "raw" / f"{name}.part"
        part.write_text(json.dumps(raw))
        part.rename(part.with_suffix(".json"))


def polite_autotuning(lock: Path) -> None:
    """Compile a kernel's settings in parallel, then time them while no other process does."""
    import torch
    from triton.runtime.autotuner import Autotuner
    from triton.testing import do_bench

    @contextmanager
    def turn() -> Iterator[None]:
        with lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield  # the lock ends with the file

    def bench(kernel_call: Callable[[], None], quantiles: tuple[float, ...]) -> Any:
        kernel_call()  # loads the kernel, or says that it does not fit
        torch.cuda.synchronize()
        with turn():
            return do_bench(kernel_call, warmup=WARMUP_MS, rep=REPEAT_MS, quantiles=quantiles)

    def prune(self: Any, kwargs: dict[str, Any]) -> list[Any]:
        configs: list[Any] = original(self, kwargs)
        arguments = {**self.nargs, **kwargs, "warmup": True}

        def compile_one(config: Any) -> None:
            try:
                self.fn.run(**{**arguments, **config.all_kwargs()})
            except Exception:
                return  # the timing meets it again and deals with it

        with ThreadPoolExecutor(COMPILE_THREADS) as pool:
            list(pool.map(compile_one, configs))
        return configs

    original = Autotuner.prune_configs
    Autotuner.prune_configs = prune
    Autotuner.do_bench = property(lambda self: bench)


if __name__ == "__main__":
    main()
