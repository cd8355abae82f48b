"""Input of a search, a retraining and an evaluation, and the arguments common to its loaders."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.data import BatchSampler, Loader
from fastdarts.engine import World
from fastdarts.inputs.images import Images
from fastdarts.inputs.options import InputOptions, TrainingOptions
from fastdarts.ops.philox import Stream
from fastdarts.protocols import Batches
from fastdarts.settings import AnySearch, groups


class Input(NamedTuple):
    """Both training loaders and the evaluation pass of a search, on its device.

    pictures  one batch of a few images of the validation split, cropped as in `evaluation`, on the CPU
    facts     entries of settings.json: the route (source of the batches) and its details
    message   the same as a log line
    """

    train: Loader
    val: Loader
    evaluation: Batches
    pictures: Iterable[Batch]
    facts: dict[str, Any]
    message: str

    def close(self) -> None:
        """Close the loaders."""
        self.train.close()
        self.val.close()


def steps_of_an_epoch(settings: groups.Optimisation, images: Images, ranks: int = 1) -> int:
    """Return the batches per epoch. Raises DataError if a split is smaller than a batch or ranks cannot share one equally."""
    order = {"seed": settings.seed, "batch_size": settings.batch_size, "world_size": ranks}
    parts = ((images.train, Stream.TRAIN), (images.val, Stream.VAL))
    train, _ = (BatchSampler(part, stream=stream, **order) for part, stream in parts)
    return len(train)


def common_of(settings: InputOptions, world: World) -> dict[str, Any]:
    """Return the arguments common to all loaders of a rank."""
    return {
        "rank": world.rank,
        "world_size": world.size,
        "batch_size": settings.batch_size,
        "image_size": settings.image_size,
        "device": settings.device,
        "timeout": settings.input_timeout,
    }


def orders(settings: AnySearch, images: Images, common: dict[str, Any]) -> list[tuple[Tensor, dict[str, Any]]]:
    """Return, for both splits, their images and the arguments of their loaders."""
    splits = ((images.train, Stream.TRAIN), (images.val, Stream.VAL))
    return [(split, {"stream": stream, "seed": settings.seed} | common) for split, stream in splits]


def training_order(settings: TrainingOptions, world: World) -> dict[str, Any]:
    """Return the arguments of a retraining's loader."""
    return {"stream": Stream.TRAIN, "seed": settings.seed} | common_of(settings, world)
