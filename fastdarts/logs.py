"""Logging: the "fastdarts" logger, once-per-process messages, and streams that accept any file name."""

import io
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

log = logging.getLogger("fastdarts")


@cache
def say_once(sentence: str) -> None:
    """Log a sentence once per process, for facts that hold for every call."""
    log.info(sentence)


@cache
def warn_once(sentence: str) -> None:
    """Log a warning once per process; it is printed even without a handler."""
    log.warning(sentence)


@contextmanager
def any_text() -> Generator[None]:
    r"""Escape characters that the encoding of stdout or stderr lacks (as \xe9) inside the context, instead of raising.

    Wraps a command, for any locale and PYTHONIOENCODING. Also a decorator.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            if not stream.closed:
                stream.reconfigure(errors=errors)
