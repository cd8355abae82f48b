"""WHAT keeps a run going: its folder, checkpoints, progress, memory, CUDA graphs. It imports `search`, never the other way."""

from fastdarts.engine.bad_numbers import BadStep, RecentSteps
from fastdarts.engine.checkpoints import steps_of
from fastdarts.engine.cuda_graph import CapturedBilevel, CaptureError, no_gpu
from fastdarts.engine.determinism import NotDeterministicError, algorithms
from fastdarts.engine.files import write_text
from fastdarts.engine.memory import NoMemory, free_bytes, largest_batch, memory_told, meta_batch, step_bytes
from fastdarts.engine.profile import Window
from fastdarts.engine.progress import Progress, duration, log_to, now_and_then
from fastdarts.engine.ranks import Alone, Ranks
from fastdarts.engine.rng import rng_state, set_rng_state
from fastdarts.engine.run_folder import RunFolder, RunFolderError
from fastdarts.engine.stopping import Stopped, Stopping
from fastdarts.engine.tensorboard import no_tensorboard
from fastdarts.engine.watch import Watch
from fastdarts.engine.writer import Writer

__all__ = [
    "Alone",
    "BadStep",
    "CaptureError",
    "CapturedBilevel",
    "NoMemory",
    "NotDeterministicError",
    "Progress",
    "Ranks",
    "RecentSteps",
    "RunFolder",
    "RunFolderError",
    "Stopped",
    "Stopping",
    "Watch",
    "Window",
    "Writer",
    "algorithms",
    "duration",
    "free_bytes",
    "largest_batch",
    "log_to",
    "memory_told",
    "meta_batch",
    "no_gpu",
    "no_tensorboard",
    "now_and_then",
    "rng_state",
    "set_rng_state",
    "step_bytes",
    "steps_of",
    "write_text",
]
