"""Run a retraining: run folder, images, plan, input, network, session."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from fastdarts import engine, provenance, steps
from fastdarts.engine import RunFolder, Session, SignalHandler, World
from fastdarts.inputs.training import TrainingImages, TrainingInput
from fastdarts.report import write_retrain_report
from fastdarts.runs.build_retrain import network_of, schedule_of, update_of
from fastdarts.runs.opening import begin, draw_apart, facts_of, open_folder, run_session, say_what_changed
from fastdarts.runs.plan_retrain import prepare, too_little
from fastdarts.runs.plans import free_for
from fastdarts.runs.resolved import ResolvedRetrain
from fastdarts.runs.retrain_session import RetrainReporter
from fastdarts.steps import CapturedSteps
from fastdarts.steps.stage_timer import StageTimer
from fastdarts.training.trainer import Passes, Trainer
from fastdarts.training.update import WeightUpdate

log = logging.getLogger("fastdarts")


def run(name: str, resolved: ResolvedRetrain, signals: SignalHandler, world: World | None = None) -> Path:
    """Create or continue the run folder and train; with dry_run only log the plan. Returns the folder's path.

    name   name of the command
    world  the ranks, each of which calls this; rank 0 owns the folder
    """
    world = world or World()
    cores, dataset = world.info.threads(), resolved.dataset
    torch.set_num_threads(resolved.settings.threads)
    folder = open_folder(name, resolved.settings.save, resolved.settings.recipe or "", resolved.settings, world)
    if folder.saved is not None:
        resolved = resolved.kept(folder.saved["settings"])
    found = world.on_rank_zero(lambda: dataset.training.choose(resolved.settings, folder), TrainingImages.splits)
    images = world.on_all_ranks(lambda: found if world.is_main else dataset.training.listed(resolved.settings, found))
    resolved = world.on_all_ranks(lambda: resolved.replaced(image_size=images.side(resolved.settings)))
    free = free_for(resolved.settings, world)
    prepared = world.on_rank_zero(lambda: prepare(resolved, images, free, world, signals))  # before decoding any file
    if resolved.settings.dry_run:
        forecast = world.on_rank_zero(lambda: dataset.forecast_training(resolved.settings, images, prepared.memory, world))
        log.info(f"{prepared.message}\n{forecast}")
        return folder.path
    with ExitStack() as stack:
        if folder.saved is not None:
            world.on_rank_zero(lambda: stack.enter_context(folder.locked()))
        begun = folder.saved is not None
        found = world.on_rank_zero(lambda: images.ready(resolved.settings, cores, begun), TrainingImages.splits)
        images = found if world.is_main else images.taking(found)
        if images.left_out:
            prepared = world.on_rank_zero(lambda: prepare(resolved, images, free, world, signals))
        memory = prepared.memory
        resolved = resolved.replaced(batch_size=prepared.batch_size)
        settings = resolved.settings
        stack.enter_context(steps.memory_errors_explained(lambda: too_little(resolved, images, memory, free, world, signals)))
        saved = None if folder.saved is None else folder.saved.get("input")
        options = {"threads": cores, "saved": saved, "reserved": memory, "world": world}
        loaders = stack.enter_context(closing(dataset.open_training(settings, images, **options)))
        timer = StageTimer() if world.is_main else None
        trainer = _start(resolved, images, loaders, world, timer)
        if folder.saved is None:
            facts = facts_of(name, settings, images, is_sample=settings.data is None)
            more = {"input": loaders.facts, "ranks": world.size}
            world.on_rank_zero(lambda: begin(stack.enter_context, facts | more, images, folder))
        if world.is_main:
            stack.enter_context(engine.log_to(folder["log.txt"]))
        log.info(prepared.message)
        log.info(f"run folder {folder.path}, {provenance.commit()}")
        log.info(loaders.message)
        say_what_changed(folder, settings.threads, settings.sync_bn, world)
        reporter = RetrainReporter(trainer, folder, resolved, images.classes, report=write_retrain_report, stages=timer)
        _train(trainer, folder, resolved, reporter, images, signals, world)
        log.info(f"report {folder['report.html']}")
        return folder.path


def _train(
    trainer: Trainer,
    folder: RunFolder,
    resolved: ResolvedRetrain,
    reporter: RetrainReporter,
    images: TrainingImages,
    signals: SignalHandler,
    world: World,
) -> None:
    """Run the session; log what ends it early."""
    judged = "test" if resolved.settings.best_on_test else "valid"

    def top1_error(record: Mapping[str, Any]) -> float | None:
        return 1 - record[judged]["top1"] if record.get(judged) else None

    options: dict[str, Any] = {"files": images.index.files, "signals": signals, "world": world, "criterion": top1_error}
    run_session(Session(trainer, folder, resolved.settings, reporter, **options))


def _start(
    resolved: ResolvedRetrain, images: TrainingImages, loaders: TrainingInput, world: World, timer: StageTimer | None
) -> Trainer:
    """Create the trainer, with equal weights on all ranks; `timer` follows its steps."""
    s, num_classes = resolved.settings, len(images.classes)
    torch.manual_seed(s.seed)
    network = network_of(resolved, num_classes).to(s.device).to(memory_format=torch.channels_last)
    draw_apart(world)
    if s.sync_bn and not world.is_single:
        network.synchronise(world)
    world.broadcast([*network.parameters(), *network.buffers()])
    update = update_of(WeightUpdate, resolved, network, None if world.is_single else world.average)

    def captured(update: WeightUpdate) -> CapturedSteps:
        return CapturedSteps(update if timer is None else timer.follow(update), s.cuda_graph)

    return Trainer(
        update,
        loaders.train,
        epochs=s.epochs,
        num_classes=num_classes,
        schedule=schedule_of(s),
        drop_path=s.drop_path,
        passes=Passes(loaders.val, loaders.test),
        eval_every=s.eval_every,
        ranks=None if world.is_single else world,
        captured=captured,
    )
