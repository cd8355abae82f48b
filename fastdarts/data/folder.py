"""Batches from image files, decoded and cropped by torchvision in worker processes.

Letters: N images a batch on this rank, S pixels a side.
"""

from collections.abc import Iterator

from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.data.crop import SCALE
from fastdarts.data.errors import DataError
from fastdarts.data.index import ImageIndex
from fastdarts.data.sampler import BatchSampler
from fastdarts.data.workers import Request, View, fetch, torchvision_functional
from fastdarts.ops.philox import Stream


class FolderLoader:
    """An endless iterator of training batches: next(loader) is Batch number loader.batch of BatchSampler's sequence.

    Boxes, flips and order depend on (seed, stream, epoch, image) alone: neither on workers nor on world_size. The
    images are random-resized crops (bilinear, antialiased), uint8 NHWC; the flip is said in Batch.flip, not done.
    """

    def __init__(
        self,
        index: ImageIndex,
        indices: Tensor,
        *,
        stream: Stream,
        seed: int,
        batch_size: int,
        image_size: int,
        workers: int,
        train: bool = True,
        scale: tuple[float, float] = SCALE,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        """Workers start at the first next().

        indices     int64, the split's images
        batch_size  images a batch over all ranks; this rank yields N = batch_size / world_size
        workers     processes; 0 decodes in this one
        train       False: resized and cropped at the centre, never flipped; the order stays random
        scale       area of the crop as a share of the image's, smallest and largest
        start       number of the first batch
        Raises DataError without torchvision, or for a batch that does not fit the split or world_size.
        """
        torchvision_functional()
        self.sampler = BatchSampler(indices, stream=stream, seed=seed, batch_size=batch_size, rank=rank, world_size=world_size)
        self.batch = start
        self._index, self._workers = index, workers
        self._view = View(image_size, seed, stream, train, scale)
        self._iterator: Iterator[Batch | DataError] | None = None

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.sampler)

    def __iter__(self) -> "FolderLoader":
        return self

    def __next__(self) -> Batch:
        """The next batch. Raises DataError, which names the file, if an image cannot be decoded."""
        if self._iterator is None:
            self._iterator = fetch(self._view, _endless(self._index, self.sampler, self.batch), self._workers)
        batch = next(self._iterator)
        if isinstance(batch, DataError):
            self.close()
            raise batch
        self.batch += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        """How many batches were handed out; what the workers prepared beyond does not count."""
        return {"batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with exactly the next batch, whatever workers or world_size the state was saved under."""
        self.close()
        self.batch = state["batch"]

    def close(self) -> None:
        """End the workers; a later next() starts new ones where it stopped."""
        self._iterator = None  # the iterator ends its processes as it goes

    def __enter__(self) -> "FolderLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EvalLoader:
    """One pass over a split in the order of the indices: short side to S * 256 / 224, centre crop, no flip.

    Each `for` starts anew. Batches hold `batch_size` images over all ranks, of which rank r gets r, r + world_size,
    ...; the last one may be smaller, and is left out on a rank that has no image of it.
    """

    def __init__(
        self,
        index: ImageIndex,
        indices: Tensor,
        *,
        batch_size: int,
        image_size: int,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Arguments as FolderLoader's. Raises DataError without torchvision."""
        torchvision_functional()
        batches = [part[rank::world_size] for part in indices.sort().values.split(batch_size)]
        self._batches = [part for part in batches if len(part)]
        self._index, self._workers = index, workers
        self._view = View(image_size, 0, Stream.EVAL, False, SCALE)

    def __len__(self) -> int:
        """Batches of a pass on this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Raises DataError, which names the file, if an image cannot be decoded."""
        requests = (Request.of(self._index, indices, 0) for indices in self._batches)
        for batch in fetch(self._view, requests, self._workers):
            if isinstance(batch, DataError):
                raise batch
            yield batch


def _endless(index: ImageIndex, sampler: BatchSampler, number: int) -> Iterator[Request]:
    while True:
        epoch, indices = sampler.batch(number)
        yield Request.of(index, indices, epoch)
        number += 1
