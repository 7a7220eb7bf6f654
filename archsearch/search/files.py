"""Files of a run: written whole or not at all, and a folder is tried before it is used."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# enough to notice a disk without room for a study's next trials
_PROBE_BYTES = 256 * 1024


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


def check_writable(folder: Path) -> None:
    """Raise OSError with one sentence where `folder` is read-only or its disk is full."""
    with (
        told(f"cannot write to the run folder {folder}"),
        tempfile.NamedTemporaryFile(dir=folder) as probe,
    ):
        probe.write(bytes(_PROBE_BYTES))
        probe.flush()
        os.fsync(probe.fileno())


@contextmanager
def exclusive(file: Path, what: str) -> Iterator[None]:
    """Hold `file` for this process; raises ValueError where another one holds it."""
    with file.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{what} is in use by another process: wait for it, or stop it"
            ) from None
        yield
