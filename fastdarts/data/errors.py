"""Input errors, phrased for users."""

import errno

from fastdarts.protocols import InputStopped

__all__ = ["DataError", "InputStopped", "NoTestImages", "is_shortage", "shortage"]

REMEDIES = {  # resource shortages and how to raise the limits
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "close files: the machine has too many open",
    errno.EAGAIN: "raise `ulimit -u`, the number of processes and threads of a user",
    errno.ENOMEM: "end other programs, or ask the scheduler for more memory",
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space in your quota",
    errno.EROFS: "choose a writable folder",
}


class DataError(ValueError):
    """Invalid input. The message is one line: fault, place, remedy; a command prints it and exits with status 2."""


class NoTestImages(DataError):
    """There are no test images next to the training images; the message names what was looked for and what was found."""


def shortage(error: OSError) -> str:
    """Return the system's message in one line, with the remedy if known."""
    message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    remedy = REMEDIES.get(error.errno or 0)
    return f"{message}: {remedy}" if remedy else message


def is_shortage(error: OSError) -> bool:
    """Return whether the machine ran out of a resource, so that the file is not at fault."""
    return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
