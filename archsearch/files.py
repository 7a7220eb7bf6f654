"""Files that are written whole or not at all. Imports nothing of this package."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def told(action: str) -> Iterator[None]:
    """Turn an OSError into one sentence that starts with what could not be done."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{action}: {error.strerror or error}") from None


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in its place."""
    with told(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Put `text` into `path`, all of it or, where that fails, none."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
