"""Input from image files: cache, DALI or torchvision."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

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
    Loader,
    dali,
    placement,
)
from fastdarts.data.crop import kept_side
from fastdarts.data.decode import header_size, pillow_warnings
from fastdarts.engine import World, now_and_then
from fastdarts.inputs.batches import Input, common_of, orders
from fastdarts.inputs.images import ImageFiles
from fastdarts.protocols import Batches
from fastdarts.settings import ConfigError, SearchImagenetSettings, groups

FORMER = "dali-reader"  # a route of runs that an earlier version began
SAMPLED = 200  # files whose headers are sampled to estimate the cache size
log = logging.getLogger("fastdarts")

Made = tuple[Loader, Loader, Batches, dict[str, Any]]  # train, val, evaluation, facts


def forecast(settings: SearchImagenetSettings, images: ImageFiles, reserved: int, world: World) -> str:
    """Describe the expected input route, from the headers of SAMPLED files. Arguments as in open_input.

    Called by one rank. Files without a header are skipped, since a search excludes them. Raises ConfigError and DataError for
    an impossible choice, DataError if no file has a header.
    """
    chosen = torch.cat([images.train, images.val])
    sizes: dict[int, tuple[int, int]] = {}
    with pillow_warnings():
        for number in chosen[:: -(-len(chosen) // SAMPLED)].tolist():
            size = header_size(images.index.path(number))
            if not isinstance(size, str):
                sizes[number] = size
    if not sizes:
        raise DataError(f"none of the checked files under {images.index.root} is an image")
    sampled = _layout(settings, images, torch.tensor(list(sizes)), torch.tensor(list(sizes.values())))
    place = _place(settings, len(chosen) * sampled.bytes // len(sizes), None, reserved, world)
    return place.message if place.where != "off" else f"{place.message}; {_route(settings, None)[1]}"


def open_input(
    settings: SearchImagenetSettings,
    images: ImageFiles,
    *,
    threads: int,
    saved: Mapping[str, Any] | None,
    reserved: int,
    pictures: int,
    world: World | None = None,
) -> Input:
    """Open the loaders of a search and fill the cache. Logs the choice and its reason.

    Rank 0 chooses for all. Every rank sees every image over the epochs, so each keeps all of them, in its GPU's memory or in
    RAM; a file in --cache_folder is written once and shared by the ranks of a node.

    images    with sizes
    threads   threads that decode into the cache before the search
    saved     `facts` of the continued run: "auto" keeps its choice if possible, a different choice is logged
    reserved  bytes of device memory used by the search itself
    pictures  number of images in Input.pictures
    world     the ranks that share each batch
    Raises ConfigError and DataError for an impossible choice, DataError for a file that no longer decodes.
    """
    chosen = torch.cat([images.train, images.val])
    if images.sizes is None:
        raise ValueError("the images have no sizes: call `ready` first")
    layout = _layout(settings, images, chosen, images.sizes[chosen])
    world = world or World()
    place = world.on_rank_zero(lambda: _place(settings, layout.bytes, saved, reserved, world, layout))
    common = common_of(settings, world)
    log.info(place.message)
    if place.where == "off":
        own = world.on_all_ranks(lambda: _route(settings, saved))
        route, message = world.on_rank_zero(lambda: own)
        log.info(message)
        workers = settings.workers if settings.workers >= 0 else max(1, min(8, threads - 1))
        make = partial(_decoding, settings, images, route, workers, common)
    else:
        make = partial(_cached, settings, images, layout, place.where, threads, common)
    train, val, evaluation, facts = world.on_all_ranks(make)
    small = EvalLoader(images.index, images.val[:pictures], batch_size=pictures, image_size=settings.image_size, workers=0)
    opened = Input(train, val, evaluation, small, facts, "input: {route}, --cache {cache}".format(**facts))
    if saved and saved["route"] != opened.facts["route"]:
        before, now = saved["route"], opened.facts["route"]
        log.warning(f"the run continues with images from {now} instead of {before}: {_same({before, now})}")
    return opened


def _decoding(settings: SearchImagenetSettings, images: ImageFiles, route: str, workers: int, common: dict[str, Any]) -> Made:
    """Make loaders that decode files during the search."""
    make = {"torchvision": _torchvision, "dali": _dali}[route]
    train, val = (make(images, split, workers, order) for split, order in orders(settings, images, common))
    evaluation = EvalLoader(images.index, images.val, workers=workers, **common)
    return train, val, evaluation, {"route": route, "cache": "off"}


def _cached(
    settings: SearchImagenetSettings, images: ImageFiles, layout: CacheLayout, where: str, threads: int, common: dict[str, Any]
) -> Made:
    """Fill the cache and make its loaders."""
    device = settings.device if where == "device" else "cpu"
    progress = now_and_then("decoding images into the cache")
    cache = Cache.make(layout, device, folder=_folder(settings), threads=threads, progress=progress)
    train, val = (CacheLoader(cache, split, **order) for split, order in orders(settings, images, common))
    facts = {"route": "cache", "cache": where, "bytes": layout.bytes, "short_side": _short(settings)}
    return train, val, CacheEvalLoader(cache, images.val, **common), facts


def _same(routes: set[str]) -> str:
    """Describe which properties two different routes share."""
    if FORMER in routes:
        return f"order and flips stay the same, boxes differ; {FORMER} is no longer a loader"
    rest = "pixels differ, because boxes are cropped from reduced images" if "cache" in routes else "pixels differ by rounding"
    return f"order, boxes and flips stay the same, {rest}"


def _torchvision(images: ImageFiles, split: Tensor, workers: int, order: dict[str, Any]) -> Loader:
    return FolderLoader(images.index, split, workers=workers, **order)


def _dali(images: ImageFiles, split: Tensor, workers: int, order: dict[str, Any]) -> Loader:
    return DaliLoader(images.index, split, threads=max(1, workers), **order)


def _short(settings: groups.ImageFiles) -> int:
    return settings.cache_size or kept_side(settings.image_size)


def _folder(settings: groups.ImageFiles) -> Path | None:
    return Path(settings.cache_folder) if settings.cache_folder else None


def _layout(settings: groups.ImageFiles, images: ImageFiles, chosen: Tensor, sizes: Tensor) -> CacheLayout:
    return CacheLayout.of(images.index, chosen, sizes, _short(settings))


def _place(
    settings: SearchImagenetSettings,
    size: int,
    saved: Mapping[str, Any] | None,
    reserved: int,
    world: World,
    layout: CacheLayout | None = None,
) -> placement.Place:
    """Choose the place of a cache of `size` bytes; `layout` finds an existing file."""
    asked = settings.cache
    if asked == "auto" and settings.loader != "auto":
        unused = "; --cache_folder is not used" if settings.cache_folder else ""
        return placement.Place("off", f"no cache: --loader {settings.loader} was requested{unused}")
    if asked == "auto" and saved and saved["cache"] == "off":
        return placement.Place("off", "no cache: the run started without one")
    folder = _folder(settings)
    taken = layout.room_taken(folder) if layout is not None and folder is not None and asked != "off" else 0
    device, copies = torch.device(settings.device), world.info.local_size
    place = placement.choose(asked, size, device, folder, taken, reserved, copies)
    if place.where != "off" and settings.loader != "auto":
        return place._replace(message=f"{place.message}; --loader {settings.loader} is not used")
    return place


def _route(settings: SearchImagenetSettings, saved: Mapping[str, Any] | None) -> tuple[str, str]:
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
