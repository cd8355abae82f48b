"""Plan of a retraining before it starts: its network, its steps, their memory, the batch size that fits."""

from dataclasses import fields
from functools import partial
from typing import Any

import torch

from fastdarts.data import BatchSampler
from fastdarts.data.prefetch import DEPTH
from fastdarts.engine import SignalHandler, World
from fastdarts.inputs.training import TrainingImages
from fastdarts.ops.philox import Stream
from fastdarts.registry import RETRAININGS
from fastdarts.runs.build_retrain import figures_of, network_of, schedule_of
from fastdarts.runs.memory_retrain import retrain_bytes
from fastdarts.runs.plans import Free, Plan, automatic, check_profile, out_of_memory, rate_note, shares
from fastdarts.runs.resolved import ResolvedRetrain
from fastdarts.settings import ConfigError, RetrainSettings


def prepare(resolved: ResolvedRetrain, images: TrainingImages, free: Free, world: World, signals: SignalHandler) -> Plan:
    """Plan on one rank. Raises ConfigError and DataError for misfits, Stopped between two counted steps."""
    if not resolved.settings.batch_size:
        peak = partial(_peak, resolved, images, world, signals)
        size = automatic(peak, free, len(images.train), "the training images", world)
        resolved = resolved.replaced(batch_size=size)
    s = resolved.settings
    order: dict[str, Any] = {"seed": s.seed, "batch_size": s.batch_size, "world_size": world.size}
    steps = len(BatchSampler(images.train, stream=Stream.TRAIN, **order))
    memory = _peak(resolved, images, world, signals, s.batch_size)
    return Plan(s.batch_size, memory, _summary(resolved, images, memory, steps, free, world))


def _peak(resolved: ResolvedRetrain, images: TrainingImages, world: World, signals: SignalHandler, batch_size: int) -> int:
    """Estimate the peak bytes of a rank's steps, with prefetched batches.

    Raises Stopped, but not while counting a step: an exception in a callback from torch's C++ would end the process.
    """
    s, num_classes = resolved.settings, len(images.classes)
    signals.check()
    with signals.deferred(), torch.device("meta"):
        network = network_of(resolved, num_classes)
        try:
            found = retrain_bytes(resolved, network, batch_size // world.size, DEPTH + 1, world.size)
        except ValueError as error:  # from BatchNorm, for one value per channel
            raise ConfigError(f"--batch_size {batch_size}, --image_size {s.image_size}: {error}") from error
    signals.check()
    return found


def too_little(
    resolved: ResolvedRetrain, images: TrainingImages, memory: int, free: Free, world: World, signals: SignalHandler
) -> str:
    """Return the remedy after running out of memory, with figures. Ignores signals: a rerun would fail the same way."""
    with signals.deferred():
        peak = partial(_peak, resolved, images, world, SignalHandler())  # handles no signals
        return out_of_memory(peak, resolved.settings.batch_size, memory, free, world, "fewer --init_channels or smaller images")


def _summary(resolved: ResolvedRetrain, images: TrainingImages, memory: int, steps: int, free: Free, world: World) -> str:
    """Format the plan in a few lines; memory: bytes of a rank's step; steps: steps per epoch."""
    s, num_classes = resolved.settings, len(images.classes)
    check_profile(s.profile, steps * s.epochs)
    with torch.device("meta"):
        network = network_of(resolved, num_classes)
    figures = figures_of(resolved.architecture, network)
    recipe, last = RETRAININGS[s.recipe or ""], s.epochs - 1
    schedule = schedule_of(s)
    tests = "no test images" if images.test is None else f"{len(images.test.numbers)} test"
    held = f"{len(images.val)} held back, " if len(images.val) else ""
    macs = f"{figures['macs'] / 1e6:.1f} M multiply-adds" if "macs" in figures else "multiply-adds unknown"
    lines = [
        f"recipe {s.recipe} ({recipe.source}){_changed(s)}",
        f"network {s.network}, {s.layers} {'cells of each stage' if s.network == 'nasbench201' else 'cells'}, "
        f"C = {s.init_channels}, {figures['params'] / 1e6:.3f} M parameters"
        + (f" + {figures['params_auxiliary'] / 1e6:.3f} M of the auxiliary head" if network.shape.auxiliary else "")
        + f", {macs}, on {s.device}, {network.computed_by(s.device)}",
        f"images {len(images.train)} train, {held}{tests} in {num_classes} classes, {s.image_size} px, batch {s.batch_size}",
        f"steps {steps} an epoch, {steps * s.epochs} in {s.epochs} epochs; learning rate {schedule(0, s.epochs):.4g} at first, "
        f"{schedule(last, s.epochs):.4g} at last",
        f"memory about {memory / 2**30:.2f} GiB per step, {free.bytes / 2**30:.2f} GiB free"
        + ("" if world.is_single else ", per rank"),
        *shares(s, world),
        *_choice(s, images),
        *rate_note(s, {**{f.name: f.default for f in fields(s)}, **recipe.settings}),
    ]
    if memory > free.bytes:
        lines.append("warning: that is more than is free; --batch_size auto takes what fits")
    if images.left_out:
        lines.append(f"left out {len(images.left_out)} files that cannot be decoded, listed in excluded.txt")
    return "\n".join(lines)


def _choice(s: RetrainSettings, images: TrainingImages) -> list[str]:
    """Return the plan's line on the result, which is not chosen on test images unless asked for."""
    if s.best_on_test:
        if images.test is None:
            raise ConfigError("--best_on_test: there are no test images; --val_fraction holds training images back")
        return ["result: the epoch that is best on the TEST images, as published codes do: optimistic"]
    if len(images.val):
        return [f"result: the last epoch, and the one that is best on the {len(images.val)} images held back"]
    return ["result: the last epoch; --val_fraction holds images back to choose the best one"]


def _changed(s: RetrainSettings) -> str:
    """Return which of the recipe's settings are others."""
    changed = [name for name, value in RETRAININGS[s.recipe or ""].settings.items() if getattr(s, name) != value]
    return f", with other {', '.join(f'--{name}' for name in changed)}" if changed else ""
