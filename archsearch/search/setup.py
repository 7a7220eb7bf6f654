"""From what a user asks to a run: data, table, target and config, with sensible defaults."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

import optuna
import pandas as pd
import torch

import archsearch
from archsearch.latency import cases_for_space
from archsearch.latency import default_folder
from archsearch.latency import predict
from archsearch.latency import profile
from archsearch.latency.sweep import OnProgress
from archsearch.operators import Shape
from archsearch.profiles import Table
from archsearch.profiles import load_table
from archsearch.profiles import save_table
from archsearch.proxy import recipes
from archsearch.search.config import RunConfig
from archsearch.search.evaluate import TableEvaluator
from archsearch.search.run import CONFIG
from archsearch.search.run import read_config
from archsearch.space import SearchSpace
from archsearch.space import get_space
from archsearch.space import parse
from archsearch.train import load

if TYPE_CHECKING:
    from archsearch.train import Recipe

# the table as the run used it, inside its folder: what is measured later changes no run
TABLE = "profile"
# what a search on this kind of machine can train within minutes
WIDTHS = {"cpu": (64, 128, 192, 256), "gpu": (1024, 1280, 1536, 1792, 2048, 2304, 2560)}
CODES = ("a", "m2", "d", "gd", "gla", "ret")
MAX_LAYERS = {"cpu": 16, "gpu": 30}
# without a target, candidates may be as slow as a transformer of this many blocks
TARGET_BLOCKS = 5
# known designs that a search begins with, as the published one does: Nemotron-Flash's block,
# Samba's, Gated DeltaNet's hybrid, Mamba-2 with FFNs; as deep as the target allows
SEED_BLOCKS = ("d f m2 f", "m2 f a f", "gd f a f", "m2 f")
# what the baselines are made of
BASELINE_CODES = ("a", "m2")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for; None means the default of this machine or of the saved run."""

    name: str | None = None
    space: str = "nemotron-flash"
    sampler: str = "evolution"
    table: str | None = None
    data: str = "stdlib"
    tokenizer: str = "bytes"
    target_latency_ms: float | None = None
    seed: int = 0
    batch: int = 1
    context: int = 1024
    widths: Sequence[int] | None = None
    codes: Sequence[str] | None = None
    max_layers: int | None = None
    width: str = "largest"
    recipe: str = "cpu"
    steps: int | None = None
    objectives: Sequence[str] = ("loss", "latency_us")
    max_parameters: int | None = None
    max_state_bytes: int | None = None
    population: int = 8
    tournament: int = 4
    device: str = "cpu"


@dataclass(frozen=True)
class Prepared:
    """A run that can start: its config, its evaluator, and the table to keep beside it."""

    config: RunConfig
    evaluator: TableEvaluator
    table: Table

    def attach(self, folder: Path) -> None:
        """Keep the table in a new run's folder."""
        save_table(self.table, folder / TABLE)


def prepare(
    request: Request, *, root: Path = Path("runs"), on_profile: OnProgress | None = None
) -> Prepared:
    """Load the data, find or measure the table, settle the target. Nothing is written but the
    machine's own table.

    A run that exists keeps its table and, unless another is asked for, its target. Raises
    ValueError, OSError or ImportError with one clear sentence.
    """
    name = request.name
    if name is None:
        name = f"{request.space}-{request.sampler}-{request.seed}"
    saved = read_config(root / name) if (root / name / CONFIG).exists() else None
    recipe = _recipe(request)
    data = load(request.data, tokenizer=request.tokenizer)
    data.check(recipe.seq_len)
    shape = Shape("decode", request.batch, request.context)
    space = _space(request, data.vocab_size)
    target = request.target_latency_ms
    fields: dict[str, Any] = {
        "name": name,
        "space": space.name,
        "space_version": space.version,
        "widths": space.widths,
        "codes": space.codes,
        "width": space.width,
        "max_layers": space.max_layers,
        "fields": space.fields,
        "sampler": request.sampler,
        "population": request.population,
        "tournament": request.tournament,
        "objectives": tuple(request.objectives),
        "max_parameters": request.max_parameters,
        "max_state_bytes": request.max_state_bytes,
        "batch": request.batch,
        "context": request.context,
        "seed": request.seed,
        "data": data.name,
        "data_fingerprint": data.fingerprint,
        "tokenizer": request.tokenizer,
        "recipe": recipe,
        "versions": _versions(),
    }
    # a mistake is told before minutes of measuring
    RunConfig.create(**fields, target_latency_ms=target, table="", table_id="")
    table = _table(request, space, shape, root / name, on_profile)
    if target is None:
        target = saved.target_latency_ms if saved else default_target(space, shape, table)
    config = RunConfig.create(
        **fields,
        seeds=saved.seeds if saved else known_designs(space, shape, table, target),
        target_latency_ms=target,
        table=table.name,
        table_id=table_id(table),
    )
    evaluator = TableEvaluator(table, data, recipe, shape, device=request.device)
    return Prepared(config, evaluator, table)


def default_target(space: SearchSpace, shape: Shape, table: Table) -> float:
    """Predicted ms per step of a transformer of five blocks at the space's middle width, a
    latency that is known to be useful on this machine."""
    width = space.widths[len(space.widths) // 2]
    spec = parse(f"(a f)x{TARGET_BLOCKS} @{width}", **space.fields)
    return float(f"{predict(spec, shape, table).latency_us / 1000:.3g}")


def known_designs(
    space: SearchSpace, shape: Shape, table: Table, target_ms: float | None
) -> tuple[str, ...]:
    """The seed blocks that the space can express, each at the largest width at which the target
    leaves room for it, and as deep as it allows there (in notation)."""

    def fits(notation: str) -> bool:
        spec = parse(notation, **space.fields)
        try:
            space.encode(spec)
        except ValueError:
            return False
        return target_ms is None or predict(spec, shape, table).latency_us <= 1000 * target_ms

    blocks = [block for block in SEED_BLOCKS if {*block.split()} <= {*space.codes, "f"}]
    found = []
    for block in blocks:
        deepest = space.max_layers // len(block.split())
        depths = [
            f"({block})x{repeats} @{width}"
            for width in sorted(space.widths, reverse=True)
            for repeats in range(deepest, 0, -1)
        ]
        found += [notation for notation in depths if fits(notation)][:1]
    return tuple(found)


def table_id(table: Table) -> str:
    """12 hex digits of the rows of a table, in whatever order."""
    rows = table.rows.astype(str).sort_values(list(table.rows.columns))
    return hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()[:12]


def _recipe(request: Request) -> Recipe:
    recipe = recipes.get(request.recipe)
    if request.steps is None:
        return recipe
    fields = recipe.model_dump() | {"steps": request.steps}
    fields["warmup_steps"] = min(recipe.warmup_steps, request.steps)
    return type(recipe).create(**fields)


def _space(request: Request, vocab_size: int) -> SearchSpace:
    kind = "gpu" if request.device.startswith("cuda") else "cpu"
    return get_space(
        request.space,
        widths=tuple(WIDTHS[kind] if request.widths is None else request.widths),
        codes=tuple(CODES if request.codes is None else request.codes),
        max_layers=MAX_LAYERS[kind] if request.max_layers is None else request.max_layers,
        width=request.width,  # type: ignore[arg-type]  # checked there, with a sentence
        fields={"vocab_size": vocab_size, "max_position": request.context},
    )


def _table(
    request: Request,
    space: SearchSpace,
    shape: Shape,
    run: Path,
    on_profile: OnProgress | None,
) -> Table:
    """The run's own table, the one asked for, or this machine's, measured where it is short."""
    own = run / TABLE
    if own.exists():
        table = load_table(own, allow_stale=True)
        if table.stale:
            raise ValueError(
                f"the run {run} was made with other sources of {', '.join(sorted(table.stale))}:"
                " give the run another name"
            )
        name = table.meta.get("name", table.name)
        if request.table is not None and Path(request.table).name != name:
            raise ValueError(
                f"the run {run} was made with the table {name!r}; got {request.table!r}"
            )
        return replace(table, name=name)
    needed = get_space(
        "free",
        widths=space.widths,
        codes=tuple(dict.fromkeys([*space.codes, *BASELINE_CODES])),
        fields=space.fields,
    )
    cases = cases_for_space(needed, [shape])
    if request.table is not None:
        table = load_table(request.table)
    else:
        folder = default_folder(request.device)
        table = profile(cases, folder=folder, device=request.device, on_progress=on_profile)
    keys = ["operator", "config", "hidden_size", "phase", "batch", "dtype"]
    wanted = {tuple(getattr(case, key) for key in keys) for case in cases}
    rows: pd.DataFrame = table.rows
    kept = [key in wanted for key in rows[keys].itertuples(index=False, name=None)]
    meta: dict[str, Any] = {**table.meta, "name": table.name}
    return replace(table, rows=rows[kept].reset_index(drop=True), meta=meta)


def _versions() -> dict[str, str]:
    return {
        "archsearch": archsearch.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "optuna": optuna.__version__,
    }
