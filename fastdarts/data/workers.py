"""What happens in a worker process: a request for a batch becomes a Batch, by Pillow and torchvision."""

import os
import signal
from collections.abc import Iterable, Iterator
from itertools import count
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastdarts.batch import Batch
from fastdarts.data.ahead import Stage
from fastdarts.data.crop import RATIO, crop_box, crop_words, middle, short_side
from fastdarts.data.decode import read_rgb
from fastdarts.data.errors import DataError, InputStopped
from fastdarts.data.index import ImageIndex
from fastdarts.data.view import View


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


class Decoder(Dataset[Batch | DataError]):
    """How a request becomes a batch. A DataError is returned, since torch would bury a raised one in a traceback."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __getitem__(self, request: Request) -> Batch | DataError:
        """The batch, images uint8 (N, size, size, 3), or what is wrong with the first file that cannot be decoded."""
        index, size = torch.tensor(request.indices), self.view.size
        words: list[list[int]] = [[]] * len(index)
        if self.view.train:
            words = crop_words(self.view.seed, self.view.stream, request.epoch, index).tolist()
        images = np.empty((len(index), size, size, 3), np.uint8)
        try:
            for i, path in enumerate(request.paths):
                images[i] = self.crop(read_rgb(path), words[i])
        except DataError as error:
            return error
        return Batch(torch.from_numpy(images), torch.tensor(request.labels), index, self.view.flips(request.epoch, index))

    def crop(self, image: Image.Image, words: list[int]) -> Image.Image:
        """size x size pixels: the random box of `words`, or the centre if not `train`; bilinear with antialiasing."""
        functional, size = torchvision_functional(), self.view.size
        if self.view.train:
            box = crop_box(words, image.width, image.height, self.view.scale, RATIO)
            return functional.resized_crop(image, *box, [size, size])
        if (box := middle(image.width, image.height)) is not None:
            image = image.crop(box)
        return functional.center_crop(functional.resize(image, [short_side(size)]), [size, size])


def fetch(view: View, requests: Iterable[Request], workers: int, stage: Stage, pin: bool) -> Iterator[Batch]:
    """Answer the requests in their order, with `workers` processes ahead of the consumer.

    pin  hand the batches over in pinned memory, from which they go to a GPU asynchronously
    Raises DataError, which names the file, for an image that cannot be decoded, InputStopped if a worker was killed.
    """
    where = f"{workers} worker processes" if workers else "a thread"
    stage.now = f"starting {where}"
    batches = iter(
        DataLoader(
            Decoder(view),
            batch_size=None,
            sampler=requests,
            collate_fn=_same,
            num_workers=workers,
            worker_init_fn=_start_worker,
            pin_memory=pin,
            generator=torch.Generator(),  # torch's own stays untouched
        )
    )
    split = view.stream.name.lower()
    try:
        for number in count(1):
            stage.now = f"decoding {split} images in {where}, batch {number} since they started; is the file system alive?"
            batch = next(batches, None)
            if batch is None:
                return
            if isinstance(batch, DataError):
                raise batch
            yield batch
    except (RuntimeError, EOFError, OSError) as error:  # the ways in which the end of a process is noticed
        if not workers or (isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)):
            raise
        told = f"a process that decodes {split} images has died (killed from outside, or by the system for want of memory)"
        raise InputStopped(f"{told}: start again, or take fewer workers") from error
    finally:
        del batches  # which ends its processes, also where an error's traceback holds this frame


def _start_worker(_: int) -> None:
    """Leave signals to the main process, which answers them, also where they are sent to all processes of a job."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    Thread(target=_end_for_the_parent, daemon=True).start()


def _end_for_the_parent() -> None:
    """SIGTERM ends a worker if it comes from the main process, which so ends one that hangs."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


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
