"""The resident cache on a GPU: bitwise equal to the one in RAM, on the right stream, with captured searches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdarts.batch import Batch
from fastdarts.data import Cache, CacheEvalLoader, CacheLayout, CacheLoader, FolderLoader, ImageIndex, placement, verify
from fastdarts.ops.philox import Stream
from fastdarts.search_imagenet import main
from tests.data.conftest import tree  # noqa: F401  a fixture
from tests.test_search_imagenet import SPLIT, TINY, write_tree

pytestmark = pytest.mark.gpu
Tree = Callable[..., Path]
CUDA = torch.device("cuda:0")


def layout_of(root: Path) -> CacheLayout:
    index = ImageIndex.from_root(root)
    good, sizes, _ = verify(index, torch.arange(len(index)), 2)
    return CacheLayout.of(index, good, sizes, 24)


def order(**changes: Any) -> dict[str, Any]:
    return {"stream": Stream.TRAIN, "seed": 11, "batch_size": 6, "image_size": 16} | changes


def same(on_gpu: Batch, on_cpu: Batch) -> bool:
    return all(x.is_cuda and x.cpu().equal(y) for x, y in zip(on_gpu, on_cpu, strict=True))


@pytest.mark.parametrize("where", ["memory", "file"])
def test_device_cache_is_bitwise_ram_cache(where: str, tree: Tree, tmp_path: Path) -> None:  # noqa: F811
    layout = layout_of(tree(a=40, b=30))
    mine = Cache.make(layout, CUDA, folder=tmp_path / "cache" if where == "file" else None, threads=4)
    theirs = Cache.make(layout, "cpu")
    assert mine.pixels.is_cuda and mine.pixels.cpu().equal(theirs.pixels)
    with CacheLoader(mine, layout.numbers, **order(device=CUDA)) as a, CacheLoader(theirs, layout.numbers, **order()) as b:
        for _ in range(30):
            assert same(next(a), next(b))
    sizes = {"batch_size": 8, "image_size": 20}
    passes = CacheEvalLoader(mine, layout.numbers, device=CUDA, **sizes), CacheEvalLoader(theirs, layout.numbers, **sizes)
    assert all(same(*pair) for pair in zip(*passes, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_complete_while_device_is_busy(workers: int, tree: Tree) -> None:  # noqa: F811
    """They come on a stream of their own: work queued on the consumer's must neither see half a batch nor lose its memory."""
    layout = layout_of(tree(a=40, b=30))
    with FolderLoader(layout.index, layout.numbers, workers=0, **order()) as loader:
        expected = [next(loader) for _ in range(20)]
    busy, sums = torch.randn(2048, 2048, device=CUDA), []
    with FolderLoader(layout.index, layout.numbers, workers=workers, **order(device=CUDA)) as loader:
        for _ in range(20):
            batch = next(loader)
            for _ in range(20):
                busy = busy @ busy
                busy /= busy.norm()
            sums.append(batch.images.long().sum((1, 2, 3)))
            del batch  # its memory may be taken again as soon as the sum is done, not before
    for total, batch in zip(sums, expected, strict=True):
        assert total.cpu().equal(batch.images.long().sum((1, 2, 3)))


def test_placement_follows_free_memory() -> None:
    free = torch.cuda.mem_get_info(CUDA)[0]
    assert placement.choose("auto", 2**20, CUDA).where == "device"
    assert placement.choose("auto", free, CUDA).where != "device"
    assert placement.choose("auto", 2**20, CUDA, reserved=2 * free).where != "device"


def test_captured_search_from_device_cache_matches_ram(tmp_path: Path) -> None:
    """The same bytes from the device's cache and from RAM, graphs captured while the input's thread works."""
    root = write_tree(tmp_path / "images", side=60)
    runs = []
    for where in ("device", "ram"):
        run = tmp_path / where
        flags = ["--epochs", "3", "--begin", "1", "--device", "cuda", "--cuda_graph", "on", "--cache", where]
        assert main(["--data", str(root), *TINY, *SPLIT, *flags, "--save", str(run)]) == 0
        runs.append((run / "train.txt").read_bytes())
    assert runs[0] == runs[1]
