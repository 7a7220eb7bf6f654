"""The Hugging Face libraries without their log: what goes wrong becomes our own sentence."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("huggingface_hub", "datasets", "transformers")


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors are logged inside: not every retry of every request."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
