"""The folder of a run is tried before it is used, and used by one process at a time."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from archsearch.files import told

# enough to notice a disk without room for a study's next trials
_PROBE_BYTES = 256 * 1024


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
