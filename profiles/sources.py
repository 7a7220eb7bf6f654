"""What tells a stale row from a fresh one: the sources behind each operator's speed, by hash,
and the versions of the packages whose kernels ran."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

PACKAGE = Path(__file__).parent.parent
# what a config or a cost says does not change how fast the module runs, and which backend ran
# is a column of its own
IRRELEVANT = ("base", "backends", "config", "cost")
# the backend of fused steps, which compiles their sources, and how their products are cut
COMPILER = "triton"
TUNED_PRODUCTS = "operators/tuned/products_*.json"
# the parts of a model that are no operators: a file, and the functions of it that their rows time
PARTS = {
    "embedding": ("model.lm", ("step", "_prefill_fresh", "_led")),
    "head": ("model.head", ("forward", "inverse_norms")),
    "head.step": ("model.fused_head", ()),
}


def source_hashes(operators: Iterable[str]) -> dict[str, str]:
    """For each operator (or "embedding", "head") a hash of its module and of what that imports
    from this package, for "ffn.step" (see `source_name`) of its fused step; "" for one that is
    not there."""
    return {name: _source_hash(name) for name in operators}


def source_name(operator: str, backend: str = "") -> str:
    """What `source_hashes` calls the sources behind an operator's rows by one backend: those of
    the fused decode step are more than the module's."""
    return f"{operator}.step" if COMPILER in backend.split("+") else operator


def stale_reasons(rows: pd.DataFrame, meta: Mapping[str, Any]) -> list[str]:
    """For every row what it was measured with that is other now, as "flash-attn 2.7 (2.8 is
    installed)"; "" if nothing is. A package that is not installed here says nothing."""
    measured = meta["sources"]
    packages = {entry["id"]: entry.get("packages", {}) for entry in meta.get("sessions", [])}
    keys = list(rows[["operator", "backend", "session"]].itertuples(index=False, name=None))
    current = source_hashes({source_name(operator, backend) for operator, backend, _ in keys})
    changed = {name: measured.get(name) != current[name] for name in current}
    return [
        f"other sources of {operator}"
        if changed[source_name(operator, backend)]
        else package_change(backend, packages.get(session, {}))
        for operator, backend, session in keys
    ]


def package_change(backend: str, packages: Mapping[str, Mapping[str, str]]) -> str:
    """What has changed about the packages behind a backend such as "fla+causal_conv1d". The
    compiler of our own kernels is none: like torch, it keeps rows from mixing, not from use."""
    for name in backend.split("+"):
        if name == COMPILER:
            continue
        for package, version in packages.get(name, {}).items():
            installed = installed_version(package)
            if installed not in ("", version):
                return f"{package} {version} ({installed} is installed)"
    return ""


@lru_cache(maxsize=64)
def installed_version(package: str) -> str:
    """Version of an installed distribution; "" if it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@lru_cache(maxsize=256)
def _source_hash(name: str) -> str:
    operator = name.removesuffix(".step")
    kind = "module" if operator == name else "step"
    start, functions = PARTS.get(name, (f"operators.{operator}.{kind}", ()))
    if not operator.isidentifier() or not _file(start).exists():
        return ""
    digest = hashlib.sha256()
    # the model's own loop reaches everything: what is timed of it is enough
    for module in [start] if functions else sorted(_closure(start)):
        digest.update(module.encode())
        digest.update(_code(_file(module).read_text(encoding="utf-8"), functions).encode())
    if kind == "step":
        for path in sorted(PACKAGE.glob(TUNED_PRODUCTS)):
            digest.update(json.dumps(json.loads(path.read_bytes())["blocks"]).encode())
    return digest.hexdigest()[:16]


def _closure(start: str) -> set[str]:
    found, waiting = set[str](), [start]
    while waiting:
        module = waiting.pop()
        if module in found or module.split(".")[-1] in IRRELEVANT:
            continue
        found.add(module)
        imported = _imports(_file(module).read_text(encoding="utf-8"))
        waiting += [name for name in imported if _file(name).exists()]
    return found


# many operators share most of their files
@lru_cache(maxsize=256)
def _imports(text: str) -> tuple[str, ...]:
    """What a source imports from archsearch.operators, as paths below the package: modules, and
    names that might be."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        if not node.module.startswith("archsearch.operators"):
            continue
        module = node.module.removeprefix("archsearch.")
        found += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return tuple(found)


@lru_cache(maxsize=256)
def _code(text: str, functions: tuple[str, ...] = ()) -> str:
    """A source, or these functions of it, without what cannot change its speed: docstrings,
    comment lines, empty lines."""
    skipped: set[int] = set()
    wanted: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            skipped.update(_lines(first))
        if isinstance(node, ast.FunctionDef) and node.name in functions:
            wanted.update(_lines(node))
    kept = [
        line.rstrip()
        for number, line in enumerate(text.splitlines(), 1)
        if number not in skipped and (number in wanted or not functions)
    ]
    return "\n".join(line for line in kept if line and not line.lstrip().startswith("#"))


def _lines(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _file(module: str) -> Path:
    return PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
