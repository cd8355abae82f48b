"""What is wrong with the input, for the person who gave it."""

import errno

from fastdarts.protocols import InputStopped

__all__ = ["DataError", "InputStopped", "is_shortage", "shortage"]

REMEDIES = {  # what the system has too little of, and what gives it more
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "the machine has too many files open",
    errno.EAGAIN: "raise `ulimit -u`, the number of processes and threads of a user",
    errno.ENOMEM: "end other programs, or ask the scheduler for more memory",
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room in your quota",
    errno.EROFS: "name a folder that can be written to",
}


class DataError(ValueError):
    """Wrong input. The message is one line: what, where, and what to do; a command ends with it and exit status 2."""


def shortage(error: OSError) -> str:
    """What the system said, in a line, and what to do where that is known."""
    said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    remedy = REMEDIES.get(error.errno or 0)
    return f"{said}: {remedy}" if remedy else said


def is_shortage(error: OSError) -> bool:
    """Whether the machine ran out of something, so that the file that was read is not to blame."""
    return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
