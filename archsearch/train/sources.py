"""Where text comes from: a corpus is a stream of documents, read lazily and in a fixed order."""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from archsearch.train import hub

# fmt: off
TEXT_SUFFIXES = frozenset((
    ".txt", ".text", ".md", ".rst", ".tex", ".org", ".adoc", ".html", ".xml", ".csv", ".tsv",
    ".log", ".toml", ".yaml", ".yml", ".ini", ".cfg", ".py", ".pyi", ".c", ".h", ".cc",
    ".cpp", ".hpp", ".cu", ".cuh", ".java", ".js", ".ts", ".jsx", ".tsx", ".go", ".rs", ".rb",
    ".php", ".cs", ".swift", ".kt", ".scala", ".jl", ".r", ".lua", ".pl", ".sh", ".sql",
    ".hs", ".ml", ".lean", ".css",
))
# fmt: on
RECORD_SUFFIXES = frozenset({".jsonl", ".ndjson", ".parquet"})
COLUMNS = ("text", "content")

# tests are not text that people would read, encodings holds generated tables
_STDLIB_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"}
)


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of text; `key` names it stably within its corpus and decides its split."""

    key: str
    text: str


def documents(
    source: str | Path, *, column: str | None = None, max_bytes: int | None = None
) -> Iterator[Document]:
    """Stream the documents of "stdlib", "hf:<dataset>[:config][:split]", a file or a folder.

    `column` names the text field of JSONL, Parquet and hub rows (default: "text", else
    "content"); no text file is read beyond `max_bytes`. Raises ValueError, OSError or
    ImportError with one clear sentence, some of them only when the stream gets there.
    """
    name = str(source)
    if name == "stdlib":
        return _stdlib(max_bytes)
    if name.startswith("hf:"):
        return _hub(name, column)
    path = Path(source)
    # an empty name would be the current folder
    if name and path.is_dir():
        return _folder(path, column, max_bytes)
    if path.is_file():
        return _file(path, path.name, column, max_bytes)
    near = get_close_matches(name, ["stdlib"], n=1)
    hint = "; did you mean 'stdlib'?" if near else ""
    raise ValueError(
        f"corpus {name!r} must be 'stdlib', 'hf:<dataset>[:config][:split]' or an existing"
        f" file or folder{hint}"
    )


def _stdlib(max_bytes: int | None) -> Iterator[Document]:
    """The running Python's standard library: code with its docstrings, as the files have it."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in _walk(root, frozenset({".py"}), _STDLIB_SKIPPED):
        # generated when this Python was built: machine paths and compiler flags
        if not path.name.startswith("_sysconfigdata"):
            yield from _file(path, path.relative_to(root).as_posix(), None, max_bytes)


def _folder(root: Path, column: str | None, max_bytes: int | None) -> Iterator[Document]:
    """Every text file below `root`; hidden files and folders are left out."""
    paths = _walk(root, TEXT_SUFFIXES | RECORD_SUFFIXES)
    if not paths:
        raise ValueError(f"folder {str(root)!r} has no text, .jsonl or .parquet file")
    for path in paths:
        yield from _file(path, path.relative_to(root).as_posix(), column, max_bytes)


def _walk(
    root: Path, suffixes: frozenset[str], skipped: frozenset[str] = frozenset()
) -> list[Path]:
    """Files below `root`, sorted by relative path."""
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in skipped and name[0] != "."]
        found += [
            Path(folder, name)
            for name in files
            if name[0] != "." and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _file(path: Path, key: str, column: str | None, max_bytes: int | None) -> Iterator[Document]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        rows = _parquet_rows(path, column)
    elif suffix in RECORD_SUFFIXES:
        rows = _json_rows(path)
    elif suffix in TEXT_SUFFIXES:
        yield Document(key, _read(path, max_bytes))
        return
    else:
        raise ValueError(
            f"cannot read {str(path)!r} as text: suffix {suffix!r} is not known; known are"
            f" {', '.join(sorted(RECORD_SUFFIXES | TEXT_SUFFIXES))}"
        )
    yield from _records(rows, key, column, str(path))


def _read(path: Path, max_bytes: int | None) -> str:
    """A text file; bytes that are not UTF-8 become U+FFFD, a binary file is an error."""
    with path.open("rb") as file:
        # one byte more, so that the reader can tell that the file goes on
        data = file.read(-1 if max_bytes is None else max_bytes + 1)
    if b"\0" in data:
        raise ValueError(f"cannot read {str(path)!r} as text: it has binary content")
    return data.decode("utf-8", "replace")


def _json_rows(path: Path) -> Iterator[Any]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{str(path)!r} line {number} is not JSON: {error}") from None


def _parquet_rows(path: Path, column: str | None) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            name = _column(file.schema_arrow.names, column, str(path))
            for batch in file.iter_batches(batch_size=256, columns=[name]):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{str(path)!r} is not a Parquet file: {error}") from None


def _hub(name: str, column: str | None) -> Iterator[Document]:
    """A dataset of the Hugging Face hub (or one that `datasets` finds on disk), streamed."""
    dataset, config, split, *rest = [*name.removeprefix("hf:").split(":"), "", ""]
    if not dataset or any(rest):
        raise ValueError(
            f"a hub corpus must look like 'hf:<dataset>[:config][:split]'; got {name!r}"
        )
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f"corpus {name!r} needs the datasets package: pip install 'archsearch[data]'"
        ) from None
    try:
        with hub.quiet():
            rows = datasets.load_dataset(
                dataset, config or None, split=split or "train", streaming=True
            )
    except Exception as error:  # network, unknown name, config or split: many kinds
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot load corpus {name!r}: {first}") from None
    return _records(rows, dataset, column, name)


def _records(rows: Iterable[Any], key: str, column: str | None, origin: str) -> Iterator[Document]:
    """One document per row: `key#index`."""
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{origin!r} must hold one object per row; row {index} is not one")
        text = row[_column(list(row), column, origin)]
        if not isinstance(text, str):
            raise ValueError(f"{origin!r} must hold strings; row {index} has {text!r:.40}")
        yield Document(f"{key}#{index}", text)


def _column(names: Sequence[str], wanted: str | None, origin: str) -> str:
    """The text column: the one asked for, or the first usual one."""
    for name in COLUMNS if wanted is None else (wanted,):
        if name in names:
            return name
    expected = " or ".join(repr(name) for name in (COLUMNS if wanted is None else (wanted,)))
    raise ValueError(f"{origin!r} has no column {expected}; it has {', '.join(names) or 'none'}")
