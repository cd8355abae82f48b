"""What a run measures as TensorBoard event files."""

from collections.abc import Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from fastdarts.engine.files import named_plainly


def no_tensorboard() -> str | None:
    """None where event files can be written, else the sentence why not."""
    try:
        import_module("torch.utils.tensorboard")
    except ImportError as error:
        return f"it needs the package tensorboard ({error}): pip install 'fastdarts[report]'"
    return None


class TensorBoardLogger:
    """Writes event files into `folder`; those of a continued run hide what was written after its checkpoint.

    done  steps that the run has behind it
    """

    def __init__(self, folder: Path, done: int = 0) -> None:
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        with ExitStack() as opened:
            plain = opened.enter_context(named_plainly(folder))
            self.writer = writer(str(plain), purge_step=done + 1 if done else None)
            self._opened = opened.pop_all()

    def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """The scalars by name, as of that step; those that are None are left out."""
        for name, value in scalars.items():
            if value is not None:
                self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """What was written can be read."""
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
        self._opened.close()
