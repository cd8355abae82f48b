"""Loader with NVIDIA DALI as decoder: nvJPEG on a GPU, libjpeg-turbo in DALI's threads on a CPU.

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
from fastdarts.data.prefetch import Activity
from fastdarts.data.sampler import BatchSampler
from fastdarts.data.view import View
from fastdarts.data.workers import Request
from fastdarts.provenance import BROKEN
from fastdarts.quoting import quoted, shortlist

PREFETCH = 2  # batches inside DALI: decoding one overlaps with reading the next one's files
ROWS_COLUMNS = (0, 1)  # axis order of anchors and shapes
READERS = 4  # reader threads; mostly waiting for I/O
HARDWARE_SHARE = 0.65  # share of the images sent to a GPU's hardware decoder, if it has one: DALI's default


def unavailable(device: torch.device) -> str | None:
    """Return a sentence that explains why DALI cannot decode for `device`, or None if it can."""
    try:
        import nvidia.dali
    except BROKEN as error:
        if isinstance(error, ModuleNotFoundError) and error.name in ("nvidia", "nvidia.dali"):
            return "DALI is not installed: pip install 'fastdarts[dali]'"
        return f"DALI is installed but does not import: {(str(error) or repr(error)).splitlines()[0]}"
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.version.cuda is None:
        return f"DALI and torch cannot share {device.type}: DALI decodes for cpu and cuda"
    ours, theirs = torch.version.cuda.partition(".")[0], str(nvidia.dali.__cuda_version__)[:2]
    if ours == theirs:
        return None
    extra = "dali" if ours == "13" else f"dali-cuda{ours}0"
    remedy = f"pip uninstall nvidia-dali-cuda{theirs}0, then pip install 'fastdarts[{extra}]'"
    return f"DALI is built for CUDA {theirs}, torch for CUDA {ours}: {remedy}"


class DaliLoader(Loader):
    """Loader that decodes, crops and resizes with DALI, in our sampler's order and with our boxes.

    On a CPU, images agree with FolderLoader's for the same box: within half a level (of 255) on average over an image, and
    within one level per pixel except in the outermost row and column on each side. There Pillow's filter ends at the box,
    while DALI replicates the last pixel, a difference of up to 64 levels. (Measured on ImageNet: 0.28 at most, 0.15 on
    average; 26 at the border.) If not `train`, the centre is cropped before resizing instead of after it, so whole pixels
    are rounded differently. On a GPU, nvJPEG's arithmetic differs.
    DALI decodes plain JPEGs (data.jpeg) only. Pillow decodes all other files, and DALI crops and resizes them.
    At most PREFETCH batches are inside DALI and prefetch.DEPTH + 1 behind it. On a GPU each pipeline (one for the weights'
    split, one for alpha's) also keeps PREFETCH batches of whole decoded images there, 0.6 MB for each image of ImageNet's
    usual size, and nvJPEG's buffers, at least 16 MB of device and of pinned memory per thread.
    """

    def __init__(self, index: ImageIndex, indices: Tensor, *, threads: int, **common: Unpack[Common]) -> None:
        """Store the arguments; DALI starts at the first next().

        indices  int64, images of the split
        threads  DALI's decoding threads
        common   see data.loader.Common
        Raises DataError if DALI is `unavailable`, or if the batch size does not fit the split or world_size.
        """
        super().__init__(indices, **common)
        if why := unavailable(self.device):
            raise DataError(why)
        self._index, self._threads = index, threads

    def _produce(self, number: int, stage: Activity) -> Iterator[Batch]:
        return _decoded(self._index, self.sampler, self.view, self._threads, self.device, number, stage)


class _Asked(NamedTuple):
    """Batch in flight in DALI."""

    request: Request
    files: list[np.ndarray]  # on a CPU DALI reads from these buffers: keep them alive


def _decoded(
    index: ImageIndex, sampler: BatchSampler, view: View, threads: int, device: torch.device, number: int, stage: Activity
) -> Iterator[Batch]:
    """Yield the batches from `number` on."""
    split, numbers = view.stream.name.lower(), count(number)
    asked: deque[_Asked] = deque()
    wrong: list[Exception] = []

    def feed() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Return DALI's inputs for the next batch. On failure ends the input, so that earlier batches still come out."""
        epoch, indices = sampler.batch(next(numbers))
        request = Request.of(index, indices, epoch)
        stage.now = f"reading the files of {split} images, first {quoted(request.paths[0])}; is the file system alive?"
        try:
            files, sizes = zip(*pool.map(_encoded, request.paths), strict=True)
        except DataError as error:
            wrong.append(error)
            raise StopIteration from error
        boxes = np.array(view.boxes(epoch, indices, list(sizes)), np.int32)
        asked.append(_Asked(request, list(files)))
        return list(files), boxes[:, :2].copy(), boxes[:, 2:].copy()

    def graph(fn: Any) -> Any:
        # a copy to a GPU may still be in progress when the batch is returned
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
                stage.now = f"searching for the {split} image that DALI could not decode"
                raise explained(error, (batch.request.paths for batch in asked)) from error
            request = asked.popleft().request
            yield labelled(request.epoch, torch.tensor(request.indices), images, index, view)


def _encoded(path: str) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the file, uint8 (bytes,), and the image's (height, width); losslessly re-encoded unless it is a plain JPEG."""
    data = read_bytes(path)
    size = plain_size(data)
    if size is None:
        image = read_rgb(path, data)
        size = image.height, image.width
        data = b"P6 %d %d 255\n" % image.size + image.tobytes()
    return np.frombuffer(data, np.uint8), size


def pipeline(graph: Callable[[Any], Any], batch_size: int, threads: int, device: torch.device) -> Any:
    """Build a DALI pipeline that outputs graph(nvidia.dali.fn); it ends with its last reference.

    Raises InputStopped if DALI cannot start, for example with a driver that is too old.
    """
    from nvidia.dali import Pipeline, fn

    number = None if device.type == "cpu" else device.index if device.index is not None else torch.cuda.current_device()
    pipe = Pipeline(batch_size, threads, number, prefetch_queue_depth=PREFETCH, exec_dynamic=True)
    try:
        with pipe:
            pipe.set_outputs(graph(fn))
        pipe.build()
    except RuntimeError as error:
        raise InputStopped(f"DALI does not start: {_reason(error)}") from error
    return pipe


def decodes_boxes(device: torch.device) -> bool:
    """Return whether the decoder crops the boxes itself instead of decoding whole images.

    It does not on a GPU: nvImageCodec 0.9, required by DALI 2.4, is reported to fail or crash when decoding regions of JPEGs
    there (NVIDIA/nvImageCodec, issue 55).
    """
    return device.type == "cpu"


def cut(fn: Any, files: Any, anchors: Any, shapes: Any, device: torch.device) -> Any:
    """Decode the boxes, (top, left) and (height, width), of the images in `files`."""
    if decodes_boxes(device):
        return fn.decoders.image_slice(files, anchors, shapes, axes=ROWS_COLUMNS, **decoding(device))
    return fn.slice(fn.decoders.image(files, **decoding(device)), anchors, shapes, axes=ROWS_COLUMNS)


def decoding(device: torch.device) -> dict[str, Any]:
    """Return the arguments of a decoder with output on `device`: like Pillow, without EXIF rotation."""
    if device.type == "cpu":
        return {"device": "cpu", "adjust_orientation": False}
    quality = {"adjust_orientation": False, "jpeg_fancy_upsampling": True}  # libjpeg's chroma interpolation
    return {"device": "mixed", "hw_decoder_load": HARDWARE_SHARE, "affine": False} | quality


def resized(fn: Any, images: Any, **size: Any) -> Any:
    """Resize the images as torchvision does."""
    from nvidia.dali import types

    kinds: Any = types  # among them those of its C++ enumerations
    return fn.resize(images, interp_type=kinds.INTERP_LINEAR, antialias=True, **size)


def outputs(pipe: Any, device: torch.device) -> list[Tensor]:
    """Return the next outputs as tensors that we own. On a CPU they share DALI's memory, which it does not reuse.

    On a GPU they are copied on the current stream into memory of torch's allocator, which tracks the streams that read it
    later; DALI would reuse its memory immediately.
    """
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    tensors = [torch.from_dlpack(made.as_tensor()) for made in pipe.outputs(stream)]
    return [tensor.clone() if tensor.is_cuda else tensor for tensor in tensors]


def labelled(epoch: int, numbers: Tensor, images: Tensor, index: ImageIndex, view: View) -> Batch:
    """Return the batch of the images `numbers`, int64 (N,); with images on a GPU the other tensors are pinned."""
    rest = index.labels[numbers], numbers, view.flips(epoch, numbers)
    return Batch(images, *(tensor.pin_memory() if images.is_cuda else tensor for tensor in rest))


def explained(error: RuntimeError, batches: Iterable[list[str]]) -> Exception:
    """Translate DALI's error, given the files of the batches in flight, the failed one first.

    Returns a DataError that names a file if Pillow cannot decode it either. Else returns InputStopped with DALI's message and
    the file it names or, if it names none, the files of the batch that are not plain JPEGs.
    """
    failed, *later = batches
    for path in chain(failed, *later):
        try:
            read_rgb(path)
        except DataError as fault:
            return fault
    reason = _reason(error)
    sample = re.search(r"sample #(\d+)", reason)
    files = [failed[int(sample[1])]] if sample else [path for path in failed if plain_size(read_bytes(path)) is None]
    named = f" at {shortlist(files)}, which Pillow can decode" if files else ""
    return InputStopped(f"DALI stopped: {reason}{named}; the torchvision route needs no DALI")


def _reason(error: RuntimeError) -> str:
    """Return the line of DALI's message with the cause."""
    lines = [line.strip() for line in str(error).partition("encountered:")[2].splitlines() if line.strip()]
    return (lines or str(error).strip().splitlines() or ["no reason given"])[0].rstrip(" :")
