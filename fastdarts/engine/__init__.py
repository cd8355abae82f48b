"""WHAT keeps a run going: its folder, checkpoints, progress, memory, CUDA graphs, ranks. Imports `search`, not vice versa."""

from fastdarts.engine.cuda_graph import CapturedBilevel, CaptureError, no_gpu
from fastdarts.engine.determinism import NotDeterministicError, algorithms
from fastdarts.engine.distributed import CheckedStep, RankLost, RanksDisagree, Seat, ToldElsewhere, World, WorldError
from fastdarts.engine.files import write_text
from fastdarts.engine.memory import meta_batch, step_bytes
from fastdarts.engine.progress import Progress, duration, log_to, now_and_then
from fastdarts.engine.run_folder import RunFolder, RunFolderError

__all__ = [
    "CaptureError",
    "CapturedBilevel",
    "CheckedStep",
    "NotDeterministicError",
    "Progress",
    "RankLost",
    "RanksDisagree",
    "RunFolder",
    "RunFolderError",
    "Seat",
    "ToldElsewhere",
    "World",
    "WorldError",
    "algorithms",
    "duration",
    "log_to",
    "meta_batch",
    "no_gpu",
    "now_and_then",
    "step_bytes",
    "write_text",
]
