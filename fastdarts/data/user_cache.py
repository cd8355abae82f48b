"""Cache folder for reproducible data: the generated sample, the store of verified files."""

import os
from pathlib import Path

from fastdarts.data.errors import DataError


def user_cache() -> Path:
    """Return fastdarts in the user's cache ($XDG_CACHE_HOME or ~/.cache) without creating it. DataError without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastdarts"
    except RuntimeError as error:  # user without a home folder
        raise DataError("no home folder for a cache: set XDG_CACHE_HOME to a folder") from error
