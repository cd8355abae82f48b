"""What is wrong with the input, for the person who gave it."""

from fastdarts.protocols import InputStopped

__all__ = ["DataError", "InputStopped"]


class DataError(ValueError):
    """Wrong input. The message is one line: what, where, and what to do; a command ends with it and exit status 2."""
