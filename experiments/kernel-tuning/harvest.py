"""Add to a file of kept settings what Triton's autotuners left on disk.

    python experiments/kernel-tuning/harvest.py CACHE operators/tuned/sm90.json --gpu 'NVIDIA H100'

CACHE is a Triton cache ($TRITON_CACHE_DIR) of that GPU, filled by a sweep, say: it has one
`*.autotune.json` for every key that no kept setting answered. Kernels that the file does not know,
and keys that it has, are left alone. Needs no GPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from archsearch.operators.common.tuning import SETTINGS

SUFFIX = ".autotune.json"

Kernels = dict[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("kept", type=Path)
    parser.add_argument("--gpu", required=True)
    given = parser.parse_args()
    content = json.loads(given.kept.read_text(encoding="utf-8"))
    added = 0
    for file in sorted(given.cache.rglob(f"*{SUFFIX}")):
        found = json.loads(file.read_text(encoding="utf-8"))
        kernel = kernel_of(content["kernels"], file.name.removesuffix(SUFFIX), found["key"])
        if kernel is None or any(key == found["key"] for key, _ in kernel["entries"]):
            continue
        kernel["entries"].append([found["key"], best(found["configs_timings"])])
        added += 1
    content["head"]["also"] = sorted({*content["head"].get("also", []), given.gpu})
    write(given.kept, content)
    print(f"{added} entries added to {given.kept}")


def kernel_of(kernels: Kernels, name: str, key: list[Any]) -> dict[str, Any] | None:
    """The kept kernel of that name whose keys are as many as this one's, dtypes left aside."""
    values = [value for value in key if not str(value).startswith("torch.")]
    fitting = [
        kernel
        for known, kernel in kernels.items()
        if known.split(":")[1] == name and len(kernel["keys"]) == len(values)
    ]
    return fitting[0] if len(fitting) == 1 else None


def best(timings: list[Any]) -> dict[str, Any]:
    """The quickest setting by its median, in the form that is kept."""
    config, _ = min(timings, key=lambda pair: pair[1][0] if isinstance(pair[1], list) else pair[1])
    return {"kwargs": config["kwargs"], **{n: config[n] for n in SETTINGS if n in config}}


def write(path: Path, content: dict[str, Any]) -> None:
    lines = ",\n".join(
        f" {json.dumps(name)}: {json.dumps(kernel)}"
        for name, kernel in sorted(content["kernels"].items())
    )
    path.write_text(f'{{"head": {json.dumps(content["head"])},\n"kernels": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main()
