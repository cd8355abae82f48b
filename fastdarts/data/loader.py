"""What every source of training batches promises, whatever decodes the images.

Notation: N images a batch on this rank, S pixels a side.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from typing import Any, NotRequired, Self, TypedDict, Unpack

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.data.crop import SCALE
from fastdarts.data.prefetch import STALLED, Stage, ahead
from fastdarts.data.sampler import BatchSampler, shuffled
from fastdarts.data.view import View
from fastdarts.ops.philox import Stream


class Common(TypedDict):
    """Arguments that all loaders share.

    stream      whose images they are
    seed        of order, boxes and flips
    batch_size  images a batch over all ranks; this rank yields N = batch_size / world_size
    image_size  S
    device      where the batches are handed over ("cpu")
    train       False: the centre, never flipped; the order stays random (True)
    scale       area of the box as a share of the image's, smallest and largest (0.08, 1)
    rank, world_size  of this process (0 of 1)
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
    """Arguments that all evaluation passes share; as of Common."""

    batch_size: int
    image_size: int
    device: NotRequired[str | torch.device]
    rank: NotRequired[int]
    world_size: NotRequired[int]
    timeout: NotRequired[float]


class Loader(ABC):
    """An endless iterator of training batches: next(loader) is Batch number loader.batch of BatchSampler's sequence.

    Order, boxes and flips depend on (seed, stream, epoch, image) alone: neither on the kind of loader, nor on workers,
    nor on world_size. Images are random-resized crops (bilinear, antialiased), uint8 NHWC; the flip is said in Batch.flip,
    not done. Batches are made ahead, in a thread, from the first next() on.
    """

    def __init__(self, indices: Tensor, **common: Unpack[Common]) -> None:
        """indices: int64, the split's images. Raises DataError for a batch that does not fit the split or world_size."""
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
    def _produce(self, number: int, stage: Stage) -> Iterator[Batch]:
        """Batches from `number` on, on any device; must not hold the loader, which ends it by forgetting it."""

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.sampler)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """The next batch, on `device`.

        Raises DataError, which names the file, if an image cannot be decoded, and InputStopped if none comes in time; the
        next call tries that batch again.
        """
        if self._iterator is None:
            stage = Stage()
            self._iterator = ahead(self._produce(self.batch, stage), self.device, stage, self.timeout)
        try:
            batch = next(self._iterator)
        except BaseException:  # an interrupt ends the iterator too
            self.close()
            raise
        self.batch += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        """How many batches were handed out; what was made ahead does not count."""
        return {"batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with exactly the next batch, whatever kind of loader, workers or world_size the state was saved under."""
        self.close()
        self.batch = state["batch"]

    def close(self) -> None:
        """End what makes batches ahead; a later next() starts it again where it stopped."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Evaluation(ABC):
    """One pass over a split: short side to S * 256 / 224, centre crop, no flip.

    Each `for` starts anew, in the same random order: an index may have one class after the other, and a batch is to be of all
    of them, for its BatchNorm statistics and for what looks at the first one alone. Batches hold `batch_size` images over all
    ranks, of which rank r gets r, r + world_size, ...; the last one may be smaller, and is left out on a rank that has no
    image of it.
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
        """Arguments as of Common."""
        batches = [part[rank::world_size] for part in shuffled(indices.sort().values, Stream.EVAL).split(batch_size)]
        self.batches = [part for part in batches if len(part)]
        self.view = View(image_size, 0, Stream.EVAL, False, SCALE)
        self.device, self.timeout = torch.device(device), timeout

    @abstractmethod
    def _produce(self, stage: Stage) -> Iterator[Batch]:
        """One batch for each of `batches`, on any device."""

    def __len__(self) -> int:
        """Batches of a pass on this rank."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """Raises DataError, which names the file, if an image cannot be decoded, and InputStopped if no batch comes."""
        stage = Stage()
        return ahead(self._produce(stage), self.device, stage, self.timeout)
