"""Input from in-memory images, copied to the search's device once if they fit."""

from collections.abc import Mapping
from typing import Any

import torch

from fastdarts.data import ArrayEvalLoader, ArrayLoader, Pixels, placement
from fastdarts.data.loader import EvalCommon
from fastdarts.engine import World
from fastdarts.inputs.batches import Input, common_of, orders
from fastdarts.inputs.images import ImageArrays
from fastdarts.settings import SearchCifarSettings


def forecast(settings: SearchCifarSettings, images: ImageArrays, reserved: int, world: World) -> str:
    """Describe where the images will be kept. Arguments as in open_input."""
    return _message(settings, images, _place(settings, images, reserved, world))


def open_input(
    settings: SearchCifarSettings,
    images: ImageArrays,
    *,
    threads: int,
    saved: Mapping[str, Any] | None,
    reserved: int,
    pictures: int,
    world: World | None = None,
) -> Input:
    """Open the loaders of a search. Rank 0 chooses the images' device for all ranks; the choice does not affect the batches.

    threads, saved  unused: nothing is decoded, and there is one route
    reserved        bytes of device memory used by the search itself
    pictures        number of images in Input.pictures
    world           the ranks that share each batch; each holds all images
    """
    world = world or World()
    place = world.on_rank_zero(lambda: _place(settings, images, reserved, world))
    where = settings.device if place == "device" else "cpu"
    common = common_of(settings, world)
    array = Pixels(images.index.pixels.to(where), images.index.labels)
    train, val = (
        ArrayLoader(array, split, padding=settings.crop_padding, **options)
        for split, options in orders(settings, images, common)
    )
    evaluation = ArrayEvalLoader(array, images.val, **common)
    plain: EvalCommon = {"batch_size": pictures, "image_size": settings.image_size, "device": settings.device}
    small = ArrayEvalLoader(array, images.val[:pictures], **plain)
    facts = {"route": "memory", "place": place, "bytes": images.index.pixels.nbytes}
    return Input(train, val, evaluation, small, facts, _message(settings, images, place))


def _place(settings: SearchCifarSettings, images: ImageArrays, reserved: int, world: World) -> str:
    """Return "device" if all images fit on a GPU next to the search, else "ram", their present place."""
    device = torch.device(settings.device)
    if device.type == "cpu":
        return "ram"
    place = placement.choose("auto", images.index.pixels.nbytes, device, reserved=reserved, copies=world.info.local_size)
    return "device" if place.where == "device" else "ram"


def _message(settings: SearchCifarSettings, images: ImageArrays, place: str) -> str:
    where = settings.device if place == "device" else "RAM"
    padding = f"{settings.crop_padding} pixels of black padding" if settings.crop_padding else "no padding"
    side, size = images.index.side, settings.image_size
    taken = placement.gib(images.index.pixels.nbytes)
    return f"input: {taken} of images in {where}; crops of {size} of {side} px, {padding}, flips"
