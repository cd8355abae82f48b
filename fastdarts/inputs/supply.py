"""How image files become batches: from a cache, by DALI or by torchvision; one choice for all loaders of a run."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdarts.data import (
    Cache,
    CacheEvalLoader,
    CacheLayout,
    CacheLoader,
    DaliLoader,
    DataError,
    EvalLoader,
    FolderLoader,
    ImageIndex,
    Loader,
    dali,
    placement,
)
from fastdarts.data.crop import kept_side, short_side
from fastdarts.data.decode import header_size, pillow_warnings
from fastdarts.engine import World, now_and_then
from fastdarts.inputs.batches import common_of
from fastdarts.inputs.options import FileOptions
from fastdarts.protocols import Batches
from fastdarts.settings import ConfigError

FORMER = "dali-reader"  # a route of runs that an earlier version began
SAMPLED = 200  # files whose headers are sampled to estimate the cache size
log = logging.getLogger("fastdarts")


class Group(NamedTuple):
    """Images of one index that a run uses.

    numbers  int64 (N,)
    sizes    int32 (len(index), 2) by image number; None before they are measured
    cropped  random crops are taken of them, not the centre crop alone
    """

    index: ImageIndex
    numbers: Tensor
    sizes: Tensor | None
    cropped: bool = True

    def short(self, settings: FileOptions) -> int:
        """Return the short side of the cached images: for centre crops alone, that of evaluation, so pixels stay the same."""
        if not self.cropped:
            return short_side(settings.image_size)
        return settings.cache_size or kept_side(settings.image_size)

    def layout(self, settings: FileOptions) -> CacheLayout:
        """Return the layout of a cache of the images."""
        if self.sizes is None:
            raise ValueError("the images have no sizes: call `ready` first")
        return CacheLayout.of(self.index, self.numbers, self.sizes[self.numbers], self.short(settings))


class Supply(NamedTuple):
    """Makers of loaders and evaluation passes.

    loader      (number of the group, images, **data.loader.Common) -> Loader
    evaluation  (number of the group, images) -> evaluation pass
    facts       entries of settings.json: the route and its details
    """

    loader: Callable[..., Loader]
    evaluation: Callable[[int, Tensor], Batches]
    facts: dict[str, Any]

    @property
    def message(self) -> str:
        return "input: {route}, --cache {cache}".format(**self.facts)


def forecast(settings: FileOptions, groups: list[Group], reserved: int, world: World) -> str:
    """Describe the expected supply, from the headers of SAMPLED files of each group. Arguments as in open_supply.

    Called by one rank. Files without a header are skipped, since a run excludes them. Raises ConfigError and DataError for an
    impossible choice, DataError if no file has a header.
    """
    place = _place(settings, sum(_estimate(settings, group) for group in groups), None, reserved, world)
    return place.message if place.where != "off" else f"{place.message}; {_route(settings, None)[1]}"


def _estimate(settings: FileOptions, group: Group) -> int:
    """Return the bytes of a group's images in a cache, estimated from some of them."""
    index, chosen = group.index, group.numbers
    found = []
    with pillow_warnings():
        for number in chosen[:: -(-len(chosen) // SAMPLED)].tolist():
            size = header_size(index.path(number))
            if not isinstance(size, str):
                found.append((number, size))
    if not found:
        raise DataError(f"none of the checked files under {index.root} is an image")
    numbers, sizes = (torch.tensor(column) for column in zip(*found, strict=True))
    return len(chosen) * CacheLayout.of(index, numbers, sizes, group.short(settings)).bytes // len(found)


def open_supply(
    settings: FileOptions,
    groups: list[Group],
    *,
    threads: int,
    saved: Mapping[str, Any] | None,
    reserved: int,
    world: World,
) -> Supply:
    """Choose the supply of all groups and fill the cache. Logs the choice and its reason. Collective: rank 0 chooses for all.

    Every rank sees every image over the epochs, so each keeps all of them, in its GPU's memory or in RAM; a file in
    --cache_folder is written once and shared by the ranks of a node.

    groups    with sizes
    threads   threads that decode into the cache before the run
    saved     `facts` of the continued run: "auto" keeps its choice if possible, a different choice is logged
    reserved  bytes of device memory used by the run itself
    Raises ConfigError and DataError for an impossible choice, DataError for a file that no longer decodes.
    """
    layouts = [group.layout(settings) for group in groups]
    place = world.on_rank_zero(
        lambda: _place(settings, sum(layout.bytes for layout in layouts), saved, reserved, world, layouts)
    )
    common = common_of(settings, world)
    log.info(place.message)
    if place.where == "off":
        own = world.on_all_ranks(lambda: _route(settings, saved))
        route, message = world.on_rank_zero(lambda: own)
        log.info(message)
        workers = settings.workers if settings.workers >= 0 else max(1, min(8, threads - 1))
        supply = _decoding([group.index for group in groups], route, workers, common)
    else:
        supply = world.on_all_ranks(lambda: _cached(settings, layouts, place.where, threads, common))
    if saved and saved["route"] != supply.facts["route"]:
        before, now = saved["route"], supply.facts["route"]
        log.warning(f"the run continues with images from {now} instead of {before}: {_same({before, now})}")
    return supply


def _decoding(indices: list[ImageIndex], route: str, workers: int, common: dict[str, Any]) -> Supply:
    """Decode files during the run."""
    makers: dict[str, Callable[..., Loader]] = {
        "torchvision": partial(FolderLoader, workers=workers),
        "dali": partial(DaliLoader, threads=max(1, workers)),
    }

    def loader(group: int, numbers: Tensor, **order: Any) -> Loader:
        return makers[route](indices[group], numbers, **order)

    def evaluation(group: int, numbers: Tensor) -> Batches:
        return EvalLoader(indices[group], numbers, workers=workers, **common)

    return Supply(loader, evaluation, {"route": route, "cache": "off"})


def _cached(settings: FileOptions, layouts: list[CacheLayout], where: str, threads: int, common: dict[str, Any]) -> Supply:
    """Fill the caches."""
    device = settings.device if where == "device" else "cpu"
    progress = now_and_then("decoding images into the cache")
    make = partial(Cache.make, device=device, folder=_folder(settings), threads=threads, progress=progress)
    caches = [make(layout) for layout in layouts]

    def loader(group: int, numbers: Tensor, **order: Any) -> Loader:
        return CacheLoader(caches[group], numbers, **order)

    def evaluation(group: int, numbers: Tensor) -> Batches:
        return CacheEvalLoader(caches[group], numbers, **common)

    short = settings.cache_size or kept_side(settings.image_size)
    size = sum(layout.bytes for layout in layouts)
    return Supply(loader, evaluation, {"route": "cache", "cache": where, "bytes": size, "short_side": short})


def _same(routes: set[str]) -> str:
    """Describe which properties two different routes share."""
    if FORMER in routes:
        return f"order and flips stay the same, boxes differ; {FORMER} is no longer a loader"
    rest = "pixels differ, because boxes are cropped from reduced images" if "cache" in routes else "pixels differ by rounding"
    return f"order, boxes and flips stay the same, {rest}"


def _folder(settings: FileOptions) -> Path | None:
    return Path(settings.cache_folder) if settings.cache_folder else None


def _place(
    settings: FileOptions,
    size: int,
    saved: Mapping[str, Any] | None,
    reserved: int,
    world: World,
    layouts: list[CacheLayout] | None = None,
) -> placement.Place:
    """Choose the place of caches of `size` bytes in all; `layouts` find existing files."""
    asked = settings.cache
    if asked == "auto" and settings.loader != "auto":
        unused = "; --cache_folder is not used" if settings.cache_folder else ""
        return placement.Place("off", f"no cache: --loader {settings.loader} was requested{unused}")
    if asked == "auto" and saved and saved["cache"] == "off":
        return placement.Place("off", "no cache: the run started without one")
    folder = _folder(settings)
    taken = sum(layout.room_taken(folder) for layout in layouts or ()) if folder is not None and asked != "off" else 0
    device, copies = torch.device(settings.device), world.info.local_size
    place = placement.choose(asked, size, device, folder, taken, reserved, copies)
    if place.where != "off" and settings.loader != "auto":
        return place._replace(message=f"{place.message}; --loader {settings.loader} is not used")
    return place


def _route(settings: FileOptions, saved: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return the decoder used without a cache, and a sentence with the reason."""
    device = torch.device(settings.device)
    route = settings.loader
    if route == "auto" and saved and saved["route"] not in ("cache", FORMER):
        route = saved["route"]
    if route == "torchvision":
        return route, "loader: torchvision"
    if route == "auto" and device.type != "cuda":
        return "torchvision", "loader: torchvision (decodes with Pillow); --loader dali uses DALI on a CPU"
    why_not = dali.unavailable(device)
    if route == "dali":
        if why_not:
            raise ConfigError(f"--loader {route}: {why_not}")
        return route, f"loader: {route}"
    return ("torchvision", f"loader: torchvision; not DALI: {why_not}") if why_not else ("dali", "loader: DALI")
