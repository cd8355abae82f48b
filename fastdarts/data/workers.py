"""Answer batch requests: Pillow decodes, torchvision crops and resizes, in worker processes or in this one."""

from collections.abc import Generator, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastdarts.data.crop import RATIO, central_part, crop_box, crop_words, short_side
from fastdarts.data.decode import read_rgb
from fastdarts.data.errors import DataError, InputStopped
from fastdarts.data.index import ImageIndex
from fastdarts.data.view import View

Answer = DataError | InputStopped | None  # the fault; returned, since a worker process would print a raised one


class Request(NamedTuple):
    """Everything a worker needs for a batch, so that it keeps no list of all files."""

    epoch: int
    indices: list[int]
    labels: list[int]
    paths: list[str]

    @staticmethod
    def of(index: ImageIndex, indices: Tensor, epoch: int) -> "Request":
        """Return the request for the images `indices`, int64 (N,), in epoch `epoch`."""
        numbers = indices.tolist()
        return Request(epoch, numbers, index.labels[indices].tolist(), [index.path(i) for i in numbers])


class Decoder:
    """Decoder of requests."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __call__(self, request: Request, batch: Any) -> Answer:
        """Decode into batch["images"], uint8 (at least N, size, size, 3); batch["at"] is the number of the current image.

        Returns the fault of the first file that cannot be decoded, or of the machine, or None.
        """
        index = torch.tensor(request.indices)
        words: list[list[int]] = [[]] * len(index)
        if self.view.train:
            words = crop_words(self.view.seed, self.view.stream, request.epoch, index).tolist()
        try:
            for i, path in enumerate(request.paths):
                batch["at"] = i
                batch["images"][i] = self.crop(read_rgb(path), words[i])
        except (DataError, InputStopped) as error:
            return error
        return None

    def crop(self, image: Image.Image, words: list[int]) -> Image.Image:
        """Crop to size x size pixels: the random box of `words`, or the centre if not `train`; bilinear with antialiasing."""
        functional, size = torchvision_functional(), self.view.size
        if self.view.train:
            box = crop_box(words, image.width, image.height, self.view.scale, RATIO)
            return functional.resized_crop(image, *box, [size, size])
        if (box := central_part(image.width, image.height)) is not None:
            image = image.crop(box)
        return functional.center_crop(functional.resize(image, [short_side(size)]), [size, size])


def in_this_process(view: View, requests: Iterable[Request]) -> Generator[tuple[Request, np.ndarray]]:
    """Yield the requests with their images, uint8 (N, size, size, 3). Raises Decoder's faults."""
    decode = Decoder(view)
    for request in requests:
        batch = {"images": np.empty((len(request.paths), view.size, view.size, 3), np.uint8)}
        if (wrong := decode(request, batch)) is not None:
            raise wrong
        yield request, batch["images"]


def torchvision_functional() -> Any:
    """Import torchvision.transforms.v2.functional. Raises DataError if it is missing or does not match the installed torch."""
    try:
        from torchvision.transforms.v2 import functional
    except ModuleNotFoundError as error:
        raise DataError(
            "torchvision is missing: pip install torchvision (required with every --loader, for evaluation)"
        ) from error
    except (ImportError, RuntimeError) as error:
        raise DataError(
            f"torchvision does not match torch {torch.__version__}: install versions of the same release"
        ) from error
    return functional
