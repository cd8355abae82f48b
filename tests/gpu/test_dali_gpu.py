"""DALI on a GPU: nvJPEG's pixels against Pillow's, memory reuse, resuming, unusual files, faults."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdarts.batch import Batch
from fastdarts.data import DaliLoader, DataError, FolderLoader, ImageIndex, InputStopped, sample_root
from fastdarts.data.dali import unavailable
from fastdarts.ops.philox import Stream
from tests.data.conftest import picture

pytest.importorskip("nvidia.dali")
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    if why := unavailable(torch.device("cuda")):
        pytest.skip(why)
    return ImageIndex.from_root(sample_root(tmp_path_factory.mktemp("cache")))


def settings(**changes: Any) -> dict[str, Any]:
    return {"stream": Stream.TRAIN, "seed": 5, "batch_size": 50, "image_size": 64, "device": "cuda"} | changes


def loader(index: ImageIndex, **changes: Any) -> DaliLoader:
    return DaliLoader(index, torch.arange(len(index)), threads=4, **settings(**changes))


def folder(index: ImageIndex, **changes: Any) -> FolderLoader:
    return FolderLoader(index, torch.arange(len(index)), workers=0, **settings(**changes))


def same(a: Batch, b: Batch) -> bool:
    return all(x.equal(y) for x, y in zip(a, b, strict=True))


def off(a: Batch, b: Batch) -> torch.Tensor:
    """By how many levels pixels differ, in batches that must be equal otherwise and lie on the GPU."""
    for name in ("labels", "index", "flip"):
        assert getattr(a, name).is_cuda and getattr(a, name).equal(getattr(b, name)), name
    assert a.images.is_cuda and a.images.is_contiguous() and a.images.dtype == torch.uint8
    return (a.images.int() - b.images.int()).abs()


@pytest.mark.parametrize("size", [64, 224])
def test_pixels_match_pillow(size: int, index: ImageIndex) -> None:
    """Within what another inverse transform and other colour arithmetic round differently; the border as on a CPU."""
    with loader(index, image_size=size) as ours, folder(index, image_size=size) as theirs:
        for _ in range(4):
            levels = off(next(ours), next(theirs))
            assert levels.float().mean((1, 2, 3)).max() < 1.5
            inside = levels[:, 1:-1, 1:-1]
            assert (inside > 4).float().mean() < 0.01
            assert levels.max() <= 64


def test_unusual_files_are_decoded(tmp_path: Path) -> None:
    photo = picture(90, 70, 0)
    (tmp_path / "train/a").mkdir(parents=True)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "cmyk": (photo.convert("CMYK"), {}),
        "gif": (photo.quantize(60), {"format": "GIF"}),
        "gray": (photo.convert("L"), {}),
        "half": (photo, {"subsampling": "4:2:2"}),
        "one": (photo.resize((1, 1)), {}),
        "png": (photo.convert("RGBA"), {"format": "PNG"}),
        "progressive": (photo, {"progressive": True}),
        "rgb": (photo, {"keep_rgb": True}),
    }
    for name, (image, options) in kinds.items():
        image.save(tmp_path / f"train/a/{name}.JPEG", **({"format": "JPEG", "quality": 90} | options))
    odd = ImageIndex.from_root(tmp_path)
    with loader(odd, batch_size=len(odd)) as ours, folder(odd, batch_size=len(odd)) as theirs:
        for _ in range(3):
            assert off(next(ours), next(theirs)).float().mean((1, 2, 3)).max() < 2


def test_resume_is_bitwise_identical(index: ImageIndex) -> None:
    with loader(index) as whole:
        expected = [next(whole) for _ in range(6)]
    with loader(index, start=3) as resumed:
        for batch in expected[3:]:
            assert same(next(resumed), batch)


def test_memory_is_not_overwritten_while_read(index: ImageIndex) -> None:
    """The step's stream lags far behind while batch after batch is made and given up."""
    with loader(index) as batches:
        expected = [int(next(batches).images.long().sum()) for _ in range(20)]
    busy, sums = torch.randn(4096, 4096, device="cuda"), []
    with loader(index) as batches:
        for _ in range(20):
            batch = next(batches)
            for _ in range(20):
                busy = (busy @ busy).clamp(-1, 1)
            sums.append(batch.images.long().sum())
            del batch
    assert [int(x) for x in sums] == expected


def test_kept_batches_are_not_overwritten(index: ImageIndex) -> None:
    with loader(index) as batches:
        kept = [next(batches).images for _ in range(10)]
        copies = [images.clone() for images in kept]
        for _ in range(10):
            next(batches)
    assert all(images.equal(copy) for images, copy in zip(kept, copies, strict=True))


def test_graph_capture_during_batch_production(index: ImageIndex) -> None:
    """As the engine captures: errors are those of its own thread."""
    x = torch.ones(64, device="cuda")
    with loader(index) as batches:
        for _ in range(5):
            next(batches)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                y = x * 2
            x.add_(1)
            graph.replay()
            assert y.equal(x * 2)


def test_memory_does_not_grow(index: ImageIndex) -> None:
    """Neither within a run nor over loaders that were closed."""

    def used() -> int:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return total - free

    def run(count: int) -> int:
        with loader(index) as batches:
            for _ in range(count):
                next(batches)
            return used()

    first = run(20)
    slack = 2**27
    assert run(100) <= first + slack
    for _ in range(5):
        run(3)
    assert used() <= first + slack


@pytest.mark.parametrize("fault", ["truncated", "deleted", "replaced"])
def test_file_damaged_later_is_named_and_loader_continues(fault: str, tmp_path: Path) -> None:
    (tmp_path / "train/a").mkdir(parents=True)
    for i in range(8):
        picture(60, 50, i).save(tmp_path / f"train/a/{i}.JPEG")
    index = ImageIndex.from_root(tmp_path)
    path = tmp_path / "train/a/3.JPEG"
    data = path.read_bytes()
    path.unlink()
    if fault != "deleted":
        path.write_bytes(data[: len(data) // 2] if fault == "truncated" else b"<html>Not found</html>")
    with loader(index, batch_size=8) as batches:
        with pytest.raises((DataError, InputStopped), match=r"3\.JPEG"):
            next(batches)
        path.write_bytes(data)
        assert len(next(batches).images) == 8
