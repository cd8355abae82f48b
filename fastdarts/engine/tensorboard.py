"""TensorBoard event files of a run."""

from collections.abc import Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from fastdarts.engine.files import named_plainly


def no_tensorboard() -> str | None:
    """Return None if event files can be written, else a sentence with the reason."""
    try:
        import_module("torch.utils.tensorboard")
    except ImportError as error:
        return f"it needs the package tensorboard ({error}): pip install 'fastdarts[report]'"
    return None


class TensorBoardLogger:
    """Write event files into `folder`; a continued run's files hide events written after its checkpoint.

    done  finished steps of the run
    """

    def __init__(self, folder: Path, done: int = 0) -> None:
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        with ExitStack() as opened:
            plain = opened.enter_context(named_plainly(folder))
            self.writer = writer(str(plain), purge_step=done + 1 if done else None)
            self._opened = opened.pop_all()

    def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Write the scalars of a step by name, skipping None."""
        for name, value in scalars.items():
            if value is not None:
                self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Make written events readable."""
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
        self._opened.close()
