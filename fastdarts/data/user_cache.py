"""The folder that keeps what can be made again: the generated sample, which files were found good."""

import os
from pathlib import Path

from fastdarts.data.errors import DataError


def user_cache() -> Path:
    """fastdarts in the user's cache folder ($XDG_CACHE_HOME or ~/.cache); not made. Raises DataError without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastdarts"
    except RuntimeError as error:  # a user without a home
        raise DataError("no home folder to keep a cache in: set XDG_CACHE_HOME to a folder") from error
