"""Random boxes of decoded images to squares: the definition, each faster backend that is here, and Pillow."""

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fastdarts.data.crop import crop_box, crop_words
from fastdarts.ops import backend as backends
from fastdarts.ops.random_resized_crop import random_resized_crop

# height and width of the cached images, pixels a side of the result
SIZES = {"imagenet": (256, 340, 224), "tiny": (73, 90, 64)}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("backend", ["cpu", "definition", "pillow"])
def test_random_resized_crop(benchmark: BenchmarkFixture, full_size: bool, backend: str, name: str) -> None:
    if backend == "pillow":
        Image = pytest.importorskip("PIL.Image")
    elif why := backends.refusals("random_resized_crop", torch.device("cpu"), torch.uint8).get(backend):
        pytest.skip(why)
    height, width, S = SIZES[name]
    n = 64 if full_size else 2
    images = torch.randint(256, (n, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    start, size = 3 * height * width * torch.arange(n), torch.tensor([[height, width]]).repeat(n, 1)
    words = crop_words(1, 0, 0, torch.arange(n)).tolist()
    boxes = torch.tensor([crop_box(each, width, height) for each in words])
    threads = 1 if backend == "pillow" else torch.get_num_threads()
    benchmark.extra_info.update(batch=n, cached=f"{height} x {width}", image_size=S, threads=threads, backend=backend)

    def ours() -> None:
        random_resized_crop(images.view(-1), start, size, boxes, image_size=S, backend=backend)

    if backend == "pillow":  # as torchvision's resized_crop of PIL images does, and back to one array
        decoded = [Image.fromarray(image.numpy()) for image in images]
        places = [(left, top, left + w, top + h) for top, left, h, w in boxes.tolist()]
        out = np.empty((n, S, S, 3), np.uint8)

    def theirs() -> None:
        for i, (image, place) in enumerate(zip(decoded, places, strict=True)):
            out[i] = np.asarray(image.crop(place).resize((S, S), Image.Resampling.BILINEAR))

    benchmark.pedantic(theirs if backend == "pillow" else ours, rounds=20, warmup_rounds=2)
