"""Where candidates are evaluated. In this process, one after the other; others plug in here."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Protocol
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Executor(Protocol):
    """Like `map`: results come in the order of their jobs."""

    def __call__(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Apply `function` to every job."""
        ...


def in_process(function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
    """Evaluate here, one job after the other."""
    return map(function, jobs)
