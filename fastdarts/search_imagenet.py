"""Architecture search on ImageNet-layout JPEGs, label-free by default: `python -m fastdarts.search_imagenet`.

MAE-NAS with PC-DARTS' settings: masked reconstruction, partial channels, alpha on images of its own.
"""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from fastdarts import engine, provenance
from fastdarts.build import build, check_patches
from fastdarts.config import SAMPLE_RECIPE, ConfigError, SearchImagenetSettings
from fastdarts.data import DataError, EvalLoader, InputStopped
from fastdarts.engine import (
    CapturedBilevel,
    CaptureError,
    RankLost,
    RanksDisagree,
    RunFolder,
    RunFolderError,
    Seat,
    Stopping,
    ToldElsewhere,
    World,
    WorldError,
)
from fastdarts.images import Images
from fastdarts.input import Input, forecast, open_input
from fastdarts.objectives import Objective
from fastdarts.ops.backend import BackendUnavailable, choose
from fastdarts.plan import free_for, prepare, too_little
from fastdarts.search import DivergedError, OptimizerUnavailable, Precision, Progressive, Search, Stage, stages_of, tf32
from fastdarts.search.optimizers import check_backend
from fastdarts.session import PICTURES, Session
from fastdarts.spaces import KINDS, S0, Space
from fastdarts.supernet import Supernet

PROG = "python -m fastdarts.search_imagenet"
NOT_IMAGENET = "No --data: this searches a generated sample of textures and shapes, NOT ImageNet."
# what may differ between the ranks of one search: where a node keeps things, and what only rank 0 looks at
OF_A_RANK = {"device", "data", "save", "train_list", "val_list", "threads", "workers", "cache_folder"}
log = logging.getLogger("fastdarts")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, and where it is not 0 a line on stderr says why.

    1 something went wrong on the way, 2 wrong input, 75 asked to stop by SIGTERM or SIGUSR1, 130 interrupted (SIGINT).
    After 75 and 130 the same command with --save continues. Under torchrun it is one rank of a search.
    """
    given = SearchImagenetSettings.given(argv, PROG, __doc__)
    threads, seat = torch.get_num_threads(), Seat()
    again = "the same command with --save of this run's folder continues it"

    def tell(what: str, everywhere: bool = True) -> None:
        if everywhere or seat.rank == 0:  # what all ranks come to alike is said once
            print(f"{seat.prefix}{PROG}: {what}", file=sys.stderr)

    try:
        seat = Seat.of_environment()
        with seat.log(), engine.Stopping() as stopping:
            if given.get("data") is None:
                log.info(NOT_IMAGENET)
            _search(given, seat, stopping)
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
        tell(f"stopped: {error}; the last checkpoint is kept")
        return 1
    except engine.Stopped as stopped:
        tell(f"stopped by {stopped}; {again}", everywhere=not stopped.agreed)
        return stopped.status
    finally:
        torch.set_num_threads(threads)  # the caller's
    return 0


def _search(given: dict[str, Any], seat: Seat, stopping: Stopping) -> None:
    """Find the other ranks, then run on each what the flags `given` stand for."""
    how = {name: given.get(name, getattr(SearchImagenetSettings, name)) for name in ("device", "dist_timeout", "dist_backend")}
    with World.join(seat, how["device"], how["dist_timeout"], how["dist_backend"]) as world:
        settings = world.together(lambda: resolve(given, seat))
        alike = {f"--{name}": value for name, value in asdict(settings).items() if name not in OF_A_RANK}
        world.compare(alike | {"the kind of device": torch.device(settings.device).type})
        try:
            with tf32(settings.tf32), engine.algorithms(settings.deterministic, settings.device):
                run(settings, stopping, world)
        except RankLost:
            stopping.check()  # all were asked to end, and the others were sooner
            raise


def resolve(given: dict[str, Any], seat: Seat = Seat()) -> SearchImagenetSettings:  # noqa: B008 - a tuple
    """The settings that a command line stands for, on the rank of that seat. Raises ConfigError."""
    values = SAMPLE_RECIPE | given
    if given.get("data") is not None:
        values = given | {"data": str(Path(given["data"]).expanduser().absolute())}
    if "epochs" in given:  # alpha's start and the warm-up, in PC-DARTS' proportion: 35 and 5 of 50
        values = values | {"begin": given["epochs"] * 35 // 50, "warmup_epochs": given["epochs"] * 5 // 50} | given
    settings = SearchImagenetSettings.make(values)
    stages_of(settings, settings.layers, S0)
    if settings.objective == "mae":
        check_patches(settings.image_size, settings.patch_size, settings.mask_ratio)
    settings = replace(settings, device=_device(settings.device, seat), threads=settings.threads or seat.threads())
    device = torch.device(settings.device)
    _check_device(settings, device)
    _check_watching(settings)
    lower = Precision(settings.amp).dtype or torch.float32
    dtypes = dict.fromkeys(("patch_mask", "masked_loss"), torch.float32) | dict.fromkeys(("relu_conv_bn", "mixed_cell"), lower)
    try:
        for op, dtype in dtypes.items():
            choose(op, settings.backend, device, dtype)
    except ValueError as error:
        raise ConfigError(f"--backend: {error}") from error
    return settings


def _check_device(settings: SearchImagenetSettings, device: torch.device) -> None:
    """Raise ConfigError for what the device cannot do, or not well."""
    if settings.amp != "off" and device.type == "cpu":
        raise ConfigError(f"--amp {settings.amp}: on a CPU it is many times slower than float32; leave it off, or take a GPU")
    if settings.cuda_graph == "on" and (why := engine.no_gpu(device)):
        raise ConfigError(f"--cuda_graph on: {why}")
    try:
        check_backend(settings.optimizer_backend, device)
    except OptimizerUnavailable as error:
        raise ConfigError(f"--optimizer_backend {settings.optimizer_backend}: {error}") from error


def _check_watching(settings: SearchImagenetSettings) -> None:
    """Raise ConfigError where what is to be written cannot be."""
    if settings.tensorboard and (why := engine.no_tensorboard()):
        raise ConfigError(f"--tensorboard: {why}")
    if settings.profile is not None:
        try:
            engine.Window.parse(settings.profile)
        except ValueError as error:
            raise ConfigError(f"--profile {settings.profile}: {error}") from error


def run(settings: SearchImagenetSettings, stopping: Stopping, world: World | None = None) -> None:
    """Search as `settings` say: make or continue the run folder, or, with dry_run, only tell what would be done.

    world  the ranks that do it together, each of which calls this; the folder is rank 0's
    """
    world = world or World()
    cores = world.seat.threads()
    torch.set_num_threads(settings.threads)
    folder = _folder(settings, world)
    found = world.lead(lambda: Images.choose(settings, folder), Images.splits)
    images = world.together(lambda: found if world.leads else Images.listed(settings, found))
    free = free_for(settings, world)
    prepared = world.lead(lambda: prepare(settings, images, folder, free, world))  # before any file is decoded
    if settings.dry_run:
        log.info(f"{prepared.told}\n{world.lead(lambda: forecast(prepared.settings, images, prepared.memory, world))}")
        return
    with ExitStack() as held:
        if folder.saved is not None:
            world.lead(lambda: held.enter_context(folder.locked()))
        found = world.lead(lambda: _looked_into(settings, images, folder, cores), Images.splits)
        images = found if world.leads else images.taking(found)
        if images.excluded and (folder.saved is None or settings.strict):
            prepared = world.lead(lambda: prepare(settings, images, folder, free, world))
        memory, plan = prepared.memory, prepared.told
        settings = replace(settings, batch_size=prepared.settings.batch_size)  # the rest of rank 0's may be its own: its device
        held.enter_context(engine.memory_told(lambda: too_little(settings, images, memory, free, world)))
        saved = None if folder.saved is None else folder.saved.get("input")
        workers = settings.workers if settings.workers >= 0 else max(1, min(8, cores - 1))
        how = {"workers": workers, "threads": cores, "saved": saved, "reserved": memory, "world": world}
        given = held.enter_context(closing(open_input(settings, images, **how)))
        search = _start(settings, images, given, world)
        if folder.saved is None:
            world.lead(lambda: _begin(held.enter_context, settings, images, given, folder, world))
        if world.leads:
            held.enter_context(engine.log_to(folder["log.txt"]))
        log.info(plan)
        log.info(f"run folder {folder.path}, {provenance.commit()}")
        log.info("input: {route}, --cache {cache}".format(**given.facts))
        _say_what_changed(folder, settings, world)
        pictures = EvalLoader(
            images.index, images.val[:PICTURES], batch_size=PICTURES, image_size=settings.image_size, workers=0
        )
        session = Session(search, folder, settings, pictures, files=images.index.files, stopping=stopping, world=world)
        try:
            report = session.run()
        except (DivergedError, RanksDisagree, RankLost, OSError) as error:
            log.error(f"stopped: {error}")
            raise
        except DataError as error:  # of a file that was good when it was checked
            raise DataError(f"{error}; put the file back, and the same command continues the run") from error
        log.info(f"{search.genotype()}\nreport {report}")


def _folder(settings: SearchImagenetSettings, world: World) -> RunFolder:
    """The run folder as rank 0 finds it. Raises RunFolderError."""
    name = f"search-imagenet-{settings.objective}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = Path(settings.save or name)
    found = world.lead(lambda: RunFolder.open(path, settings), lambda folder: folder.saved)
    if world.leads:
        return found
    folder = RunFolder(path)
    folder.saved = found
    return folder


def _looked_into(settings: SearchImagenetSettings, images: Images, folder: RunFolder, cores: int) -> Images:
    """The images with sizes; of a new run without those that cannot be decoded."""
    if folder.saved is None or settings.strict:
        return images.checked(cores, settings.strict)
    return images.measured(cores)


def _start(settings: SearchImagenetSettings, images: Images, given: Input, world: World) -> Search:
    """The search at its beginning, with the same weights on all ranks."""

    def make(space: Space, stage: Stage) -> tuple[Supernet, Objective]:
        supernet, objective = build(settings, len(images.index.classes), space, stage)
        supernet.to(settings.device, memory_format=torch.channels_last)
        objective.to(settings.device)
        if settings.sync_bn and not world.alone:
            supernet.synchronise(world)
        return supernet, objective

    stages = Progressive(stages_of(settings, settings.layers, S0), make, settings.seed)
    supernet, objective = stages.begin(0, S0)
    search = Search(
        supernet,
        objective,
        given.train,
        given.val,
        settings,
        eval_loader=given.evaluation,
        ranks=None if world.alone else world,
        captured=lambda bilevel: CapturedBilevel(bilevel, settings.cuda_graph),
        progressive=stages if settings.progressive else None,
    )
    world.copy_from_lead([*world.named(search).values(), *supernet.buffers(), *objective.buffers()])
    return search


def _begin(
    hold: Callable[[AbstractContextManager[None]], None],
    settings: SearchImagenetSettings,
    images: Images,
    given: Input,
    folder: RunFolder,
    world: World,
) -> None:
    """Make the folder of a new run, locked as long as what `hold` enters is held."""
    hold(folder.locked())
    images.write(folder)
    folder.create(_facts(settings, images) | {"input": given.facts, "ranks": world.size})


def _say_what_changed(folder: RunFolder, settings: SearchImagenetSettings, world: World) -> None:
    """What a continued run does otherwise than it began, and what that changes."""
    if folder.saved is None or not world.leads:
        return
    ranks, threads = folder.saved.get("ranks", 1), folder.saved["settings"].get("threads", settings.threads)
    if ranks != world.size:
        norm = "" if settings.sync_bn else ", and BatchNorm's statistics are of other shares of a batch"
        log.warning(f"the run began with {ranks} ranks and goes on with {world.size}: images stay the same, sums round{norm}")
    elif threads != settings.threads:
        log.warning(
            f"the run began with {threads} threads and goes on with {settings.threads}: torch's sums may round otherwise"
        )


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


def _facts(settings: SearchImagenetSettings, images: Images) -> dict[str, Any]:
    """The content of settings.json."""
    return {
        "command": "search_imagenet",
        "settings": asdict(settings),
        "data": images.facts() | {"is_sample": settings.data is None},
        "candidates": {kind: S0.candidates(kind) for kind in KINDS},
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
    }


if __name__ == "__main__":
    sys.exit(main())
