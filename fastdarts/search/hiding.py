"""R-DARTS' augmentation (Zela et al., ICLR 2020): drop path and cutout that grow with the epochs.

Notation: N images, S pixels a side.
"""

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.ops.cutout import cutout_mask
from fastdarts.ops.philox import Purpose, Stream, random_words
from fastdarts.settings import ConfigError, SearchSettings

Colour = tuple[float, float, float]


def check_hiding(settings: SearchSettings, supervised: bool) -> None:
    """Raise ConfigError if drop path and cutout do not fit the search."""
    if settings.edge_drop_path and settings.edge_normalization:
        reason = "edges that are dropped for single images have no learnt weight"
        raise ConfigError(f"--edge_drop_path: {reason}, use --no-edge_normalization")
    if settings.edge_drop_path and settings.edge_cutout and not supervised:
        reason = "squares are hidden from classification only (--objective supervised)"
        raise ConfigError(f"--edge_cutout: {reason}, give --edge_cutout 0")


def share_of(epoch: int, epochs: int) -> float:
    """Return how far an epoch, from 0, is: 0 in the first, 1 in the last."""
    return epoch / max(epochs - 1, 1)


def hide(batch: Batch, settings: SearchSettings, share: float, step: Tensor, stream: Stream, mean: Colour) -> Batch:
    """Return the batch with a square of settings.edge_cutout pixels set to the mean colour in a share of its images.

    A function of seed, step and image. The colour is rounded to a whole number, as pixels are.
    """
    words = random_words(settings.seed, stream, step, batch.index, Purpose.CUTOUT, 3)
    mask = cutout_mask(words[:, :2], batch.images.shape[1], settings.edge_cutout)[:, 0]
    mask = mask & (words[:, 2] < share * 2**32)[:, None, None]
    pairs = zip(batch.images.unbind(-1), mean, strict=True)  # numbers, not a tensor: nothing is copied from the host
    return batch._replace(images=torch.stack([plane.masked_fill(mask, round(255 * m)) for plane, m in pairs], dim=-1))
