"""Batch sampling as a pure function of the seed and the batch number, shared by all loaders."""

import torch
from torch import Tensor

from fastdarts.data.errors import DataError
from fastdarts.ops.philox import Purpose, Stream, random_words


def shuffled(indices: Tensor, stream: Stream, seed: int = 0, epoch: int = 0) -> Tensor:
    """Return `indices`, int64 (N,), ascending, in the order of (random word, index)."""
    words = random_words(seed, stream, epoch, indices, Purpose.ORDER, 1)[:, 0]
    return indices[torch.sort(words, stable=True).indices]


class BatchSampler:
    """Batch b is the (b % len)-th part of epoch b // len; images of an incomplete last batch are dropped from that epoch.

    An epoch is ordered by (random word, index). Rank r takes images r, r + world_size, ... of each batch, so neither the
    batches nor the epochs of images depend on world_size.
    """

    def __init__(
        self, indices: Tensor, *, stream: Stream, seed: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        """Take distinct int64 `indices` (N,); `batch_size` counts the images of a batch over all ranks.

        Raises DataError if the batch is larger than the split or not divisible by world_size.
        """
        split = Stream(stream).name.lower()
        if not 0 < batch_size <= len(indices):
            size = f"the {split} split has {len(indices)} images"
            raise DataError(f"batch_size is {batch_size} but {size}: choose at most as many, or a split of more images")
        if batch_size % world_size:
            raise DataError(f"batch_size {batch_size} cannot be divided equally among {world_size} ranks: choose a multiple")
        self.indices = indices.sort().values
        self.stream, self.seed, self.batch_size = stream, seed, batch_size
        self.rank, self.world_size = rank, world_size
        self._epoch, self._order = -1, indices

    def __len__(self) -> int:
        """Return the number of batches per epoch, equal on all ranks."""
        return len(self.indices) // self.batch_size

    def order(self, epoch: int) -> Tensor:
        """Return all images in the order of an epoch, int64 (N,)."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, shuffled(self.indices, self.stream, self.seed, epoch)
        return self._order

    def batch(self, number: int) -> tuple[int, Tensor]:
        """Return (epoch, this rank's images of batch `number`, int64 (batch_size / world_size,))."""
        epoch, part = divmod(number, len(self))
        start = part * self.batch_size
        return epoch, self.order(epoch)[start : start + self.batch_size][self.rank :: self.world_size]
