"""Common entry point of the commands that train or evaluate: rank, run, exit status, one-line errors."""

import errno
import gc
import logging
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from fastdarts import engine, steps
from fastdarts.data import DataError, InputStopped
from fastdarts.data.errors import REMEDIES, shortage
from fastdarts.engine import PeerError, RankInfo, RankLost, RanksDisagree, RunFolderError, SignalHandler, World, WorldError
from fastdarts.logs import any_text
from fastdarts.ops.backend import BackendUnavailable
from fastdarts.optim import tf32
from fastdarts.runs.evaluate import Evaluated
from fastdarts.runs.resolved import Resolved, ResolvedRetrain
from fastdarts.search import DivergedError
from fastdarts.settings import ConfigError, Given, Settings
from fastdarts.steps import CaptureError

# settings that may differ between the ranks of one run: node-local paths, and settings read by rank 0 only
OF_A_RANK = {"device", "data", "save", "train_list", "val_list", "val_labels", "run", "threads", "workers"}
OF_A_RANK |= {"cache_folder", "benchmark", "space"}
log = logging.getLogger("fastdarts")
AnyResolved = Resolved | ResolvedRetrain | Evaluated


class Resolver(Protocol):
    """Resolve the values of a command line: resolver(values, info) -> resolved settings on a rank. Raises ConfigError.

    command   name of the command
    settings  settings class of its flags
    """

    @property
    def command(self) -> str: ...
    @property
    def settings(self) -> type[Settings]: ...
    def __call__(self, args: Mapping[str, Any], info: RankInfo) -> AnyResolved: ...

    def notice(self, args: Mapping[str, Any]) -> str | None:
        """Return the first line of a run with these values, if any."""

    def ignored(self, resolved: Any, asked: Collection[str]) -> list[str]:
        """Return a line for each choice that makes some of the settings `asked` for (by field) meaningless."""
        ...


@dataclass(frozen=True)
class Command:
    """Command: `fastdarts NAME`, `python -m fastdarts.NAME`.

    resolve  resolver with its name and flags
    run      implementation: (name, resolved, signals, world) -> the run folder
    about    description in --help
    followers  commands that --then may run on the finished run's folder, by name
    again      how to go on after an interruption
    """

    resolve: Resolver
    run: Callable[[str, Any, SignalHandler, World], Path]
    about: str
    followers: Mapping[str, "Command"] = field(default_factory=dict)
    again: str = "the same command with --save set to this run's folder continues it"

    @property
    def prog(self) -> str:
        """Return the program name as users call it."""
        return f"python -m fastdarts.{self.resolve.command}"

    @any_text()
    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the command; returns its exit status, and prints the reason on stderr unless it is 0.

        1 runtime failure, 2 invalid input, 75 stopped by SIGTERM or SIGUSR1, 130 interrupted (SIGINT). After 75 and 130
        the same command with --save continues. Under torchrun this process is one rank of the run.
        """
        args = self.resolve.settings.parse(argv, self.prog, self.about)
        info = RankInfo()
        again = self.again

        def report(what: str, everywhere: bool = True) -> None:
            if everywhere or info.rank == 0:  # messages common to all ranks are printed once
                print(f"{info.prefix}{self.prog}: {what}", file=sys.stderr)

        try:
            info = RankInfo.of_environment()
            follower = self._follower(args.values.get("then"))
            folder = self._start(args, info)
        except PeerError:
            return 2
        except (ConfigError, DataError, RunFolderError, BackendUnavailable, CaptureError, WorldError) as error:
            report(f"error: {error}")
            return 2
        except (DivergedError, RanksDisagree) as error:
            report(f"stopped: {error}; the previous checkpoint is kept", everywhere=False)
            return 1
        except (InputStopped, RankLost) as error:
            report(f"stopped: {error}; {again}")
            return 1
        except engine.NotDeterministicError as error:
            report(f"stopped: {error}; continue without --deterministic, or with another --backend")
            return 1
        except steps.NoMemory as error:
            report(f"stopped: {error}")
            return 1
        except OSError as error:  # a full disk, a folder that disappeared
            report(f"stopped: {shortage(error)}; the last checkpoint is kept")
            return 1
        except RuntimeError as error:
            if "can't start new thread" not in str(error):  # Python has no exception class for this
                raise
            report(f"stopped: cannot start a thread: {REMEDIES[errno.EAGAIN]}; {again}")
            return 1
        except engine.Stopped as stopped:
            report(f"stopped by {stopped}; {again}", everywhere=not stopped.agreed)
            return stopped.status
        if follower is None or args.values.get("dry_run"):
            return 0
        gc.collect()
        torch.cuda.empty_cache()  # no operation without a GPU; the follower plans with the free memory
        return follower(folder)

    def _follower(self, then: str | None) -> Callable[[Path], int] | None:
        """Return what runs --then on the finished run's folder. Raises ConfigError; invalid flags end the process."""
        if then is None:
            return None
        try:
            name, *flags = shlex.split(then) or [""]
        except ValueError as error:
            raise ConfigError(f"--then {then}: {error}") from error
        if name not in self.followers:
            raise ConfigError(f"--then {then}: give one of {', '.join(self.followers)}, then its flags")
        follower = self.followers[name]
        if own := [flag for flag in flags if flag.partition("=")[0] in ("--run", "--save")]:
            raise ConfigError(f"--then {then}: {own[0]} follows from the search, leave it out")
        follower.resolve.settings.parse(flags, f"{self.prog}: --then {name}", follower.about)
        return lambda folder: follower.main([*flags, "--run", str(folder), "--save", str(folder / name)])

    def call(self, values: Mapping[str, Any]) -> Path:
        """Run the command with some settings by name; returns the run folder. Raises the errors that `main` prints."""
        return self._start(Given(dict(values), {}, False), RankInfo.of_environment())

    def _start(self, args: Given, info: RankInfo) -> Path:
        """Run with logging and signal handlers, and restore the caller's thread count."""
        threads = torch.get_num_threads()
        try:
            stream = sys.stderr if args.values.get("json") else sys.stdout  # which then has the JSON alone
            with info.log(stream), engine.SignalHandler() as signals:
                if notice := self.resolve.notice(args.values):
                    log.info(notice)
                return self._run(args, info, signals)
        finally:
            torch.set_num_threads(threads)

    def _run(self, args: Given, info: RankInfo, signals: SignalHandler) -> Path:
        """Connect the ranks, then run on each with its settings; returns the run folder."""
        values, flags = args.values, self.resolve.settings
        options = {name: values.get(name, getattr(flags, name)) for name in ("device", "dist_timeout", "dist_backend")}
        with World.join(info, options["device"], options["dist_timeout"], options["dist_backend"]) as world:
            resolved = world.on_all_ranks(lambda: self.resolve(values, info))
            for line in self.resolve.ignored(resolved, args.asked) if world.is_main else ():
                log.warning(line)
            world.compare(_alike(resolved))
            s = resolved.settings
            try:
                with tf32(s.tf32), engine.algorithms(s.deterministic, s.device):
                    return self.run(self.resolve.command, resolved, signals, world)
            except RankLost:
                signals.check()  # all ranks were asked to stop, and the others were faster
                raise


def _alike(resolved: AnyResolved) -> dict[str, Any]:
    """Return the values that must agree on all ranks; a file's path may differ between nodes, its content must not."""
    settings = {f"--{name}": value for name, value in asdict(resolved.settings).items() if name not in OF_A_RANK}
    return settings | resolved.content() | {"the device type": torch.device(resolved.settings.device).type}
