"""WHAT keeps a run going: its folder, checkpoints, progress, memory, CUDA graphs. It imports `search`, never the other way."""

from fastdarts.engine.bad_numbers import BadStep, RecentSteps
from fastdarts.engine.checkpoints import steps_of
from fastdarts.engine.cuda_graph import CapturedBilevel, CaptureError, no_gpu
from fastdarts.engine.determinism import NotDeterministicError, algorithms
from fastdarts.engine.files import write_text
from fastdarts.engine.memory import meta_batch, step_bytes
from fastdarts.engine.progress import Progress, duration, log_to, now_and_then
from fastdarts.engine.ranks import Alone, Ranks
from fastdarts.engine.rng import rng_state, set_rng_state
from fastdarts.engine.run_folder import RunFolder, RunFolderError
from fastdarts.engine.stopping import Stopped, Stopping
from fastdarts.engine.writer import Writer

__all__ = [
    "Alone",
    "BadStep",
    "CaptureError",
    "CapturedBilevel",
    "NotDeterministicError",
    "Progress",
    "Ranks",
    "RecentSteps",
    "RunFolder",
    "RunFolderError",
    "Stopped",
    "Stopping",
    "Writer",
    "algorithms",
    "duration",
    "log_to",
    "meta_batch",
    "no_gpu",
    "now_and_then",
    "rng_state",
    "set_rng_state",
    "step_bytes",
    "steps_of",
    "write_text",
]
