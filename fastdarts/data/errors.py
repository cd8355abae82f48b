"""What is wrong with the input, for the person who gave it."""


class DataError(ValueError):
    """Wrong input. The message is one line: what, where, and what to do; a command ends with it and exit status 2."""


class InputStopped(RuntimeError):
    """No more batches come although nothing is known to be wrong with the files: a process that was killed, a stage that
    is stuck. The message is one line that names it; a command ends with it and exit status 1, and may be started again.
    """
