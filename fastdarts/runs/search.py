"""Run a search: run folder, images, plan, input, search, session. Shared by all search commands."""

import logging
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from fastdarts import engine, provenance, steps
from fastdarts.engine import RunFolder, RunFolderError, Session, SignalHandler, World
from fastdarts.inputs.batches import Input
from fastdarts.inputs.images import Images
from fastdarts.objectives import Objective
from fastdarts.report import write_report
from fastdarts.runs.build_search import benchmark_of, build
from fastdarts.runs.opening import begin, draw_apart, facts_of, open_folder, run_session, say_what_changed
from fastdarts.runs.plan_search import prepare, too_little
from fastdarts.runs.plans import free_for
from fastdarts.runs.resolved import Resolved
from fastdarts.runs.search_session import PICTURES, SearchReporter
from fastdarts.search import METHODS, Bilevel, Progressive, Search, Stage
from fastdarts.spaces import Space
from fastdarts.spaces.file import to_dict
from fastdarts.steps import CapturedSteps
from fastdarts.steps.stage_timer import StageTimer
from fastdarts.supernet import Network

log = logging.getLogger("fastdarts")


def run(name: str, resolved: Resolved, signals: SignalHandler, world: World | None = None) -> Path:
    """Create or continue the run folder and search; with dry_run only log the plan. Returns the folder's path.

    name   name of the command
    world  the ranks, each of which calls this; rank 0 owns the folder
    """
    world = world or World()
    cores, dataset = world.info.threads(), resolved.dataset
    torch.set_num_threads(resolved.settings.threads)
    benchmark = world.on_rank_zero(lambda: benchmark_of(resolved), lambda _: None)
    folder = _folder(name, resolved, world)
    if folder.saved is not None:
        resolved = resolved.kept(folder.saved["settings"])
    found = world.on_rank_zero(lambda: dataset.images.choose(resolved.settings, folder), Images.splits)
    images = world.on_all_ranks(lambda: found if world.is_main else dataset.images.listed(resolved.settings, found))
    resolved = world.on_all_ranks(lambda: resolved.replaced(image_size=images.side(resolved.settings)))
    free = free_for(resolved.settings, world)
    prepared = world.on_rank_zero(lambda: prepare(resolved, images, free, world, signals))  # before decoding any file
    if resolved.settings.dry_run:
        forecast = world.on_rank_zero(lambda: dataset.forecast(resolved.settings, images, prepared.memory, world))
        log.info(f"{prepared.message}\n{forecast}")
        return folder.path
    with ExitStack() as stack:
        if folder.saved is not None:
            world.on_rank_zero(lambda: stack.enter_context(folder.locked()))
        found = world.on_rank_zero(lambda: images.ready(resolved.settings, cores, folder.saved is not None), Images.splits)
        images = found if world.is_main else images.taking(found)
        if images.excluded:
            prepared = world.on_rank_zero(lambda: prepare(resolved, images, free, world, signals))
        memory, plan = prepared.memory, prepared.message
        resolved = resolved.replaced(batch_size=prepared.batch_size)
        settings = resolved.settings
        stack.enter_context(steps.memory_errors_explained(lambda: too_little(resolved, images, memory, free, world, signals)))
        saved = None if folder.saved is None else folder.saved.get("input")
        options = {"threads": cores, "saved": saved, "reserved": memory, "pictures": PICTURES, "world": world}
        loaders = stack.enter_context(closing(dataset.open_input(settings, images, **options)))
        stages = StageTimer() if world.is_main else None
        search = _start(resolved, images, loaders, world, stages)
        if folder.saved is None:
            more = {"input": loaders.facts, "ranks": world.size}
            world.on_rank_zero(lambda: begin(stack.enter_context, _facts(name, resolved, images) | more, images, folder))
        if world.is_main:
            stack.enter_context(engine.log_to(folder["log.txt"]))
        log.info(plan)
        log.info(f"run folder {folder.path}, {provenance.commit()}")
        log.info(loaders.message)
        say_what_changed(folder, settings.threads, settings.sync_bn, world)
        more = {"network": dataset.stem, "report": write_report, "benchmark": benchmark, "stages": stages}
        reporter = SearchReporter(search, folder, settings, loaders.pictures, **more)
        session = Session(search, folder, settings, reporter, files=images.index.files, signals=signals, world=world)
        run_session(session)
        log.info(f"{search.result()}\nreport {folder['report.html']}")
        return folder.path


def _folder(command: str, resolved: Resolved, world: World) -> RunFolder:
    """Open the run folder on rank 0. Raises RunFolderError, also if the run began with other candidates."""
    settings, space = resolved.settings, resolved.space

    def check(folder: RunFolder) -> None:
        if (folder.saved or {}).get("space", to_dict(space)) != to_dict(space):
            raise RunFolderError(
                f"--space {settings.space}: its candidates are not those that {folder.path} started with: restore the file, "
                "or choose another folder"
            )

    return open_folder(command, settings.save, settings.objective, settings, world, check)


def _start(resolved: Resolved, images: Images, loaders: Input, world: World, timer: StageTimer | None) -> Search:
    """Create the search, with equal weights on all ranks; `timer` follows its steps."""
    settings = resolved.settings

    def make(space: Space, stage: Stage) -> tuple[Network, Objective]:
        supernet, objective = build(resolved, len(images.index.classes), stage, space)
        supernet.to(settings.device).to(memory_format=torch.channels_last)
        objective.to(settings.device)
        if settings.sync_bn and not world.is_single:
            supernet.synchronise(world)
        draw_apart(world)
        return supernet, objective

    def captured(bilevel: Bilevel) -> CapturedSteps:
        return CapturedSteps(bilevel if timer is None else timer.follow(bilevel), settings.cuda_graph)

    stages = Progressive(resolved.stages, make, settings.seed)
    supernet, objective = stages.begin(0, resolved.space)
    search = Search(
        supernet,
        objective,
        loaders.train,
        loaders.val,
        settings,
        eval_loader=loaders.evaluation,
        ranks=None if world.is_single else world,
        captured=captured,
        method=METHODS[settings.method],
        progressive=stages if settings.progressive else None,
    )
    world.broadcast([*search.named_tensors().values(), *supernet.buffers(), *objective.buffers()])
    return search


def _facts(command: str, resolved: Resolved, images: Images) -> dict[str, Any]:
    """Return the content of settings.json."""
    space = resolved.space
    return facts_of(command, resolved.settings, images, is_sample=resolved.settings.data is None) | {
        "space": to_dict(space),
        "candidates": {kind: space.candidates(kind) for kind in space.kinds},
    }
