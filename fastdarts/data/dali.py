"""Batches decoded by NVIDIA's DALI: nvJPEG on a GPU, libjpeg-turbo in DALI's threads on a CPU.

Notation: N images a batch on this rank, S pixels a side.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count
from multiprocessing.pool import ThreadPool
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.data.decode import read_bytes, read_rgb
from fastdarts.data.errors import DataError, InputStopped
from fastdarts.data.index import ImageIndex
from fastdarts.data.jpeg import plain_size
from fastdarts.data.loader import Common, Loader
from fastdarts.data.prefetch import Stage
from fastdarts.data.sampler import BatchSampler
from fastdarts.data.view import View
from fastdarts.data.workers import Request
from fastdarts.provenance import BROKEN
from fastdarts.quoting import few, quoted

PREFETCH = 2  # batches inside DALI: one is decoded while the next one's files are read
ROWS_COLUMNS = (0, 1)  # in which order anchors and shapes name the axes of an image
READERS = 4  # threads that read files; they wait more than they work
HARDWARE_SHARE = 0.65  # of the images go to the decoder unit of a GPU that has one: DALI's default


def unavailable(device: torch.device) -> str | None:
    """Why DALI cannot decode for `device`, in a sentence, or None."""
    try:
        import nvidia.dali
    except BROKEN as error:
        if isinstance(error, ModuleNotFoundError) and error.name in ("nvidia", "nvidia.dali"):
            return "DALI is not installed: pip install 'fastdarts[dali]'"
        return f"DALI is installed but does not import: {(str(error) or repr(error)).splitlines()[0]}"
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.version.cuda is None:
        return f"DALI and this torch cannot both use {device.type}: DALI decodes for cpu and cuda"
    ours, theirs = torch.version.cuda.partition(".")[0], str(nvidia.dali.__cuda_version__)[:2]
    if ours == theirs:
        return None
    extra = "dali" if ours == "13" else f"dali-cuda{ours}0"
    remedy = f"pip uninstall nvidia-dali-cuda{theirs}0, then pip install 'fastdarts[{extra}]'"
    return f"DALI is built for CUDA {theirs}, torch for CUDA {ours}: {remedy}"


class DaliLoader(Loader):
    """DALI decodes the images that our sampler asks for, in its order, cuts its boxes out and resizes them.

    Images agree with FolderLoader's of the same box: on average over an image within half a level (of 255), each pixel
    within one, but for the outermost row and column on each side. There, beyond the box, Pillow's filter ends and DALI's
    sees the last pixel repeated, which makes up to 64 levels. (Seen on ImageNet's files: 0.28 at most, 0.15 on average;
    26 at the border.) If not `train`, the centre is cut out before resizing and not after it, so whole pixels are rounded
    differently. All this on a CPU; on a GPU nvJPEG's arithmetic is another one.
    Only plain JPEGs (data.jpeg) are left to DALI's decoder. Pillow decodes the others, whatever they are, and DALI cuts
    and resizes them.
    At most PREFETCH batches are inside DALI and ahead.DEPTH + 1 behind it. On a GPU each pipeline (the weights' split and
    alpha's have one each) also keeps PREFETCH batches of whole decoded images there, 0.6 MB for each of ImageNet's usual
    size, and nvJPEG's buffers, 16 MB of device and of pinned memory for each thread or more.
    """

    def __init__(self, index: ImageIndex, indices: Tensor, *, threads: int, **common: Unpack[Common]) -> None:
        """DALI starts at the first next().

        indices  int64, the split's images
        threads  of DALI, that decode
        common   as all loaders', data.loader.Common
        Raises DataError where DALI is `unavailable`, or for a batch that does not fit the split or world_size.
        """
        super().__init__(indices, **common)
        if why := unavailable(self.device):
            raise DataError(why)
        self._index, self._threads = index, threads

    def _produce(self, number: int, stage: Stage) -> Iterator[Batch]:
        return _decoded(self._index, self.sampler, self.view, self._threads, self.device, number, stage)


class _Asked(NamedTuple):
    """A batch that DALI is at."""

    request: Request
    files: list[np.ndarray]  # on a CPU DALI reads them here, so they stay until it is done


def _decoded(
    index: ImageIndex, sampler: BatchSampler, view: View, threads: int, device: torch.device, number: int, stage: Stage
) -> Iterator[Batch]:
    """Batches from `number` on."""
    split, numbers = view.stream.name.lower(), count(number)
    asked: deque[_Asked] = deque()
    wrong: list[Exception] = []

    def feed() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """What DALI needs for the next batch. Ends its input if that fails, so that the batches before come out."""
        epoch, indices = sampler.batch(next(numbers))
        request = Request.of(index, indices, epoch)
        stage.now = f"reading the files of {split} images, the first is {quoted(request.paths[0])}; is the file system alive?"
        try:
            files, sizes = zip(*pool.map(_encoded, request.paths), strict=True)
        except DataError as error:
            wrong.append(error)
            raise StopIteration from error
        boxes = np.array(view.boxes(epoch, indices, list(sizes)), np.int32)
        asked.append(_Asked(request, list(files)))
        return list(files), boxes[:, :2].copy(), boxes[:, 2:].copy()

    def graph(fn: Any) -> Any:
        # a copy to a GPU may still be going on when the batch is there
        files, anchors, shapes = fn.external_source(feed, num_outputs=3, no_copy=device.type == "cpu")
        return resized(fn, cut(fn, files, anchors, shapes, device), size=(view.size, view.size))

    with ThreadPool(READERS) as pool:
        stage.now = f"starting DALI for {split} images"
        pipe = pipeline(graph, len(sampler.batch(number)[1]), threads, device)
        while True:
            try:
                pipe.schedule_run()
                stage.now = f"decoding {split} images with DALI"
                (images,) = outputs(pipe, device)
            except StopIteration:
                raise wrong.pop() from None
            except RuntimeError as error:
                stage.now = f"looking for the {split} image that DALI could not decode"
                raise explained(error, (batch.request.paths for batch in asked)) from error
            request = asked.popleft().request
            yield labelled(request.epoch, torch.tensor(request.indices), images, index, view)


def _encoded(path: str) -> tuple[np.ndarray, tuple[int, int]]:
    """The file, uint8 (bytes,), and the image's (height, width); re-encoded without loss unless it is a plain JPEG."""
    data = read_bytes(path)
    size = plain_size(data)
    if size is None:
        image = read_rgb(path, data)
        size = image.height, image.width
        data = b"P6 %d %d 255\n" % image.size + image.tobytes()
    return np.frombuffer(data, np.uint8), size


def pipeline(graph: Callable[[Any], Any], batch_size: int, threads: int, device: torch.device) -> Any:
    """A built DALI pipeline of what graph(nvidia.dali.fn) returns; it ends with the last reference to it.

    Raises InputStopped if DALI cannot start, as with a driver that is too old for it.
    """
    from nvidia.dali import Pipeline, fn

    number = None if device.type == "cpu" else device.index if device.index is not None else torch.cuda.current_device()
    pipe = Pipeline(batch_size, threads, number, prefetch_queue_depth=PREFETCH, exec_dynamic=True)
    try:
        with pipe:
            made = graph(fn)
            pipe.set_outputs(*made if isinstance(made, tuple) else (made,))
        pipe.build()
    except RuntimeError as error:
        raise InputStopped(f"DALI does not start: {_reason(error)}") from error
    return pipe


def decodes_boxes(device: torch.device) -> bool:
    """Whether the decoder is asked for boxes, and not for whole images, of which they are cut.

    On a GPU it is not: nvImageCodec 0.9, which DALI 2.4 needs, is reported to fail at boxes of JPEGs there, or to crash
    (NVIDIA/nvImageCodec, issue 55).
    """
    return device.type == "cpu"


def cut(fn: Any, files: Any, anchors: Any, shapes: Any, device: torch.device) -> Any:
    """The boxes, (top, left) and (height, width), of the images in `files`."""
    if decodes_boxes(device):
        return fn.decoders.image_slice(files, anchors, shapes, axes=ROWS_COLUMNS, **decoding(device))
    return fn.slice(fn.decoders.image(files, **decoding(device)), anchors, shapes, axes=ROWS_COLUMNS)


def decoding(device: torch.device) -> dict[str, Any]:
    """Arguments of a decoder that hands its images over on `device`: as Pillow, without EXIF rotation."""
    if device.type == "cpu":
        return {"device": "cpu", "adjust_orientation": False}
    quality = {"adjust_orientation": False, "jpeg_fancy_upsampling": True}  # chroma as libjpeg interpolates it
    return {"device": "mixed", "hw_decoder_load": HARDWARE_SHARE, "affine": False} | quality


def resized(fn: Any, images: Any, **size: Any) -> Any:
    """The images resized as torchvision does."""
    from nvidia.dali import types

    kinds: Any = types  # among them those of its C++ enumerations
    return fn.resize(images, interp_type=kinds.INTERP_LINEAR, antialias=True, **size)


def outputs(pipe: Any, device: torch.device) -> list[Tensor]:
    """The next outputs as tensors that are ours: of a CPU DALI's own memory, which it does not use again.

    A GPU's are copied on the device, under the current stream, into memory of torch's allocator: that knows the streams
    which read it later, while DALI would take its memory back at once.
    """
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    tensors = [torch.from_dlpack(made.as_tensor()) for made in pipe.outputs(stream)]
    return [tensor.clone() if tensor.is_cuda else tensor for tensor in tensors]


def labelled(epoch: int, numbers: Tensor, images: Tensor, index: ImageIndex, view: View) -> Batch:
    """The batch of the images `numbers`, int64 (N,); beside images on a GPU the rest is pinned."""
    rest = index.labels[numbers], numbers, view.flips(epoch, numbers)
    return Batch(images, *(tensor.pin_memory() if images.is_cuda else tensor for tensor in rest))


def explained(error: RuntimeError, batches: Iterable[list[str]]) -> Exception:
    """What DALI's error means, given the files of the batches that it was at, the one it failed at first.

    A DataError that names a file which Pillow cannot decode either. Or else InputStopped with DALI's own words, and the
    file that it means, or, if it does not say, those of the batch that are no plain JPEGs.
    """
    failed, *later = batches
    for path in chain(failed, *later):
        try:
            read_rgb(path)
        except DataError as fault:
            return fault
    said = _reason(error)
    sample = re.search(r"sample #(\d+)", said)
    files = [failed[int(sample[1])]] if sample else [path for path in failed if plain_size(read_bytes(path)) is None]
    named = f" at {few(files)}, which Pillow can decode" if files else ""
    return InputStopped(f"DALI stopped: {said}{named}; the torchvision route needs no DALI")


def _reason(error: RuntimeError) -> str:
    """The line of DALI's message that says what happened."""
    lines = [line.strip() for line in str(error).partition("encountered:")[2].splitlines() if line.strip()]
    return (lines or str(error).strip().splitlines() or ["no reason given"])[0].rstrip(" :")
