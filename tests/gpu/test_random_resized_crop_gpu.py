"""random_resized_crop by Triton on a GPU: the definition's bits, captured, compiled, registered; nothing outside is read."""

import pytest
import torch

from fastdarts.ops.random_resized_crop import MOST_SIDE, definition, random_resized_crop
from tests.ops.exactness import uninitialised_memory_is_nan
from tests.ops.test_random_resized_crop import SMALL, Crops, crops, photographs

pytestmark = pytest.mark.gpu
LONG = [(1, MOST_SIDE, (0, 0, 1, MOST_SIDE)), (MOST_SIDE, 2, (0, 0, MOST_SIDE, 1)), (600, 900, (1, 2, 590, 880))]


def on_gpu(given: Crops) -> list[torch.Tensor]:
    return [t.cuda() for t in given]


@pytest.mark.parametrize("S", [1, 5, 32, 64, 100, 224])
def test_result_is_bitwise_cpu_definition(S: int) -> None:
    for given in (crops(SMALL), crops(LONG), photographs(8, 73, 90), photographs(8, 256, 340)):
        with uninitialised_memory_is_nan():
            ours = random_resized_crop(*on_gpu(given), image_size=S, backend="triton")
        want = definition(*given, S)
        assert ours.stride() == want.stride()
        assert torch.equal(ours.cpu(), want)


def test_gpu_definition_is_bitwise_cpu_definition() -> None:
    given = photographs(4, 73, 90)
    ours = random_resized_crop(*on_gpu(given), image_size=64, backend="definition")
    assert torch.equal(ours.cpu(), definition(*given, 64))


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.fastdarts.random_resized_crop.default, (*on_gpu(crops(SMALL)), 6))


def test_captured_call_follows_boxes() -> None:
    given = on_gpu(photographs(8, 73, 90))
    random_resized_crop(*given, image_size=64, backend="triton")  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = random_resized_crop(*given, image_size=64, backend="triton")
    for seed in (1, 2):
        given[3].copy_(photographs(8, 73, 90, seed)[3])
        graph.replay()
        assert torch.equal(out.cpu(), definition(*(t.cpu() for t in given), 64))


def test_compiles_without_graph_break() -> None:
    given = on_gpu(photographs(3, 40, 50))
    compiled = torch.compile(lambda *t: random_resized_crop(*t, image_size=32, backend="triton"), fullgraph=True)
    assert torch.equal(compiled(*given).cpu(), definition(*(t.cpu() for t in given), 32))


def test_invalid_images_and_boxes_are_black() -> None:
    pixels, start, size, boxes = on_gpu(crops(SMALL))
    want = definition(pixels, start, size, boxes, 4)
    start[0], boxes[3, 0], size[5, 1] = 2**60, -(2**62), 2**31 - 1
    want[[0, 3, 5]] = 0
    assert torch.equal(random_resized_crop(pixels, start, size, boxes, image_size=4, backend="triton"), want)


def test_offsets_beyond_2_31_bytes() -> None:
    far = 2**32 + 5
    if torch.cuda.mem_get_info()[0] < 2 * far:
        pytest.skip(f"less than {2 * far} bytes of the GPU's memory are free")
    image, start, size, boxes = photographs(1, 73, 90)
    pixels = torch.zeros(far + image.numel(), dtype=torch.uint8, device="cuda")
    pixels[far:] = image.cuda()
    ours = random_resized_crop(pixels, start.cuda() + far, size.cuda(), boxes.cuda(), image_size=64, backend="triton")
    assert torch.equal(ours.cpu(), definition(image, start, size, boxes, 64))
