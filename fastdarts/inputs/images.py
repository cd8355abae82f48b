"""Images of one search: the splits for weights and alpha."""

from dataclasses import dataclass

from torch import Tensor

from fastdarts.data import ImageArray, ImageIndex, Index, read_list, subsets
from fastdarts.inputs.chosen import TrainVal
from fastdarts.inputs.origin import Arrays, Files
from fastdarts.quoting import quoted
from fastdarts.settings import AnySearch, ConfigError


@dataclass(frozen=True)
class Images(TrainVal):
    """Both splits of a search, train for weights and val for alpha."""

    @staticmethod
    def drawn(settings: AnySearch, index: Index) -> tuple[Tensor, Tensor]:
        """Return the given lists, or shares of each class."""
        if settings.train_list is None and settings.val_list is None:
            return subsets(index, settings.train_fraction, settings.val_fraction, settings.seed)
        if settings.train_list is None or settings.val_list is None:
            raise ConfigError("--train_list and --val_list must be given together")
        return lists(settings.train_list, settings.val_list, index)


def lists(train_list: str, val_list: str, index: Index) -> tuple[Tensor, Tensor]:
    """Read two disjoint lists of images. Raises ConfigError if they share one, DataError."""
    train, val = read_list(train_list, index), read_list(val_list, index)
    if common := set(train.tolist()) & set(val.tolist()):
        raise ConfigError(f"--train_list and --val_list share {len(common)} images, {quoted(index.files[min(common)])} first")
    return train, val


@dataclass(frozen=True)
class ImageFiles(Images):
    """Image files under ROOT/train."""

    origin = Files
    index: ImageIndex


@dataclass(frozen=True)
class ImageArrays(Images):
    """Decoded images of one size in memory."""

    origin = Arrays
    index: ImageArray
