"""A run folder: the config, the study and what came out of it."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from archsearch.files import told
from archsearch.files import write_atomic
from archsearch.files import write_text
from archsearch.names import suggestion
from archsearch.search.config import RunConfig
from archsearch.search.config import difference
from archsearch.search.config import from_toml
from archsearch.search.config import to_toml
from archsearch.search.files import check_writable
from archsearch.search.proposal import quiet
from archsearch.search.records import FRONT_COLUMNS
from archsearch.search.records import recorded_rows
from archsearch.search.records import table
from archsearch.space import ArchSpec

CONFIG, STUDY, FRONT, LOG = "config.toml", "study.db", "front.parquet", "log.jsonl"
BEST = Path("best") / "arch.json"
_CONFIG_ATTRIBUTE = "config"


@dataclass(frozen=True)
class Run:
    """One search: where it lies, what decides it, and its study."""

    path: Path
    config: RunConfig
    study: optuna.Study

    @property
    def candidates(self) -> pd.DataFrame:
        """One row per recorded candidate, from the oldest to the newest."""
        return table(recorded_rows(self.study))

    @property
    def front(self) -> pd.DataFrame:
        """The front and the baselines as last written; empty before the first time."""
        if not (self.path / FRONT).is_file():
            return table([], FRONT_COLUMNS)
        with told(f"cannot read {self.path / FRONT}"):
            frame = pd.read_parquet(self.path / FRONT)
        if missing := [name for name in FRONT_COLUMNS if name not in frame]:
            raise ValueError(f"{self.path / FRONT} is no front: it has no column {missing[0]!r}")
        # arrow's nested arrays back into lists
        curves = [[list(point) for point in curve] for curve in frame["curve"]]
        return frame.assign(curve=pd.Series(curves, index=frame.index, dtype=object))

    @property
    def best(self) -> ArchSpec | None:
        """The winner, or None before there is one."""
        file = self.path / BEST
        return ArchSpec.model_validate_json(file.read_text()) if file.is_file() else None

    def log(self, event: str, **fields: Any) -> None:
        """Append one line to the log."""
        line = json.dumps({"time": _now(), "event": event, **fields})
        with told(f"cannot write {self.path / LOG}"), (self.path / LOG).open("a") as file:
            file.write(line + "\n")

    def write_front(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the front, and the best of it for other tools."""
        frame = table(rows, FRONT_COLUMNS)
        write_atomic(self.path / FRONT, lambda file: frame.to_parquet(file, index=False))
        best = [str(row["spec"]) for row in rows if row["role"] == "best"]
        if best:
            write_text(self.path / BEST, best[0] + "\n")


def open_run(
    config: RunConfig,
    *,
    root: Path,
    storage: str | None = None,
    attach: Callable[[Path], object] | None = None,
) -> Run:
    """Create the run, or go on with it; raises ValueError where it is another run's folder.

    `storage` is the URL of a shared Optuna storage, used instead of the folder's own file;
    `attach` writes what else belongs into a new run's folder.
    """
    path = root / config.name
    if not path.exists():
        return _create(path, config, storage, attach)
    saved = config_to_go_on(path, config)
    check_writable(path)
    return Run(path, saved, _load_study(path, saved, storage))


def config_to_go_on(path: Path, config: RunConfig) -> RunConfig:
    """The saved config of the run in `path`; raises ValueError where it says another run than
    `config`."""
    saved = read_config(path)
    if (clause := difference(saved, config)) is not None:
        raise ValueError(
            f"the run {path} cannot go on with another configuration: {clause}; "
            f"give the run another name, or the same settings"
        )
    return saved


def load_run(path: str | Path, *, storage: str | None = None) -> Run:
    """Read a run from its folder (or its name below runs/); raises ValueError if it is none."""
    folder = Path(path)
    if not folder.exists() and folder.parent == Path():
        folder = Path("runs") / path
    config = read_config(folder)
    return Run(folder, config, _load_study(folder, config, storage))


def _create(
    path: Path,
    config: RunConfig,
    storage: str | None,
    attach: Callable[[Path], object] | None,
) -> Run:
    with told(f"cannot create the run folder {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        # renamed when complete: a run folder that exists is a whole one
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        check_writable(partial)
        partial.chmod(0o755)
        with told(f"cannot create the run folder {path}"):
            (partial / CONFIG).write_text(to_toml(config))
            if attach is not None:
                attach(partial)
        _create_study(partial, config, storage)
        with told(f"cannot create the run folder {path}"):
            partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Run(path, config, _load_study(path, config, storage))


def _create_study(path: Path, config: RunConfig, storage: str | None) -> None:
    with _storage(path, storage) as backend:
        try:
            study = optuna.create_study(
                study_name=config.name,
                storage=backend,
                directions=["minimize"] * len(config.objectives),
                sampler=optuna.samplers.RandomSampler(),
            )
        except optuna.exceptions.DuplicatedStudyError:
            # another machine of the same run was first; `_load_study` compares the configs
            return
        with warnings.catch_warnings():
            # names for the dashboard; nothing depends on them
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(config.objectives))
        study.set_user_attr(_CONFIG_ATTRIBUTE, config.model_dump(mode="json"))


def _load_study(path: Path, config: RunConfig, storage: str | None) -> optuna.Study:
    if storage is None and not (path / STUDY).is_file():
        raise ValueError(
            f"the run {path} has no {STUDY}: give the storage URL that it was made with"
        )
    with _storage(path, storage) as backend:
        try:
            study = optuna.load_study(
                study_name=config.name,
                storage=backend,
                sampler=optuna.samplers.RandomSampler(),
            )
        except KeyError:
            raise ValueError(f"the storage of {path} has no study {config.name!r}") from None
        kept = study.user_attrs.get(_CONFIG_ATTRIBUTE)
    try:
        made_with = RunConfig.create(**(kept or {}))
    except ValueError as error:
        raise ValueError(
            f"the study of {path} was not made by this version of archsearch: {error}"
        ) from None
    if (clause := difference(made_with, config)) is not None:
        raise ValueError(f"the study of {path} does not belong to its {CONFIG}: {clause}")
    return study


@contextmanager
def _storage(path: Path, url: str | None) -> Iterator[RDBStorage]:
    file = path / STUDY
    try:
        with quiet():
            yield RDBStorage(url or f"sqlite:///{file.resolve()}")
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        # RuntimeError: Optuna's tables are of another version
        causes = (getattr(raised, "orig", None) for raised in (error, error.__cause__))
        cause = next(filter(None, causes), error)
        where = "the storage" if url else str(file)
        raise ValueError(f"cannot open the study in {where}: {cause}") from None


def read_config(path: Path) -> RunConfig:
    """The config of a run's folder; raises ValueError where there is none or it is broken."""
    file = path / CONFIG
    if not file.is_file():
        raise ValueError(f"there is no run at {path}: it has no {CONFIG}{_runs_beside(path)}")
    try:
        with told(f"cannot read {file}"):
            text = file.read_text(encoding="utf-8")
        return from_toml(text)
    except ValueError as error:
        raise ValueError(f"{file} is broken: {error}") from None


def _runs_beside(path: Path) -> str:
    runs = sorted(file.parent.name for file in path.parent.glob(f"*/{CONFIG}"))
    if not runs:
        return ""
    hint = suggestion(path.name, runs)
    return f"; {hint}runs there: {', '.join(runs[:10])}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
