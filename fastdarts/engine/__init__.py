"""WHAT keeps a run going: its folder, checkpoints, progress, memory, CUDA graphs, ranks. Imports `search`, not vice versa."""

from fastdarts.engine.bad_numbers import BadStep, RecentSteps, over_ranks
from fastdarts.engine.checkpoints import steps_of
from fastdarts.engine.cuda_graph import CapturedBilevel, CaptureError, no_gpu
from fastdarts.engine.determinism import NotDeterministicError, algorithms
from fastdarts.engine.distributed import RankLost, RanksDisagree, Seat, ToldElsewhere, World, WorldError
from fastdarts.engine.files import write_text
from fastdarts.engine.memory import STEP, NoMemory, free_bytes, largest_batch, memory_told, meta_batch, step_bytes
from fastdarts.engine.profile import Window
from fastdarts.engine.progress import Progress, duration, log_to, now_and_then
from fastdarts.engine.rng import rng_state, set_rng_state
from fastdarts.engine.run_folder import RunFolder, RunFolderError
from fastdarts.engine.stopping import Asking, Stopped, Stopping
from fastdarts.engine.tensorboard import no_tensorboard
from fastdarts.engine.watch import Watch
from fastdarts.engine.writer import Writer

__all__ = [
    "STEP",
    "Asking",
    "BadStep",
    "CaptureError",
    "CapturedBilevel",
    "NoMemory",
    "NotDeterministicError",
    "Progress",
    "RankLost",
    "RanksDisagree",
    "RecentSteps",
    "RunFolder",
    "RunFolderError",
    "Seat",
    "Stopped",
    "Stopping",
    "ToldElsewhere",
    "Watch",
    "Window",
    "World",
    "WorldError",
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
    "over_ranks",
    "rng_state",
    "set_rng_state",
    "step_bytes",
    "steps_of",
    "write_text",
]
