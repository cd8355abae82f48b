"""What happens in a worker process: a request for a batch becomes a Batch, by Pillow and torchvision."""

import signal
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastdarts.batch import Batch
from fastdarts.data.crop import RATIO, crop_box, crop_words, flips
from fastdarts.data.decode import read_rgb
from fastdarts.data.errors import DataError
from fastdarts.data.index import ImageIndex
from fastdarts.ops.philox import Stream


class Request(NamedTuple):
    """What a worker must know to make a batch; so it holds no list of all files."""

    epoch: int
    indices: list[int]
    labels: list[int]
    paths: list[str]

    @staticmethod
    def of(index: ImageIndex, indices: Tensor, epoch: int) -> "Request":
        """The request for the images `indices`, int64 (N,), as epoch `epoch` shows them."""
        numbers = indices.tolist()
        return Request(epoch, numbers, index.labels[indices].tolist(), [index.path(i) for i in numbers])


class View(Dataset[Batch | DataError]):
    """How a request becomes a batch. A DataError is returned, since torch would bury a raised one in a traceback."""

    def __init__(self, size: int, seed: int, stream: Stream, train: bool, scale: tuple[float, float]) -> None:
        self.size, self.seed, self.stream, self.train, self.scale = size, seed, stream, train, scale

    def __getitem__(self, request: Request) -> Batch | DataError:
        """The batch, images uint8 (N, size, size, 3), or what is wrong with the first file that cannot be decoded."""
        index = torch.tensor(request.indices)
        flip = torch.zeros(len(index), dtype=torch.bool)
        words: list[list[int]] = [[]] * len(index)
        if self.train:
            flip = flips(self.seed, self.stream, request.epoch, index)
            words = crop_words(self.seed, self.stream, request.epoch, index).tolist()
        images = np.empty((len(index), self.size, self.size, 3), np.uint8)
        try:
            for i, path in enumerate(request.paths):
                images[i] = self.crop(read_rgb(path), words[i])
        except DataError as error:
            return error
        return Batch(torch.from_numpy(images), torch.tensor(request.labels), index, flip)

    def crop(self, image: Image.Image, words: list[int]) -> Image.Image:
        """size x size pixels: the random box of `words`, or the centre if not `train`; bilinear with antialiasing."""
        functional = torchvision_functional()
        if self.train:
            box = crop_box(words, image.width, image.height, self.scale, RATIO)
            return functional.resized_crop(image, *box, [self.size, self.size])
        return functional.center_crop(functional.resize(image, [round(self.size * 256 / 224)]), [self.size, self.size])


def fetch(view: View, requests: Iterable[Request], workers: int) -> Iterator[Batch | DataError]:
    """Answer the requests in their order, with `workers` processes ahead of the consumer."""
    return iter(
        DataLoader(
            view,
            batch_size=None,
            sampler=requests,
            collate_fn=_same,
            num_workers=workers,
            worker_init_fn=_start_worker,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # torch's own stays untouched
        )
    )


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the main process' to answer


def _same(item: Batch | DataError) -> Batch | DataError:
    return item


def torchvision_functional() -> Any:
    """torchvision.transforms.v2.functional. Raises DataError if it is missing or does not fit the installed torch."""
    try:
        from torchvision.transforms.v2 import functional
    except ModuleNotFoundError as error:
        raise DataError("torchvision is missing: pip install torchvision") from error
    except (ImportError, RuntimeError) as error:
        raise DataError(f"torchvision does not fit torch {torch.__version__}: install the pair of one release") from error
    return functional
