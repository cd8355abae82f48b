"""What the library says by itself: the "fastdarts" logger, and each sentence once a process."""

import logging
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
