"""Base classes of all loaders and evaluation passes.

Notation: N images a batch on this rank, S pixels a side.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from typing import Any, NotRequired, Self, TypedDict, Unpack

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.data.crop import SCALE
from fastdarts.data.prefetch import STALLED, Activity, prefetched
from fastdarts.data.sampler import BatchSampler, shuffled
from fastdarts.data.view import View
from fastdarts.ops.philox import Stream


class Common(TypedDict):
    """Arguments common to all loaders.

    stream      random stream of the split
    seed        for order, boxes and flips
    batch_size  images a batch over all ranks; this rank yields N = batch_size / world_size
    image_size  S
    device      device of the batches ("cpu")
    train       False: centre crops without flips; the order stays random (True)
    scale       area of the box as a share of the image's, smallest and largest (0.08, 1)
    rank, world_size  of this process (0, 1)
    timeout     seconds without a batch after which input counts as stuck (300)
    start       number of the first batch (0)
    """

    stream: Stream
    seed: int
    batch_size: int
    image_size: int
    device: NotRequired[str | torch.device]
    train: NotRequired[bool]
    scale: NotRequired[tuple[float, float]]
    rank: NotRequired[int]
    world_size: NotRequired[int]
    timeout: NotRequired[float]
    start: NotRequired[int]


class EvalCommon(TypedDict):
    """Arguments common to all evaluation passes; see Common."""

    batch_size: int
    image_size: int
    device: NotRequired[str | torch.device]
    rank: NotRequired[int]
    world_size: NotRequired[int]
    timeout: NotRequired[float]


class Loader(ABC):
    """Infinite iterator of training batches: next(loader) is Batch number loader.batch of BatchSampler's sequence.

    Order, boxes and flips depend on (seed, stream, epoch, image) only: not on the loader class, the workers or world_size.
    Images are random-resized crops (bilinear, antialiased), uint8 NHWC. Batch.flip requests the flip; the loader does not
    apply it. A thread prefetches batches from the first next() on.
    """

    def __init__(self, indices: Tensor, **common: Unpack[Common]) -> None:
        """Take int64 `indices` of images. Raises DataError if the batch size does not fit their number or world_size."""
        split: dict[str, Any] = {
            name: common[name] for name in ("stream", "seed", "batch_size", "rank", "world_size") if name in common
        }
        self.sampler = BatchSampler(indices, **split)
        self.view = View(
            common["image_size"], common["seed"], common["stream"], common.get("train", True), common.get("scale", SCALE)
        )
        self.device = torch.device(common.get("device", "cpu"))
        self.timeout = common.get("timeout", STALLED)
        self.batch = common.get("start", 0)
        self._iterator: Generator[Batch] | None = None

    @abstractmethod
    def _produce(self, number: int, stage: Activity) -> Iterator[Batch]:
        """Yield the batches from `number` on, on any device. Must not reference the loader: its deletion ends the iteration."""

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return len(self.sampler)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """Return the next batch, on `device`.

        Raises DataError, which names the file, if an image cannot be decoded, and InputStopped on a timeout; the next call
        retries the same batch.
        """
        if self._iterator is None:
            stage = Activity()
            self._iterator = prefetched(self._produce(self.batch, stage), self.device, stage, self.timeout)
        try:
            batch = next(self._iterator)
        except BaseException:  # an interrupt ends the iterator too
            self.close()
            raise
        self.batch += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches consumed, without prefetched ones."""
        return {"batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with exactly the next batch, whatever loader class, workers or world_size saved the state."""
        self.close()
        self.batch = state["batch"]

    def close(self) -> None:
        """Stop prefetching; a later next() restarts it at the same batch."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Evaluation(ABC):
    """One pass over a split: short side resized to S * 256 / 224, centre crop, no flip.

    Every `for` restarts in the same random order. The order is random because an index is sorted by class and a batch should
    mix classes, for BatchNorm statistics and for users of the first batch only. Batches hold `batch_size` images over all
    ranks; rank r gets r, r + world_size, ... The last batch may be smaller, and a rank without images of it skips it.
    """

    def __init__(
        self,
        indices: Tensor,
        *,
        batch_size: int,
        image_size: int,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world_size: int = 1,
        timeout: float = STALLED,
    ) -> None:
        """Take the arguments of Common."""
        batches = [part[rank::world_size] for part in shuffled(indices.sort().values, Stream.EVAL).split(batch_size)]
        self.batches = [part for part in batches if len(part)]
        self.view = View(image_size, 0, Stream.EVAL, False, SCALE)
        self.device, self.timeout = torch.device(device), timeout

    @abstractmethod
    def _produce(self, stage: Activity) -> Iterator[Batch]:
        """Yield one batch for each of `batches`, on any device."""

    def __len__(self) -> int:
        """Return the number of batches of a pass on this rank."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """Start a pass. Raises DataError, naming the file, for an image that cannot be decoded, InputStopped on a timeout."""
        stage = Activity()
        return prefetched(self._produce(stage), self.device, stage, self.timeout)
