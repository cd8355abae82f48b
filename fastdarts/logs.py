"""What the library says by itself: the "fastdarts" logger, each sentence once a process, and streams that take any name."""

import io
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

log = logging.getLogger("fastdarts")


@cache
def say_once(sentence: str) -> None:
    """Log a sentence, unless it was said before: what holds for every call alike need not be said at each."""
    log.info(sentence)


@cache
def warn_once(sentence: str) -> None:
    """As say_once, as a warning, which is printed also where no handler was set up."""
    log.warning(sentence)


@contextmanager
def any_text() -> Generator[None]:
    """Inside, stdout and stderr print any text: what their encoding lacks is escaped, as \\xe9 is, and raises nothing.

    Around a command, whatever the locale and PYTHONIOENCODING are. Also a decorator.
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
