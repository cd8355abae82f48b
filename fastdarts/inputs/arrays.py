"""Input from in-memory images, copied to the run's device once if they fit."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastdarts.data import ArrayEvalLoader, ArrayLoader, ImageArray, Pixels, placement
from fastdarts.data.loader import EvalCommon
from fastdarts.engine import World
from fastdarts.inputs.batches import Input, common_of, orders, training_order
from fastdarts.inputs.images import ImageArrays
from fastdarts.inputs.options import ArrayOptions, InputOptions, TestOptions, TrainingOptions
from fastdarts.inputs.training import TestArrays, TestInput, TrainingArrays, TrainingInput
from fastdarts.settings import SearchCifarSettings


def forecast(settings: SearchCifarSettings, images: ImageArrays, reserved: int, world: World) -> str:
    """Describe where the images will be kept. Arguments as in open_input."""
    return _message(settings, [images.index], _place(settings, [images.index], reserved, world))


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
    place = world.on_rank_zero(lambda: _place(settings, [images.index], reserved, world))
    common = common_of(settings, world)
    array = _pixels(settings, images.index, place)
    train, val = (
        ArrayLoader(array, split, padding=settings.crop_padding, **options)
        for split, options in orders(settings, images, common)
    )
    evaluation = ArrayEvalLoader(array, images.val, **common)
    plain: EvalCommon = {"batch_size": pictures, "image_size": settings.image_size, "device": settings.device}
    small = ArrayEvalLoader(array, images.val[:pictures], **plain)
    return Input(train, val, evaluation, small, _facts([images.index], place), _message(settings, [images.index], place))


def forecast_training(settings: TrainingOptions, images: TrainingArrays, reserved: int, world: World) -> str:
    """Describe where the images of a retraining will be kept. Arguments as in open_training."""
    return _message(settings, _indices(images), _place(settings, _indices(images), reserved, world))


def open_training(
    settings: TrainingOptions,
    images: TrainingArrays,
    *,
    threads: int,
    saved: Mapping[str, Any] | None,
    reserved: int,
    world: World | None = None,
) -> TrainingInput:
    """Open the input of a retraining; arguments as in open_input."""
    world, indices = world or World(), _indices(images)
    place = world.on_rank_zero(lambda: _place(settings, indices, reserved, world))
    common, arrays = common_of(settings, world), [_pixels(settings, index, place) for index in indices]
    train = ArrayLoader(arrays[0], images.train, padding=settings.crop_padding, **training_order(settings, world))
    val = ArrayEvalLoader(arrays[0], images.val, **common) if len(images.val) else None
    test = None if images.test is None else ArrayEvalLoader(arrays[1], images.test.numbers, **common)
    return TrainingInput(train, val, test, _facts(indices, place), _message(settings, indices, place))


def open_test(
    settings: TestOptions, *, threads: int, world: World | None = None, classes: Sequence[str] | None = None
) -> TestInput:
    """Open a pass over the test images alone, on the device. Collective.

    threads  unused
    classes  the training images' classes; None: the test images' own
    Raises ConfigError, DataError.
    """
    world = world or World()
    images = world.on_all_ranks(lambda: TestArrays.find(settings, classes))
    common: dict[str, Any] = common_of(settings, world) | {"image_size": world.on_all_ranks(lambda: images.side(settings))}
    batches = ArrayEvalLoader(_pixels(settings, images.index, "device"), images.numbers, **common)
    return TestInput(batches, images, f"{len(images.numbers)} test images of {images.index.root}")


def _indices(images: TrainingArrays) -> list[ImageArray]:
    """Return the training images and the test images, if any."""
    return [images.index] if images.test is None else [images.index, images.test.index]


def _pixels(settings: InputOptions, index: ImageArray, place: str) -> Pixels:
    return Pixels(index.pixels.to(settings.device if place == "device" else "cpu"), index.labels)


def _size(indices: list[ImageArray]) -> int:
    return sum(index.pixels.nbytes for index in indices)


def _facts(indices: list[ImageArray], place: str) -> dict[str, Any]:
    return {"route": "memory", "place": place, "bytes": _size(indices)}


def _place(settings: InputOptions, indices: list[ImageArray], reserved: int, world: World) -> str:
    """Return "device" if all images fit on a GPU next to the run itself, else "ram", their present place."""
    device = torch.device(settings.device)
    if device.type == "cpu":
        return "ram"
    place = placement.choose("auto", _size(indices), device, reserved=reserved, copies=world.info.local_size)
    return "device" if place.where == "device" else "ram"


def _message(settings: ArrayOptions, indices: list[ImageArray], place: str) -> str:
    where = settings.device if place == "device" else "RAM"
    padding = f"{settings.crop_padding} pixels of black padding" if settings.crop_padding else "no padding"
    side, size, taken = indices[0].side, settings.image_size, placement.gib(_size(indices))
    return f"input: {taken} of images in {where}; crops of {size} of {side} px, {padding}, flips"
