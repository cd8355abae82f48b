"""Batches from the resident cache: one op crops and resizes decoded images on the device of the cache.

Notation: N images a batch on this rank, S pixels a side.
"""

from collections.abc import Iterator
from itertools import count
from typing import Unpack

from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.data.cache import Cache
from fastdarts.data.loader import Common, EvalCommon, Evaluation, Loader
from fastdarts.data.prefetch import Activity
from fastdarts.data.sampler import BatchSampler
from fastdarts.data.view import View


class CacheLoader(Loader):
    """Loader over the resident cache, without file reads or decoding.

    Order, boxes and flips are the same as in every loader; boxes are rounded to pixels of the cached images.
    """

    def __init__(self, cache: Cache, indices: Tensor, **common: Unpack[Common]) -> None:
        """Take data.loader.Common's arguments and `indices`, int64, of the split's images, all in the cache.

        Raises DataError if the batch size does not fit the split or world_size.
        """
        super().__init__(indices, **common)
        self._cache = cache

    def _produce(self, number: int, stage: Activity) -> Iterator[Batch]:
        return _cut(self._cache, self.sampler, self.view, number, stage)


def _cut(cache: Cache, sampler: BatchSampler, view: View, number: int, stage: Activity) -> Iterator[Batch]:
    """Yield the batches from `number` on."""
    for coming in count(number):
        stage.now = f"cutting {view.stream.name.lower()} batch {coming} from the cache"
        yield cache.batch(view, *sampler.batch(coming))


class CacheEvalLoader(Evaluation):
    """Evaluation pass over the cache: centre crops, no flip."""

    def __init__(self, cache: Cache, indices: Tensor, **common: Unpack[EvalCommon]) -> None:
        """Take data.loader.EvalCommon's arguments and `indices`, int64, of the cache's images."""
        super().__init__(indices, **common)
        self._cache = cache

    def _produce(self, stage: Activity) -> Iterator[Batch]:
        for number, indices in enumerate(self.batches):
            stage.now = f"cutting evaluation batch {number} from the cache"
            yield self._cache.batch(self.view, 0, indices)
