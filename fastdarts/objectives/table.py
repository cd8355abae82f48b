"""Table of all objectives by name: description, requirements and constructor of each."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from fastdarts.objectives.base import IMAGENET_MEAN, IMAGENET_STD, Colour, Objective
from fastdarts.objectives.joint import Joint
from fastdarts.objectives.masked import DecoderName, MaskedReconstruction
from fastdarts.objectives.masking import Masking
from fastdarts.objectives.pretext import Colourisation, Jigsaw, Pretext, Rotation
from fastdarts.objectives.supervised import Classification
from fastdarts.ops.masked_loss import Norm
from fastdarts.registry import OBJECTIVES
from fastdarts.supernet import Network


class Choices(NamedTuple):
    """Arguments of make_objective."""

    supernet: Network
    num_classes: int | None  # None if the row needs no labels
    masking: Masking
    mask_token: Literal["zero", "learned"]
    loss: Norm
    decoder: DecoderName


class Row(NamedTuple):
    """One objective.

    description   of the loss, for --help
    title         of the report on a search
    needs_labels  whether Batch.labels are read
    masks         whether patches are hidden, so that mask_ratio and patch_size apply
    tiles         whether images are cut into 2 x 2 tiles
    """

    description: str
    title: str
    make: Callable[[Choices], Objective]
    needs_labels: bool = False
    masks: bool = False
    tiles: bool = False


def _mae(c: Choices) -> Objective:
    ratio, patch_size, seed, mean, std, backend = c.masking
    return MaskedReconstruction(
        c.supernet.tap_channels,
        mask_ratio=ratio,
        patch_size=patch_size,
        mask_token=c.mask_token,
        norm=c.loss,
        decoder=c.decoder,
        seed=seed,
        mean=mean,
        std=std,
        backend=backend,
    )


def _classes(c: Choices) -> int:
    if c.num_classes is None:
        raise ValueError("classification needs the number of classes, got none")
    return c.num_classes


def _supervised(c: Choices) -> Objective:
    return Classification(c.supernet, _classes(c), mean=c.masking.mean, std=c.masking.std)


def _masked_supervised(c: Choices) -> Objective:
    return Classification(c.supernet, _classes(c), mean=c.masking.mean, std=c.masking.std, masking=c.masking)


def _joint(c: Choices) -> Objective:
    return Joint(c.supernet, c.num_classes, masking=c.masking, backend=c.masking.backend)


def _reconstruction(c: Choices) -> Objective:
    return Joint(c.supernet, None, masking=None, mean=c.masking.mean, std=c.masking.std, backend=c.masking.backend)


def _rotation(c: Choices) -> Objective:
    return Pretext(c.supernet, Rotation(c.supernet.tap_channels[-1], c.masking.mean, c.masking.std), c.num_classes)


def _colourisation(c: Choices) -> Objective:
    return Pretext(c.supernet, Colourisation(c.supernet.tap_channels[-1], c.masking.mean, c.masking.std), c.num_classes)


def _jigsaw(c: Choices) -> Objective:
    task = Jigsaw(c.supernet.tap_channels[-1], c.masking.mean, c.masking.std, seed=c.masking.seed)
    return Pretext(c.supernet, task, c.num_classes)


OBJECTIVES |= {
    "mae": Row("MAE-NAS: reconstruct hidden patches, without labels", "Masked-reconstruction search", _mae, masks=True),
    "supervised": Row("DARTS: classify whole images", "Supervised search", _supervised, needs_labels=True),
    "joint": Row(
        "MIM-DARTS: classify and reconstruct images with hidden patches",
        "Search by classification and masked reconstruction",
        _joint,
        needs_labels=True,
        masks=True,
    ),
    "masked-supervised": Row(
        "MIM-DARTS without its decoder: classify images with hidden patches",
        "Supervised search on masked images",
        _masked_supervised,
        needs_labels=True,
        masks=True,
    ),
    "masked-reconstruction": Row(
        "MIM-DARTS without labels: reconstruct hidden patches with its decoder",
        "Masked-reconstruction search with MIM-DARTS' decoder",
        _joint,
        masks=True,
    ),
    "reconstruction": Row(
        "MIM-DARTS without labels and masks: reconstruct whole images",
        "Search by reconstruction of whole images",
        _reconstruction,
    ),
    "rotation": Row("predict by how many quarter turns an image is rotated", "Search by rotation", _rotation),
    "colourisation": Row("predict each pixel's colour, of 313, from the lightness", "Search by colourisation", _colourisation),
    "jigsaw": Row("predict in which of 24 orders an image's 2 x 2 tiles are arranged", "Search by jigsaw", _jigsaw, tiles=True),
    "supervised+rotation": Row(
        "classify and predict the rotation", "Search by classification and rotation", _rotation, needs_labels=True
    ),
    "supervised+colourisation": Row(
        "classify and predict the colours, from the lightness",
        "Search by classification and colourisation",
        _colourisation,
        needs_labels=True,
    ),
    "supervised+jigsaw": Row(
        "classify and predict the tiles' order", "Search by classification and jigsaw", _jigsaw, needs_labels=True, tiles=True
    ),
}


def make_objective(
    name: str,
    supernet: Network,
    *,
    num_classes: int | None,
    image_size: int,
    mask_ratio: float = 0.5,
    patch_size: int = 8,
    mask_token: Literal["zero", "learned"] = "zero",
    loss: Norm = "l1",
    decoder: DecoderName = "multi-scale",
    seed: int = 0,
    mean: Colour = IMAGENET_MEAN,
    std: Colour = IMAGENET_STD,
    backend: str = "auto",
) -> Objective:
    """Return the objective of that name (a key of OBJECTIVES), on the default device.

    num_classes                number of label classes; None: no labels. Read if the row needs labels
    image_size                 pixels a side of the images
    mask_ratio, patch_size     read if the row masks
    mask_token, loss, decoder  of "mae"; MIM-DARTS has its own (zeros, squared error, its decoder)
    seed                       of masks and permutations
    mean, std                  of pixels in [0, 1]
    backend                    of ops.patch_mask and ops.masked_loss

    Raises ValueError with the reason if these do not fit together.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; known are {', '.join(OBJECTIVES)}")
    row = OBJECTIVES[name]
    masking = Masking(mask_ratio, patch_size, seed, mean, std, backend)
    try:
        _check_size(row, supernet, masking, image_size)
        if row.needs_labels and num_classes is None:
            raise ValueError("it needs labels, but the images have none")
        classes = num_classes if row.needs_labels else None
        return row.make(Choices(supernet, classes, masking, mask_token, loss, decoder))
    except ValueError as error:
        raise ValueError(f"objective {name}: {error}") from error


def _check_size(row: Row, supernet: Network, masking: Masking, S: int) -> None:
    """Raise ValueError unless images of S pixels a side can be masked or cut into tiles, and be encoded."""
    if row.masks:
        masking.hidden(S, S)
    if row.tiles and S % 2:
        raise ValueError(f"images of {S} pixels a side cannot be cut into 2 x 2 tiles; the side must be even")
    parts, what = (2, "tiles") if row.tiles else (1, "images")
    side, multiple = S // parts, supernet.multiple
    if side % multiple:
        raise ValueError(
            f"{what} of {side} pixels a side: the network's strides require a multiple of {multiple}, for example images "
            f"of {max(1, side // multiple) * multiple * parts}"
        )
