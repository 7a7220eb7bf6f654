"""Latency tables on disk: a folder with one Parquet file and its provenance beside it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from archsearch.files import write_atomic
from archsearch.files import write_text
from archsearch.names import suggestion
from archsearch.profiles.schema import KEY
from archsearch.profiles.schema import checked
from archsearch.profiles.schema import to_arrow
from archsearch.profiles.sources import stale_reasons

ROWS_FILE, META_FILE = "table.parquet", "meta.json"
FORMAT = 2
SHIPPED = Path(__file__).parent / "data"


@dataclass(frozen=True, eq=False)
class Table:
    """Measured `rows` (see `schema`) with their provenance `meta`.

    `stale` says of each operator why rows of it do not hold any more: its sources, or a kernel
    package, are others than those that were measured. These rows are left out, or, if the
    table was loaded with `allow_stale`, kept: `holds_stale`.
    """

    name: str
    rows: pd.DataFrame
    meta: Mapping[str, Any]
    path: Path | None = None
    stale: Mapping[str, str] = field(default_factory=dict)
    holds_stale: bool = False

    @property
    def label(self) -> str:
        """The name, with a warning for readers if rows are stale."""
        held = sorted(self.stale) if self.holds_stale else []
        return f"{self.name} (stale: {', '.join(held)})" if held else self.name


@dataclass(frozen=True, slots=True)
class TableInfo:
    """Where a table lies: "cache" (measured here) or "shipped"."""

    name: str
    origin: str
    path: Path


def cache_root() -> Path:
    """The folder of this user's own tables: $ARCHSEARCH_CACHE, or the platform's cache."""
    if chosen := os.environ.get("ARCHSEARCH_CACHE"):
        return Path(chosen).expanduser() / "profiles"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "archsearch" / "profiles"


def list_tables() -> list[TableInfo]:
    """The user's own tables, then the shipped ones, each under its folder's name."""
    return [*_tables_in(cache_root(), "cache"), *_tables_in(SHIPPED, "shipped")]


def load_table(name_or_path: str | Path, *, allow_stale: bool = False) -> Table:
    """Load a table by name (one measured here wins over a shipped one) or by its folder.

    Rows whose operators' sources have changed since, or that were measured with another version
    of a kernel package than the one installed here, are left out unless `allow_stale`.
    Raises ValueError for an unknown, corrupt, foreign or entirely stale table.
    """
    table, is_stale = read_table(find(name_or_path))
    if allow_stale or not is_stale.any():
        return table
    rows = table.rows[~is_stale].reset_index(drop=True)
    if rows.empty:
        reason = next(iter(table.stale.values()))
        raise ValueError(
            f"the table {table.name!r} was measured with {reason}; measure again with"
            " 'archsearch profile', or allow stale rows"
        )
    return replace(table, rows=rows, holds_stale=False)


def read_table(folder: Path) -> tuple[Table, pd.Series[bool]]:
    """The table in `folder` with all its rows, and which of them are stale."""
    meta = read_meta(folder)
    rows = _read_rows(folder / ROWS_FILE)
    reasons = stale_reasons(rows, meta)
    stale = {name: why for name, why in zip(rows["operator"], reasons, strict=True) if why}
    is_stale = pd.Series([bool(why) for why in reasons], index=rows.index, dtype=bool)
    return Table(folder.name, rows, meta, folder, stale, bool(stale)), is_stale


def find(name_or_path: str | Path) -> Path:
    """The folder of a table, whose name may be cut short behind a part ("nvidia-h100") where no
    other begins like it; raises ValueError that names the tables that exist."""
    text = str(name_or_path)
    path = Path(text)
    if path.name in (ROWS_FILE, META_FILE):
        path = path.parent
    if (path / META_FILE).exists() or (path / ROWS_FILE).exists():
        return path
    # one measured here wins over a shipped one
    found = {info.name: info.path for info in reversed(list_tables())}
    known = sorted(found)
    begin = [text] if text in found else [name for name in known if name.startswith(f"{text}-")]
    if len(begin) == 1:
        return found[begin[0]]
    if begin:
        raise ValueError(f"several latency tables begin with {text!r}: {', '.join(begin)}")
    hint = suggestion(text, known)
    listed = f"there are {', '.join(known)}" if known else "there is none yet"
    raise ValueError(
        f"no latency table {text!r}; {hint}{listed}; 'archsearch profile' measures one"
    )


def save_table(table: Table, folder: Path) -> Table:
    """Write the table into `folder`, each file at once or not at all; returns it with its path.

    Raises ValueError for rows that break the schema and OSError if the folder cannot be
    written.
    """
    rows = checked(table.rows, f"table {table.name!r}")
    meta = {"format": FORMAT, **table.meta, "rows": len(rows)}
    _check_meta(meta, f"table {table.name!r}")
    try:
        content = to_arrow(rows, table.name)
        # rows first: interrupted in between, new rows look stale, never stale rows new
        write_atomic(
            folder / ROWS_FILE, lambda path: pq.write_table(content, path, compression="zstd")
        )
        write_text(folder / META_FILE, json.dumps(meta, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise OSError(f"cannot write a latency table to {folder}: {error}") from error
    return replace(table, name=folder.name, rows=rows, meta=meta, path=folder)


def merge(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """All rows of both; where a key is in both, the new row. A row that failed gives way to a
    time of that case, whatever its backend, and to a newer failure."""
    if old.empty or new.empty:
        return new if old.empty else old
    case = [name for name in KEY if name != "backend"]
    both = pd.concat([old, new], ignore_index=True)
    failed = both["error"] != ""
    cases = pd.MultiIndex.from_frame(both[case])
    outdated = cases.isin(cases[~failed]) | both.duplicated(case, keep="last")
    both = both[~(failed & outdated)]
    return both.drop_duplicates(list(KEY), keep="last").reset_index(drop=True)


def read_meta(folder: Path) -> dict[str, Any]:
    """The provenance of the table in `folder`; raises ValueError if it is not one."""
    path = folder / META_FILE
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} is not a latency table: it has no {META_FILE}") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path} is damaged: it is not JSON") from None
    _check_meta(meta, str(path))
    return dict(meta)


def is_current(folder: Path) -> bool:
    """Whether the provenance in `folder`, if it can be read at all, has this version's format."""
    try:
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return True
    return not isinstance(meta, dict) or meta.get("format") == FORMAT


def _check_meta(meta: Any, what: str) -> None:
    if not isinstance(meta, dict) or not isinstance(meta.get("sources"), dict):
        raise ValueError(f"{what} is not the provenance of a latency table: no 'sources'")
    if meta.get("format") != FORMAT:
        raise ValueError(
            f"{what} has format {meta.get('format')!r} and this version reads {FORMAT}:"
            " measure again with 'archsearch profile'"
        )
    sessions = meta.get("sessions", [])
    if not isinstance(sessions, list) or not all(_is_session(entry) for entry in sessions):
        raise ValueError(f"{what}: 'sessions' must be a list of entries with an 'id'")


def _is_session(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), int)


def _read_rows(path: Path) -> pd.DataFrame:
    try:
        # the file alone: a reader given a folder would look for partitions
        frame = pq.ParquetFile(path).read().to_pandas()
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not a latency table: it has no {path.name}") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged or no Parquet file ({_first_line(error)})") from None
    return checked(frame, str(path))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _tables_in(root: Path, origin: str) -> Iterator[TableInfo]:
    if root.is_dir():
        for meta in sorted(root.rglob(META_FILE)):
            yield TableInfo(meta.parent.name, origin, meta.parent)
