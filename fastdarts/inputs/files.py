"""Input from image files, for searches, retrainings and evaluations."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastdarts.data import EvalLoader
from fastdarts.engine import World
from fastdarts.inputs.batches import Input, common_of, orders, training_order
from fastdarts.inputs.chosen import Splits
from fastdarts.inputs.images import ImageFiles
from fastdarts.inputs.options import TestOptions, TrainingOptions
from fastdarts.inputs.supply import Group, open_supply
from fastdarts.inputs.supply import forecast as forecast_supply
from fastdarts.inputs.training import TestFiles, TestInput, TrainingFiles, TrainingInput
from fastdarts.settings import SearchImagenetSettings


def forecast(settings: SearchImagenetSettings, images: ImageFiles, reserved: int, world: World) -> str:
    """Describe the expected input route. Called by one rank. Arguments as in open_input, errors as in inputs.supply."""
    return forecast_supply(settings, [_group(images)], reserved, world)


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
    """Open the loaders of a search and fill the cache, if any. Collective.

    images    with sizes
    pictures  number of images in Input.pictures
    world     the ranks that share each batch
    The other arguments, and errors, as in inputs.supply.open_supply.
    """
    world = world or World()
    supply = open_supply(settings, [_group(images)], threads=threads, saved=saved, reserved=reserved, world=world)
    common = common_of(settings, world)

    def opened() -> Input:
        train, val = (supply.loader(0, split, **order) for split, order in orders(settings, images, common))
        size = settings.image_size
        small = EvalLoader(images.index, images.val[:pictures], batch_size=pictures, image_size=size, workers=0)
        return Input(train, val, supply.evaluation(0, images.val), small, supply.facts, supply.message)

    return world.on_all_ranks(opened)


def forecast_training(settings: TrainingOptions, images: TrainingFiles, reserved: int, world: World) -> str:
    """Describe the expected input route of a retraining. Arguments as in open_training."""
    return forecast_supply(settings, _groups(images), reserved, world)


def open_training(
    settings: TrainingOptions,
    images: TrainingFiles,
    *,
    threads: int,
    saved: Mapping[str, Any] | None,
    reserved: int,
    world: World | None = None,
) -> TrainingInput:
    """Open the input of a retraining and fill the cache, if any: of training and test images, or of none. Collective.

    Cached test images have the short side of evaluation, so that their crops are those of torchvision. Without a cache,
    torchvision decodes them. Arguments and errors as in open_input.
    """
    world = world or World()
    supply = open_supply(settings, _groups(images), threads=threads, saved=saved, reserved=reserved, world=world)

    def opened() -> TrainingInput:
        train = supply.loader(0, images.train, **training_order(settings, world))
        val = supply.evaluation(0, images.val) if len(images.val) else None
        test = None if images.test is None else supply.evaluation(1, images.test.numbers)
        return TrainingInput(train, val, test, supply.facts, supply.message)

    return world.on_all_ranks(opened)


def open_test(
    settings: TestOptions, *, threads: int, world: World | None = None, classes: Sequence[str] | None = None
) -> TestInput:
    """Open a pass over the test images alone, decoded by torchvision. Collective: rank 0 verifies the files for all.

    classes  the training images' classes; None: those of ROOT/train, or the test images' own
    Raises ConfigError, DataError.
    """
    world = world or World()
    found = world.on_rank_zero(lambda: TestFiles.find(settings, classes).ready(settings, threads, False), TestFiles.splits)
    images = world.on_all_ranks(lambda: found if world.is_main else _here(settings, classes, found))
    size = images.side(settings)
    workers = settings.workers if settings.workers >= 0 else max(1, min(8, threads - 1))
    common: dict[str, Any] = common_of(settings, world) | {"image_size": size}
    batches = world.on_all_ranks(lambda: EvalLoader(images.index, images.numbers, workers=workers, **common))
    message = f"{len(images.numbers)} test images of {images.index.root}, decoded by torchvision"
    return TestInput(batches, images, message)


def _here(settings: TestOptions, classes: Sequence[str] | None, splits: Splits) -> TestFiles:
    return TestFiles.found_here(TestFiles.find(settings, classes).index, splits)


def _group(images: ImageFiles | TrainingFiles) -> Group:
    return Group(images.index, images.chosen, images.sizes)


def _groups(images: TrainingFiles) -> list[Group]:
    """Return the training images and the test images, if any."""
    test = images.test
    return [_group(images)] if test is None else [_group(images), Group(test.index, test.numbers, test.sizes, cropped=False)]
