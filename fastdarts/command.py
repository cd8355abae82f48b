"""What every search command does with its command line: settings that are checked, a seat among ranks, an exit status."""

import errno
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from fastdarts import engine
from fastdarts.build import space_of
from fastdarts.config import RunSettings
from fastdarts.data import DataError, InputStopped
from fastdarts.data.errors import REMEDIES, shortage
from fastdarts.engine import (
    CaptureError,
    RankLost,
    RanksDisagree,
    RunFolderError,
    Seat,
    Stopping,
    ToldElsewhere,
    World,
    WorldError,
)
from fastdarts.flags import ConfigError, expanded
from fastdarts.input import Source
from fastdarts.logs import any_text
from fastdarts.modules import import_modules
from fastdarts.objectives import OBJECTIVES
from fastdarts.ops.backend import BackendUnavailable, choose
from fastdarts.recipes import RECIPES
from fastdarts.run import run
from fastdarts.search import DivergedError, OptimizerUnavailable, Precision, check_early_stop, stages_of, tf32
from fastdarts.search.methods import Dataset, in_proportion, settings_of
from fastdarts.search.optimizers import check_backend
from fastdarts.spaces import SPACES
from fastdarts.spaces.file import SUFFIXES, to_dict

# what may differ between the ranks of one search: where a node keeps things, and what only rank 0 looks at
OF_A_RANK = {"device", "data", "save", "train_list", "val_list", "threads", "workers", "cache_folder", "benchmark", "space"}
PATHS = "data", "train_list", "val_list"
log = logging.getLogger("fastdarts")


@dataclass(frozen=True)
class Command:
    """One search command, `python -m fastdarts.NAME`.

    name      NAME
    about     what --help says of it
    settings  its flags
    source    where its images come from
    sample    settings that it takes instead of published ones when it searches the generated sample
    notice    the first line of such a search
    """

    name: str
    about: str
    settings: type[RunSettings]
    source: Source
    sample: Mapping[str, Any]
    notice: str

    @property
    def dataset(self) -> Dataset:
        """Whose published numbers a method brings."""
        return "cifar" if self.name == "search_cifar" else "imagenet"

    @property
    def prog(self) -> str:
        """How a person calls it."""
        return f"python -m fastdarts.{self.name}"

    @any_text()
    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the command; returns its exit status, and where it is not 0 a line on stderr says why.

        1 something went wrong on the way, 2 wrong input, 75 asked to stop by SIGTERM or SIGUSR1, 130 interrupted (SIGINT).
        After 75 and 130 the same command with --save continues. Under torchrun it is one rank of a search.
        """
        given = self.settings.given(argv, self.prog, self.about)
        threads, seat = torch.get_num_threads(), Seat()
        again = "the same command with --save of this run's folder continues it"

        def tell(what: str, everywhere: bool = True) -> None:
            if everywhere or seat.rank == 0:  # what all ranks come to alike is said once
                print(f"{seat.prefix}{self.prog}: {what}", file=sys.stderr)

        try:
            seat = Seat.of_environment()
            with seat.log(), engine.Stopping() as stopping:
                if given.get("data") is None:
                    log.info(self.notice)
                self._search(given, seat, stopping)
        except ToldElsewhere:
            return 2
        except (ConfigError, DataError, RunFolderError, BackendUnavailable, CaptureError, WorldError) as error:
            tell(f"error: {error}")
            return 2
        except (DivergedError, RanksDisagree) as error:
            tell(f"stopped: {error}; the checkpoint before it is kept", everywhere=False)
            return 1
        except (InputStopped, RankLost) as error:
            tell(f"stopped: {error}; {again}")
            return 1
        except engine.NotDeterministicError as error:
            tell(f"stopped: {error}; go on without --deterministic, or with another --backend")
            return 1
        except engine.NoMemory as error:
            tell(f"stopped: {error}")
            return 1
        except OSError as error:  # a full disk, a folder that went away
            tell(f"stopped: {shortage(error)}; the last checkpoint is kept")
            return 1
        except RuntimeError as error:
            if "can't start new thread" not in str(error):  # Python's words, which have no class of their own
                raise
            tell(f"stopped: no thread can be started: {REMEDIES[errno.EAGAIN]}; {again}")
            return 1
        except engine.Stopped as stopped:
            tell(f"stopped by {stopped}; {again}", everywhere=not stopped.agreed)
            return stopped.status
        finally:
            torch.set_num_threads(threads)  # the caller's
        return 0

    def _search(self, given: dict[str, Any], seat: Seat, stopping: Stopping) -> None:
        """Find the other ranks, then run on each what the flags `given` stand for."""
        how = {name: given.get(name, getattr(self.settings, name)) for name in ("device", "dist_timeout", "dist_backend")}
        with World.join(seat, how["device"], how["dist_timeout"], how["dist_backend"]) as world:
            settings = world.together(lambda: self.resolve(given, seat))
            for line in without_effect(settings, given) if world.leads else ():
                log.warning(line)
            alike = {f"--{name}": value for name, value in asdict(settings).items() if name not in OF_A_RANK}
            space = world.together(lambda: to_dict(space_of(settings)))  # a file may be another one on each node
            world.compare(alike | {"--space": space, "the kind of device": torch.device(settings.device).type})
            try:
                with tf32(settings.tf32), engine.algorithms(settings.deterministic, settings.device):
                    run(self.name, settings, self.source, stopping, world)
            except RankLost:
                stopping.check()  # all were asked to end, and the others were sooner
                raise

    def resolve(self, given: dict[str, Any], seat: Seat = Seat()) -> RunSettings:  # noqa: B008 - a tuple
        """The settings that a command line stands for, on the rank of that seat. Raises ConfigError."""
        settings = self.settings.make(self._values(given))
        import_modules(settings.modules)
        settings = replace(settings, device=_device(settings.device, seat), threads=settings.threads or seat.threads())
        device = torch.device(settings.device)
        _check_device(settings, device)
        _check_watching(settings)
        space = space_of(settings)
        stages_of(settings, settings.layers, space)
        check_early_stop(settings, space)
        lower = Precision(settings.amp).dtype or torch.float32
        dtypes = dict.fromkeys(("patch_mask", "masked_loss"), torch.float32) | dict.fromkeys(
            ("relu_conv_bn", "mixed_cell"), lower
        )
        try:
            for op, dtype in dtypes.items():
                choose(op, settings.backend, device, dtype)
        except ValueError as error:
            raise ConfigError(f"--backend: {error}") from error
        return settings

    def _values(self, given: dict[str, Any]) -> dict[str, Any]:
        """The settings by field: of the defaults, the method, the recipe, and above all the flags. Raises ConfigError."""
        given = given | {name: _absolute(given[name]) for name in PATHS if given.get(name) is not None}
        if "space" in given:
            given = given | {"space": _space(given["space"])}
        recipe = self._recipe(given)
        row = settings_of(given.get("method") or recipe.get("method") or self.settings.method, self.dataset)
        published = {f.name: f.default for f in fields(self.settings)} | row | recipe
        small = {} if given.get("data") is not None else self._of_sample(published)
        scaled = in_proportion(published, given["epochs"]) if "epochs" in given else {}
        return published | small | scaled | given

    def _of_sample(self, published: Mapping[str, Any]) -> dict[str, Any]:
        """`sample`, as far as the method can do with it."""
        values = in_proportion(published, self.sample["epochs"]) | dict(self.sample)
        if "init_channels" in values:
            values["init_channels"] = max(values["init_channels"], 2 * published["partial_channels"])
        if published["progressive"]:
            values |= {"epochs": 6, "begin": 1}  # three stages of two
        return values

    def _recipe(self, given: dict[str, Any]) -> dict[str, Any]:
        """The settings of --recipe, none without. Raises ConfigError."""
        name = given.get("recipe")
        if name is None:
            return {}
        mine = {name: recipe for name, recipe in RECIPES.items() if recipe.command == self.name}
        if name not in mine:
            other = f" is one of fastdarts.{RECIPES[name].command}" if name in RECIPES else ""
            raise ConfigError(f"--recipe {name}{other}: fastdarts.{self.name} has {', '.join(mine)}")
        if "method" in given:
            raise ConfigError(f"--method {given['method']}: --recipe {name} has its own, leave one of the two out")
        return dict(mine[name].settings)


def without_effect(settings: RunSettings, given: Iterable[str]) -> list[str]:
    """A line for each choice that leaves some of the flags `given` (by field) without a meaning."""
    s, row = settings, OBJECTIVES[settings.objective]
    benchmark = space_of(s).skeleton == "nasbench201"
    unread = [
        (f"--objective {s.objective} hides nothing", not row.masks, "mask_ratio patch_size"),
        ("of --objective mae", s.objective != "mae", "mask_token loss decoder"),
        ("of NAS-Bench-201's network", not benchmark, "stage_cells cell_norm"),
        ("of DARTS' network", benchmark, "layers"),
        ("of --partial_channels above 1", s.partial_channels == 1, "channel_sampling"),
        ("--train_list and --val_list name the images", s.train_list is not None, "train_fraction val_fraction"),
        ("of --early_stop skips", s.early_stop != "skips", "early_stop_skips"),
        ("of --early_stop eigenvalue", s.early_stop != "eigenvalue", "early_stop_from"),
        ("of --progressive", not s.progressive, "progressive_layers progressive_candidates progressive_dropout"),
        ("of --skip_dropout", s.progressive and not s.skip_dropout, "progressive_dropout"),
    ]
    found = [(why, [f"--{name}" for name in names.split() if name in given]) for why, holds, names in unread if holds]
    return [f"without effect: {', '.join(flags)} ({why})" for why, flags in found if flags]


def _absolute(text: str) -> str:
    """The same text for the same path; links stay as they are, but for those before .., which have to be followed."""
    path = Path(expanded(text)).absolute()
    cut = max((i + 1 for i, part in enumerate(path.parts) if part == ".."), default=0)
    return str(Path(*path.parts[:cut]).resolve().joinpath(*path.parts[cut:])) if cut else str(path)


def _space(text: str) -> str:
    """The same text for the same space: a run is continued by any way to write it."""
    name = text.strip().lower()
    if name in SPACES:
        return name
    return _absolute(text) if Path(name).suffix in SUFFIXES else text


def _check_device(settings: RunSettings, device: torch.device) -> None:
    """Raise ConfigError for what the device cannot do, or not well."""
    if settings.amp != "off" and device.type == "cpu":
        raise ConfigError(f"--amp {settings.amp}: on a CPU it is many times slower than float32; leave it off, or take a GPU")
    if settings.cuda_graph == "on" and (why := engine.no_gpu(device)):
        raise ConfigError(f"--cuda_graph on: {why}")
    try:
        check_backend(settings.optimizer_backend, device)
    except OptimizerUnavailable as error:
        raise ConfigError(f"--optimizer_backend {settings.optimizer_backend}: {error}") from error


def _check_watching(settings: RunSettings) -> None:
    """Raise ConfigError where what is to be written cannot be."""
    if settings.tensorboard and (why := engine.no_tensorboard()):
        raise ConfigError(f"--tensorboard: {why}")
    if settings.profile is not None:
        try:
            engine.Window.parse(settings.profile)
        except ValueError as error:
            raise ConfigError(f"--profile {settings.profile}: {error}") from error


def _device(name: str, seat: Seat) -> str:
    """The device that `name` stands for on the rank of that seat, tried out. Raises ConfigError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and seat.size > 1:
        name = f"cuda:{seat.local_rank % max(1, torch.cuda.device_count())}"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: neither auto, cpu, cuda nor cuda:N")
    try:
        return str(torch.empty(0, device=name).device)
    except (RuntimeError, AssertionError) as error:  # torch's two ways to say: no such device
        raise ConfigError(f"--device {name}: {str(error).splitlines()[0]}") from error
