"""WHAT keeps a run going: its folder, checkpoints, progress, memory, provenance."""

from fastdarts.engine.files import write_text
from fastdarts.engine.memory import meta_batch, step_bytes
from fastdarts.engine.progress import Progress, duration, log_to
from fastdarts.engine.provenance import commit, machine, versions
from fastdarts.engine.run_folder import RunFolder, RunFolderError

__all__ = [
    "Progress",
    "RunFolder",
    "RunFolderError",
    "commit",
    "duration",
    "log_to",
    "machine",
    "meta_batch",
    "step_bytes",
    "versions",
    "write_text",
]
