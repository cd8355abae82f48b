"""Infrastructure of any run: folder, checkpoints, progress, signals, ranks."""

from fastdarts.engine.bad_numbers import BadStep, RecentSteps, over_ranks
from fastdarts.engine.checkpoints import steps_of
from fastdarts.engine.determinism import NotDeterministicError, algorithms
from fastdarts.engine.distributed import PeerError, RankInfo, RankLost, RanksDisagree, World, WorldError
from fastdarts.engine.files import write_text
from fastdarts.engine.monitor import RunMonitor
from fastdarts.engine.profile import ProfileRange
from fastdarts.engine.progress import Progress, duration, log_to, now_and_then
from fastdarts.engine.reporter import Reporter
from fastdarts.engine.rng import rng_state, set_rng_state
from fastdarts.engine.run_folder import RunFolder, RunFolderError
from fastdarts.engine.session import Session
from fastdarts.engine.signals import InterruptibleLoader, SignalHandler, Stopped
from fastdarts.engine.tensorboard import no_tensorboard
from fastdarts.engine.writer import Writer

__all__ = [
    "BadStep",
    "InterruptibleLoader",
    "NotDeterministicError",
    "PeerError",
    "ProfileRange",
    "Progress",
    "RankInfo",
    "RankLost",
    "RanksDisagree",
    "RecentSteps",
    "Reporter",
    "RunFolder",
    "RunFolderError",
    "RunMonitor",
    "Session",
    "SignalHandler",
    "Stopped",
    "World",
    "WorldError",
    "Writer",
    "algorithms",
    "duration",
    "log_to",
    "no_tensorboard",
    "now_and_then",
    "over_ranks",
    "rng_state",
    "set_rng_state",
    "steps_of",
    "write_text",
]
