"""Memory and batch size of a run before it starts, whatever it trains."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from math import lcm
from typing import Any, NamedTuple, Protocol

from fastdarts import engine, steps
from fastdarts.data import placement
from fastdarts.engine import World
from fastdarts.settings import ConfigError, groups

Peak = Callable[[int], int]  # bytes of a rank's step with that batch size over all ranks
log = logging.getLogger("fastdarts")


class SharedBatches(Protocol):
    """Settings on the batches that ranks share."""

    @property
    def data(self) -> str | None: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def sync_bn(self) -> bool: ...
    @property
    def threads(self) -> int: ...


class Free(NamedTuple):
    """Free bytes per rank on its device, and the device."""

    bytes: int
    device: str

    def __str__(self) -> str:
        return f"{placement.gib(self.bytes)} free on {self.device}"


class Plan(NamedTuple):
    """Batch size (resolved if automatic), bytes of a rank's step, and the plan's text."""

    batch_size: int
    memory: int
    message: str


def free_for(settings: groups.Device, world: World) -> Free:
    """Return the minimum of the ranks' free memory; ranks on one device share it equally."""
    info = world.info
    there = (info.rank - info.local_rank, settings.device)  # a node is identified by its first rank
    every = world.gather((there, steps.free_bytes(settings.device)))
    sharing = Counter(where for where, _ in every)
    return Free(min(free // sharing[where] for where, free in every), settings.device)


def automatic(peak: Peak, free: Free, most: int, of: str, world: World) -> int:
    """Return the largest batch size that fits into free memory and `most` images, those `of` a split.

    Raises ConfigError if none fits.
    """
    multiple, fits = f"multiple of {_multiple(world)}", f"in {placement.SHARE:.0%} of the {free}"
    found = _largest(peak, free, most, world)
    if not found:
        raise ConfigError(f"--batch_size auto: no {multiple} fits {fits} and in {of} of {most} images; give a number")
    log.info(f"--batch_size auto: {found} images, the largest {multiple} that fits {fits} and in {of} of {most} images")
    return found


def out_of_memory(peak: Peak, batch_size: int, memory: int, free: Free, world: World, smaller: str) -> str:
    """Return the remedy after running out of memory, with figures; smaller: advice if no smaller batch fits."""
    largest = _largest(peak, free, batch_size - 1, world)
    share, were = batch_size // world.size, placement.gib(free.bytes)
    taken = f"a step of {share} images needs about {placement.gib(memory)}, {were} were free at the start"
    if not largest:
        return f"{taken}: no smaller batch fits either; use {smaller}"
    return f"{taken}: the largest batch that fits is --batch_size {largest}"


def _largest(peak: Peak, free: Free, most: int, world: World) -> int:
    """Return the largest batch over all ranks, at most `most`, whose step fits into free memory; 0 if none fits."""
    return steps.largest_batch(peak, int(placement.SHARE * free.bytes), most, _multiple(world))


def _multiple(world: World) -> int:
    """Return the step of the batch sizes to try."""
    return lcm(steps.STEP, world.size)


def check_profile(profile: str | None, steps: int) -> None:
    """Raise ConfigError if --profile names a step beyond the last one."""
    if profile is not None and (last := engine.ProfileRange.parse(profile).last) > steps:
        raise ConfigError(f"--profile {profile}: the run has only {steps} steps, no step {last}")


def shares(settings: SharedBatches, world: World) -> list[str]:
    """Return the plan's lines on ranks."""
    if world.is_single:
        return ["note: --sync_bn has no effect with a single process"] if settings.sync_bn else []
    share = settings.batch_size // world.size
    norm = f"BatchNorm over all {settings.batch_size}" if settings.sync_bn else f"BatchNorm over each rank's {share}"
    return [
        f"ranks {world.size} by {world.backend}, {settings.threads} threads each: each takes {share} of every "
        f"{settings.batch_size} images; --learning_rate {settings.learning_rate} applies to the whole batch, unscaled",
        f"{norm}; running statistics are averaged at every step",
    ]


def rate_note(settings: SharedBatches, published: Mapping[str, Any]) -> list[str]:
    """Return the plan's line on a batch size that does not match the published learning rate, if so."""
    batch, rate = published["batch_size"], published["learning_rate"]
    if settings.data is None or settings.batch_size == batch or settings.learning_rate != rate:
        return []
    scaled = f"scaled linearly, {settings.batch_size} images would use {rate * settings.batch_size / batch:.3g}"
    return [f"note: --learning_rate {rate} was published for batch {batch}; {scaled}"]
