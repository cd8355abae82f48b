"""Batches from the resident cache: boxes cut out of decoded images and resized by one op, where the cache lies.

Notation: N images a batch on this rank, S pixels a side.
"""

from collections.abc import Iterator
from itertools import count
from typing import Unpack

from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.data.cache import Cache
from fastdarts.data.loader import Common, EvalCommon, Evaluation, Loader
from fastdarts.data.prefetch import Stage
from fastdarts.data.sampler import BatchSampler
from fastdarts.data.view import View


class CacheLoader(Loader):
    """The resident cache's route: nothing is read or decoded any more.

    Order, boxes and flips are those of every loader, the boxes rounded to pixels of the images as they are kept.
    """

    def __init__(self, cache: Cache, indices: Tensor, **common: Unpack[Common]) -> None:
        """indices: int64, the split's images, all in the cache; common: as all loaders', data.loader.Common.

        Raises DataError for a batch that does not fit the split or world_size.
        """
        super().__init__(indices, **common)
        self._cache = cache

    def _produce(self, number: int, stage: Stage) -> Iterator[Batch]:
        return _cut(self._cache, self.sampler, self.view, number, stage)


def _cut(cache: Cache, sampler: BatchSampler, view: View, number: int, stage: Stage) -> Iterator[Batch]:
    """Batches from `number` on."""
    for coming in count(number):
        stage.now = f"cutting {view.stream.name.lower()} batch {coming} out of the cache"
        yield cache.batch(view, *sampler.batch(coming))


class CacheEvalLoader(Evaluation):
    """The evaluation pass from the cache: the centre of each image, no flip."""

    def __init__(self, cache: Cache, indices: Tensor, **common: Unpack[EvalCommon]) -> None:
        """indices: int64, images of the cache; common: as EvalLoader's."""
        super().__init__(indices, **common)
        self._cache = cache

    def _produce(self, stage: Stage) -> Iterator[Batch]:
        for number, indices in enumerate(self.batches):
            stage.now = f"cutting evaluation batch {number} out of the cache"
            yield self._cache.batch(self.view, 0, indices)
