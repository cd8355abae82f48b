"""Plan of a search before it starts: its steps, their memory, the batch size that fits."""

from functools import partial

import torch

from fastdarts import steps
from fastdarts.data.prefetch import DEPTH
from fastdarts.engine import SignalHandler, World
from fastdarts.inputs.batches import steps_of_an_epoch
from fastdarts.inputs.images import Images
from fastdarts.objectives import Objective
from fastdarts.runs.build_search import build
from fastdarts.runs.memory_search import search_bytes
from fastdarts.runs.plans import Free, Plan, automatic, check_profile, out_of_memory, rate_note, shares
from fastdarts.runs.resolved import Resolved
from fastdarts.search import METHODS, SoftmaxRelaxation, Stage
from fastdarts.search.methods import settings_of
from fastdarts.search.perturbation import decisions, tuning_stage
from fastdarts.search.progressive import heaviest, moving_epochs
from fastdarts.settings import ConfigError
from fastdarts.spaces import Space
from fastdarts.supernet import Network


def prepare(resolved: Resolved, images: Images, free: Free, world: World, signals: SignalHandler) -> Plan:
    """Plan on one rank. Raises ConfigError and DataError for misfits, Stopped between two counted steps."""
    resolved = resolved.replaced(batch_size=_batch_size(resolved, images, free, world, signals))
    steps = steps_of_an_epoch(resolved.settings, images, world.size)
    memory = _memory(resolved, images, world, signals)
    return Plan(resolved.settings.batch_size, memory, _summary(resolved, images, memory, steps, free, world))


def _on_meta(resolved: Resolved, images: Images, stage: Stage, space: Space | None = None) -> tuple[Network, Objective]:
    with torch.device("meta"):
        return build(resolved, len(images.index.classes), stage, space)


def _memory(resolved: Resolved, images: Images, world: World, signals: SignalHandler) -> int:
    """Estimate the peak bytes of a rank's steps, with prefetched batches, over all stages.

    Raises Stopped, but not while counting a step: an exception in a callback from torch's C++ would end the process.
    """

    def memory(space: Space, stage: Stage) -> int:
        signals.check()
        with signals.deferred():
            return _stage_memory(resolved, images, world, space, stage)

    most = max(memory(each, stage) for stage in resolved.stages for each in heaviest(resolved.space, stage))
    signals.check()
    return most


def _stage_memory(resolved: Resolved, images: Images, world: World, space: Space, stage: Stage) -> int:
    settings, (supernet, objective) = resolved.settings, _on_meta(resolved, images, stage, space)
    # for any method: the difference is negligible, and the method's own may not run on tensors without data
    relaxation = SoftmaxRelaxation(space, edge_normalization=settings.edge_normalization, device="meta")
    share, size = settings.batch_size // world.size, settings.image_size
    try:
        return search_bytes(
            supernet,
            objective,
            relaxation,
            steps.meta_batch(share, size),
            settings.device,
            amp=settings.amp,
            unrolled=settings.unrolled,
            hessian=bool(settings.hessian_every) or settings.early_stop == "eigenvalue",
            prefetched=2 * (DEPTH + 1),
            averaged=not world.is_single,
        )
    except ValueError as error:  # from BatchNorm, for one value per channel
        raise ConfigError(f"--batch_size {settings.batch_size}, --image_size {size}: {error}") from error


def _batch_size(resolved: Resolved, images: Images, free: Free, world: World, signals: SignalHandler) -> int:
    """Return the given batch size, or for "auto" the largest that fits. Raises ConfigError if none fits."""
    if resolved.settings.batch_size:
        return resolved.settings.batch_size
    peak = partial(_peak, resolved, images, world, signals)
    return automatic(peak, free, min(len(images.train), len(images.val)), "the smaller split", world)


def _peak(resolved: Resolved, images: Images, world: World, signals: SignalHandler, batch_size: int) -> int:
    """Return the bytes of a rank's steps with that batch size."""
    return _memory(resolved.replaced(batch_size=batch_size), images, world, signals)


def too_little(resolved: Resolved, images: Images, memory: int, free: Free, world: World, signals: SignalHandler) -> str:
    """Return the remedy after running out of memory, with figures. Ignores signals: a rerun would fail the same way."""
    with signals.deferred():
        peak = partial(_peak, resolved, images, world, SignalHandler())  # handles no signals
        smaller = "smaller images, fewer --init_channels or a larger --partial_channels"
        return out_of_memory(peak, resolved.settings.batch_size, memory, free, world, smaller)


def _summary(resolved: Resolved, images: Images, memory: int, steps: int, free: Free, world: World) -> str:
    """Format the plan in a few lines; memory: bytes of a rank's step; steps: steps per epoch.

    Raises ConfigError for steps that do not exist.
    """
    index, settings, stages = images.index, resolved.settings, resolved.stages
    supernet, _ = _on_meta(resolved, images, stages[0])
    if settings.sync_bn and not world.is_single:
        try:
            supernet.synchronise(world)
        except ValueError as error:  # a custom candidate
            raise ConfigError(f"--sync_bn: {error}") from error
    moving = moving_epochs(stages, settings.epochs)
    passes = settings.batch_size * steps * (settings.epochs + moving)
    of_each = " of each stage" if len(stages) > 1 else ""
    weights = sum(w.numel() for w in supernet.parameters())
    lines = [
        f"method {settings.method} ({METHODS[settings.method].paper}), objective {settings.objective}, "
        f"space {supernet.space.name}, {supernet.num_cells} cells, C = {settings.init_channels}, "
        f"k = {settings.partial_channels}, {weights / 1e6:.2f} M weights, on {settings.device}",
        f"images {len(images.train)} train + {len(images.val)} val of {len(index)} in {len(index.classes)} classes, "
        f"{settings.image_size} px, batch {settings.batch_size}",
        f"steps {steps} an epoch, {steps * settings.epochs} in {settings.epochs} epochs; alpha is updated in the last "
        f"{moving // len(stages)}{of_each} (--begin {settings.begin}); {passes} image passes forward and backward",
        *_stages(stages),
        *METHODS[settings.method].relaxation.plan(supernet.space, settings),
        *_selection(resolved, steps),
        f"memory about {memory / 2**30:.2f} GiB per step, {free.bytes / 2**30:.2f} GiB free"
        + ("" if world.is_single else ", per rank"),
        *shares(settings, world),
    ]
    check_profile(settings.profile, steps * (settings.epochs + _selecting(resolved)))
    if memory > free.bytes:
        lines.append("warning: more memory than is free; --batch_size auto chooses a batch that fits")
    if images.excluded:
        lines.append(f"{len(images.excluded)} files excluded because they cannot be decoded, listed in excluded.txt")
    if not moving:
        lines.append(f"warning: alpha is never updated because --begin ({settings.begin}) >= --epochs ({settings.epochs})")
    return "\n".join([*lines, *_rate(resolved)])


def _rate(resolved: Resolved) -> list[str]:
    """Return the plan's line on a batch size that does not match the published learning rate."""
    settings = resolved.settings
    row = settings_of(settings.method, resolved.dataset.name)
    return rate_note(settings, {name: row.get(name, getattr(type(settings), name)) for name in ("batch_size", "learning_rate")})


def _stages(stages: tuple[Stage, ...]) -> list[str]:
    """Return the plan's line on stages, if there are several."""
    if len(stages) == 1:
        return []
    return [f"stages of {stages[0].epochs} epochs: {'; '.join(map(str, stages))}"]


def _selecting(resolved: Resolved) -> int:
    """Return the number of epochs of a selection by perturbation, 0 without."""
    settings = resolved.settings
    return tuning_stage(settings, resolved.space, resolved.stages[-1]).epochs if settings.select == "perturbation" else 0


def _selection(resolved: Resolved, steps: int) -> list[str]:
    """Return the plan's line on a selection by perturbation, if there is one; steps: steps per epoch."""
    settings, epochs = resolved.settings, _selecting(resolved)
    if not epochs:
        return []
    operations, nodes = decisions(resolved.space)
    inputs = f" and of inputs {nodes} times" if nodes else ""
    rate = settings.select_rate * settings.learning_rate
    return [
        f"then selection by perturbation: {epochs} epochs more, {steps * epochs} steps at learning rate {rate:.3g}; operations "
        f"are decided {operations} times{inputs}, for each kind of cell, on {settings.select_batches or steps} batches"
    ]
