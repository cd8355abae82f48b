"""From settings to a finished search: run folder, images, plan, input, search, session. What all search commands share."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from fastdarts import engine, provenance, steps
from fastdarts.runs.build import benchmark_of, build, space_of
from fastdarts.settings import RunSettings
from fastdarts.data import DataError
from fastdarts.engine import RankLost, RanksDisagree, RunFolder, RunFolderError, Session, Stopping, World
from fastdarts.steps import CapturedBilevel
from fastdarts.steps.stage_timer import Stages
from fastdarts.inputs.images import Images
from fastdarts.inputs.files import Input, Source
from fastdarts.objectives import Objective
from fastdarts.report import write_report
from fastdarts.runs.plan import free_for, prepare, too_little
from fastdarts.runs.search_session import PICTURES, SearchReporter
from fastdarts.search import METHODS, Bilevel, DivergedError, Progressive, Search, Stage, stages_of
from fastdarts.spaces import Space
from fastdarts.spaces.file import to_dict
from fastdarts.supernet import Network

log = logging.getLogger("fastdarts")


def run(name: str, settings: RunSettings, source: Source, stopping: Stopping, world: World | None = None) -> None:
    """Search as `settings` say: make or continue the run folder, or, with dry_run, only tell what would be done.

    name    of the command
    source  where the images come from
    world   the ranks that do it together, each of which calls this; the folder is rank 0's
    """
    world = world or World()
    cores = world.seat.threads()
    torch.set_num_threads(settings.threads)
    space = world.together(lambda: space_of(settings))
    benchmark = world.lead(lambda: benchmark_of(settings, space), lambda _: None)
    folder = _folder(name, settings, space, world)
    if folder.saved is not None:
        settings = settings.kept(folder.saved["settings"])
    found = world.lead(lambda: source.images.choose(settings, folder), Images.splits)
    images = world.together(lambda: found if world.leads else source.images.listed(settings, found))
    settings = world.together(lambda: images.settle(settings))
    free = free_for(settings, world)
    prepared = world.lead(lambda: prepare(settings, images, free, world, stopping))  # before any file is decoded
    if settings.dry_run:
        forecast = world.lead(lambda: source.forecast(prepared.settings, images, prepared.memory, world))
        log.info(f"{prepared.told}\n{forecast}")
        return
    with ExitStack() as held:
        if folder.saved is not None:
            world.lead(lambda: held.enter_context(folder.locked()))
        found = world.lead(lambda: images.ready(settings, cores, folder.saved is not None), Images.splits)
        images = found if world.leads else images.taking(found)
        if images.excluded:
            prepared = world.lead(lambda: prepare(settings, images, free, world, stopping))
        memory, plan = prepared.memory, prepared.told
        settings = replace(settings, batch_size=prepared.settings.batch_size)  # the rest of rank 0's may be its own: its device
        held.enter_context(steps.memory_told(lambda: too_little(settings, images, memory, free, world, stopping)))
        saved = None if folder.saved is None else folder.saved.get("input")
        how = {"threads": cores, "saved": saved, "reserved": memory, "pictures": PICTURES, "world": world}
        given = held.enter_context(closing(source.open_input(settings, images, **how)))
        stages = Stages() if world.leads else None
        search = _start(settings, space, images, given, world, stages)
        if folder.saved is None:
            more = {"input": given.facts, "ranks": world.size}
            world.lead(lambda: _begin(held.enter_context, _facts(name, settings, space, images) | more, images, folder))
        if world.leads:
            held.enter_context(engine.log_to(folder["log.txt"]))
        log.info(plan)
        log.info(f"run folder {folder.path}, {provenance.commit()}")
        log.info(given.told)
        _say_what_changed(folder, settings, world)
        more = {"report": write_report, "benchmark": benchmark, "stages": stages}
        reporter = SearchReporter(search, folder, settings, given.pictures, **more)
        session = Session(search, folder, settings, reporter, files=images.index.files, stopping=stopping, world=world)
        try:
            session.run()
        except (DivergedError, RanksDisagree, RankLost, OSError) as error:
            log.error(f"stopped: {error}")
            raise
        except DataError as error:  # of a file that was good when it was checked
            raise DataError(f"{error}; put the file back, and the same command continues the run") from error
        log.info(f"{search.result()}\nreport {folder['report.html']}")


def _folder(command: str, settings: RunSettings, space: Space, world: World) -> RunFolder:
    """The run folder as rank 0 finds it. Raises RunFolderError."""

    def opened() -> RunFolder:
        folder = RunFolder.open(path, settings)
        if (folder.saved or {}).get("space", to_dict(space)) != to_dict(space):
            raise RunFolderError(
                f"--space {settings.space}: its candidates are not those that {path} began with: put the file back, or begin "
                "in another folder"
            )
        return folder

    name = f"{command.replace('_', '-')}-{settings.objective}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = Path(settings.save or name)
    found = world.lead(opened, lambda folder: folder.saved)
    if world.leads:
        return found
    folder = RunFolder(path)
    folder.saved = found
    return folder


def _start(
    settings: RunSettings, space: Space, images: Images, given: Input, world: World, timer: Stages | None
) -> Search:
    """The search at its beginning, with the same weights on all ranks; its steps are followed by `timer`."""

    def make(space: Space, stage: Stage) -> tuple[Network, Objective]:
        supernet, objective = build(settings, space, len(images.index.classes), stage)
        supernet.to(settings.device, memory_format=torch.channels_last)
        objective.to(settings.device)
        if settings.sync_bn and not world.alone:
            supernet.synchronise(world)
        draw_apart(world)
        return supernet, objective

    def captured(bilevel: Bilevel) -> CapturedBilevel:
        steps = CapturedBilevel(bilevel, settings.cuda_graph)
        return steps if timer is None else timer.follow(steps)

    stages = Progressive(stages_of(settings, settings.layers, space), make, settings.seed)
    supernet, objective = stages.begin(0, space)
    search = Search(
        supernet,
        objective,
        given.train,
        given.val,
        settings,
        eval_loader=given.evaluation,
        ranks=None if world.alone else world,
        captured=captured,
        method=METHODS[settings.method],
        progressive=stages if settings.progressive else None,
    )
    world.copy_from_lead([*search.named_tensors().values(), *supernet.buffers(), *objective.buffers()])
    return search


def draw_apart(world: World) -> None:
    """Noise and dropout, which come from torch's generators, are to differ from rank to rank, as their images do.

    The generators go on from a seed of each rank's own, which follows from their state; of one process alone they are left.
    """
    if not world.alone:
        torch.manual_seed(int(torch.randint(2**62, ())) + world.rank)


def _begin(
    hold: Callable[[AbstractContextManager[None]], None], facts: dict[str, Any], images: Images, folder: RunFolder
) -> None:
    """Make the folder of a new run, locked as long as what `hold` enters is held."""
    hold(folder.locked())
    images.write(folder)
    folder.create(facts)


def _say_what_changed(folder: RunFolder, settings: RunSettings, world: World) -> None:
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


def _facts(command: str, settings: RunSettings, space: Space, images: Images) -> dict[str, Any]:
    """The content of settings.json."""
    return {
        "command": command,
        "settings": asdict(settings),
        "data": images.facts() | {"is_sample": settings.data is None},
        "space": to_dict(space),
        "candidates": {kind: space.candidates(kind) for kind in space.kinds},
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
    }
