"""WHAT keeps a run going: its folder, checkpoints, progress, memory."""

from fastdarts.engine.files import write_text
from fastdarts.engine.memory import meta_batch, step_bytes
from fastdarts.engine.progress import Progress, duration, log_to
from fastdarts.engine.run_folder import RunFolder, RunFolderError

__all__ = [
    "Progress",
    "RunFolder",
    "RunFolderError",
    "duration",
    "log_to",
    "meta_batch",
    "step_bytes",
    "write_text",
]
