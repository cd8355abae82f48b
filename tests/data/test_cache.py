"""The resident cache: contents, placement, batches, and atomic files."""

import errno
import fcntl
import logging
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdarts.batch import Batch
from fastdarts.data import (
    Cache,
    CacheEvalLoader,
    CacheLayout,
    CacheLoader,
    DataError,
    EvalLoader,
    FolderLoader,
    ImageIndex,
    cache_file,
    crop_box,
    crop_words,
    placement,
    verify,
)
from fastdarts.data import cache as cache_module
from fastdarts.data.decode import read_rgb
from fastdarts.ops.philox import Stream

functional = pytest.importorskip("torchvision.transforms.v2.functional")
Tree = Callable[..., Path]
CPU = torch.device("cpu")
SHORT = 24


def layout_of(root: Path, short: int = SHORT) -> CacheLayout:
    index = ImageIndex.from_root(root)
    good, sizes, _ = verify(index, torch.arange(len(index)), 1)
    return CacheLayout.of(index, good, sizes, short)


def kept(cache: Cache, row: int) -> np.ndarray:
    """The image of a row, (H, W, 3)."""
    first, last = cache.layout.starts[row : row + 2].tolist()
    return cache.pixels[first:last].numpy().reshape(*cache.layout.sizes[row].tolist(), 3)


def order(**changes: Any) -> dict[str, Any]:
    return {"stream": Stream.TRAIN, "seed": 11, "batch_size": 6, "image_size": 16} | changes


def reduced(box: tuple[int, ...], size: tuple[int, int], kept: tuple[int, int]) -> list[int]:
    """A box of an image of `size` in the one that is kept, in floating point."""
    scale = [kept[axis] / size[axis] for axis in (0, 1)]
    extent = [max(1, math.floor(box[2 + axis] * scale[axis] + 0.5)) for axis in (0, 1)]
    corner = [min(math.floor(box[axis] * scale[axis] + 0.5), kept[axis] - extent[axis]) for axis in (0, 1)]
    return corner + extent


def same(a: Batch, b: Batch) -> bool:
    return all(x.equal(y) for x, y in zip(a, b, strict=True))


def test_layout_matches_hand_computation(tree: Tree) -> None:
    """Short sides of 25 pixels at most, the other side in proportion, rounded down; smaller images are unchanged."""
    index = ImageIndex.from_root(tree(a=4))
    decoded = torch.tensor([[50, 200], [20, 300], [75, 50], [100, 101]], dtype=torch.int32)
    layout = CacheLayout.of(index, torch.tensor([2, 1, 0, 3]), decoded, 25)
    assert layout.numbers.tolist() == [0, 1, 2, 3]
    assert layout.sizes.tolist() == [[37, 25], [20, 300], [25, 100], [25, 25]]
    assert layout.starts.tolist() == [0, 2775, 20775, 28275, 30150] and layout.bytes == 30150


def test_sides_are_limited_to_op_maximum(tmp_path: Path) -> None:
    """An image of 20000 x 3 pixels is squeezed along its length; its boxes lie where they would."""
    path = tmp_path / "train/a/a.png"
    path.parent.mkdir(parents=True)
    ramp = np.linspace(0, 255, 20000).astype(np.uint8)
    Image.fromarray(np.broadcast_to(ramp[None, :, None], (3, 20000, 3)).copy()).save(path)
    layout = layout_of(tmp_path)
    assert layout.sizes.tolist() == [[3, 16384]] and layout.decoded.tolist() == [[3, 20000]]
    cache = Cache.make(layout, "cpu")
    with (
        CacheLoader(cache, layout.numbers, **order(batch_size=1)) as mine,
        FolderLoader(layout.index, layout.numbers, workers=0, **order(batch_size=1)) as theirs,
    ):
        assert all((next(mine).images.double() - next(theirs).images.double()).abs().max() <= 2 for _ in range(5))
    (batch,) = CacheEvalLoader(cache, layout.numbers, batch_size=1, image_size=16)
    assert (batch.images.double() - 127.5).abs().max() <= 1.5


@pytest.mark.parametrize("short", [7, 32, 100])
def test_cached_sizes_match_torchvision(short: int, tree: Tree) -> None:
    index = ImageIndex.from_root(tree(a=1))
    decoded = torch.randint(short, 40 * short, (200, 2), generator=torch.Generator().manual_seed(short))
    layout = CacheLayout.of(index, torch.arange(200), decoded, short)
    for (height, width), size in zip(decoded.tolist()[::20], layout.sizes.tolist()[::20], strict=True):
        image = functional.resize(Image.new("L", (width, height)), [short])
        assert size == [image.height, image.width]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("where", ["ram", "file"])
def test_cached_pixels_match_torchvision_resize(where: str, threads: int, tree: Tree, tmp_path: Path) -> None:
    layout = layout_of(tree(a=40, b=30))
    done = []
    folder = tmp_path / "cache" if where == "file" else None
    cache = Cache.make(layout, "cpu", folder=folder, threads=threads, progress=lambda *counts: done.append(counts))
    assert done[-1] == (70, 70)
    for row in (0, 33, 69):
        image = functional.resize(read_rgb(layout.index.path(row)), [SHORT])
        assert np.array_equal(kept(cache, row), np.asarray(image))


def test_batches_match_torchvision_route(tree: Tree) -> None:
    """Order, labels and mirrors are the torchvision route's; pixels those of the box in the image that is kept."""
    layout = layout_of(tree(a=7, b=6))
    cache = Cache.make(layout, "cpu")
    with (
        CacheLoader(cache, layout.numbers, **order()) as mine,
        FolderLoader(layout.index, layout.numbers, workers=0, **order()) as theirs,
    ):
        for epoch in (0, 0, 1, 1):
            batch, expected = next(mine), next(theirs)
            assert all(a.equal(b) for a, b in zip(batch[1:], expected[1:], strict=True))
            assert batch.images.shape == expected.images.shape and batch.images.is_contiguous()
            words = crop_words(11, Stream.TRAIN, epoch, batch.index).tolist()
            for i, number in enumerate(batch.index.tolist()):
                image = Image.fromarray(kept(cache, number))
                height, width = layout.decoded[number].tolist()
                box = reduced(crop_box(words[i], width, height), (height, width), (image.height, image.width))
                cut = np.asarray(functional.resized_crop(image, *box, [16, 16]), dtype=int)
                assert np.abs(batch.images[i].numpy() - cut).mean() < 0.5
            difference = (batch.images.double() - expected.images.double()).abs().mean((1, 2, 3))
            assert difference.mean() < 8 and difference.max() < 25, "boxes are rounded to larger pixels, images smoother"


def test_resume_and_ranks_match_single_run(tree: Tree) -> None:
    layout = layout_of(tree(a=7, b=6))
    cache = Cache.make(layout, "cpu")
    whole = CacheLoader(cache, layout.numbers, **order())
    expected = [next(whole) for _ in range(5)]
    with CacheLoader(cache, layout.numbers, **order()) as loader:
        loader.load_state_dict({"batch": 2})
        assert all(same(next(loader), batch) for batch in expected[2:])
    ranks = [CacheLoader(cache, layout.numbers, **order(rank=rank, world_size=3)) for rank in range(3)]
    for field, shares in zip(expected[0], zip(*map(next, ranks), strict=True), strict=True):
        assert torch.stack(shares, 1).flatten(0, 1).equal(field)


def test_evaluation_of_larger_files_is_bitwise_torchvision(tree: Tree) -> None:
    """Images of 40 to 76 pixels on the short side, kept with 32: what the evaluation of 28 pixels resizes to."""
    layout = layout_of(tree(a=7, b=6), short=32)
    cache = Cache.make(layout, "cpu")
    sizes = {"batch_size": 4, "image_size": 28}
    mine = list(CacheEvalLoader(cache, layout.numbers, **sizes))
    theirs = list(EvalLoader(layout.index, layout.numbers, workers=0, **sizes))
    assert len(mine) == 4 and all(same(a, b) for a, b in zip(mine, theirs, strict=True))


def test_existing_cache_file_is_reused_without_decoding(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, folder = tree(a=6), tmp_path / "cache"
    first = Cache.make(layout_of(root), "cpu", folder=folder)
    pixels = first.pixels.clone()
    (written,) = folder.glob("*.pixels")
    assert {p.suffix for p in folder.iterdir()} == {".pixels", ".lock"}
    os.chmod(written, 0o444)
    with monkeypatch.context() as patch:
        patch.setattr(CacheLayout, "fill", lambda *_: pytest.fail("decoded again"))
        assert Cache.make(layout_of(root), "cpu", folder=folder).pixels.equal(pixels)
    path = root / "train/a/a_3.JPEG"
    Image.new("RGB", (90, 90)).save(path)  # another image in its place
    assert not Cache.make(layout_of(root), "cpu", folder=folder).pixels.equal(pixels)
    assert len(list(folder.glob("*.pixels"))) == 2
    assert len({layout_of(root, short).key() for short in (24, 25)}) == 2


def test_cache_file_is_found_after_images_moved(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/cache\xe9\n"))
    layout = layout_of(tree(a=3))
    written = Cache.make(layout, "cpu", folder=folder)
    shutil.copytree(tmp_path / "train", tmp_path / "elsewhere/train")  # times of change too
    monkeypatch.setattr("fastdarts.data.cache.read_rgb", lambda path: pytest.fail(f"{path} was decoded"))
    moved = layout_of(tmp_path / "elsewhere")
    assert Cache.make(moved, "cpu", folder=folder).pixels.equal(written.pixels)
    os.utime(moved.index.path(0), (1, 1))
    assert moved.key() != layout.key()


def test_file_larger_than_ram_is_mapped(tmp_path: Path) -> None:
    """As the system counts it: it refuses a private mapping that may be written and is larger than RAM and swap."""
    lines = dict(line.split(":") for line in placement.MEMINFO.read_text().splitlines())
    size = 3 * 1024 * sum(int(lines[name].split()[0]) for name in ("MemTotal", "SwapTotal"))
    with open(tmp_path / f"{'k' * 24}.pixels", "wb") as file:  # all holes
        file.truncate(size)
        file.seek(size)
        file.write(cache_file.TRAILER.format(key="k" * 24).encode())
    pixels = cache_file.open_file(tmp_path, "k" * 24, size)
    assert pixels.shape == (size,) and pixels.dtype == torch.uint8 and pixels[size - 1] == 0


def test_waiting_for_another_process_is_logged(tree: Tree, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout, folder = layout_of(tree(a=6)), tmp_path / "cache"
    folder.mkdir()
    caplog.set_level(logging.INFO)
    with open(folder / f"{layout.key()[:24]}.lock", "w") as lock, ThreadPoolExecutor(1) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = pool.submit(Cache.make, layout, "cpu", folder=folder)
        began = monotonic()
        while not caplog.records and monotonic() - began < 10:
            pass
        assert "waiting for another process that writes the cache" in caplog.text and not made.done()
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert made.result(30).pixels.sum() > 0


def test_interrupt_during_fill_ends_quickly(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the image that is being decoded, not after the rest of the thread's share."""
    layout, seen = layout_of(tree(a=2 * cache_module.CHUNK)), []

    def decode(layout: CacheLayout, row: int) -> np.ndarray:
        seen.append(row)
        began = monotonic()
        while row >= cache_module.CHUNK and monotonic() - began < 0.2:
            pass
        return np.zeros(int(layout.starts[row + 1] - layout.starts[row]), np.uint8)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CacheLayout, "_decode", decode)
    with pytest.raises(KeyboardInterrupt):
        Cache.make(layout, "cpu", threads=1, progress=interrupt)
    assert len(seen) <= cache_module.CHUNK + 10


@pytest.mark.parametrize("harm", ["truncated", "lengthened", "trailer"])
def test_incomplete_cache_file_is_never_read(harm: str, tree: Tree, tmp_path: Path) -> None:
    root, folder = tree(a=6), tmp_path / "cache"
    pixels = Cache.make(layout_of(root), "cpu", folder=folder).pixels.clone()
    (path,) = folder.glob("*.pixels")
    data = path.read_bytes()
    path.write_bytes({"truncated": data[:-1], "lengthened": data + b"x", "trailer": data[:-5] + b"xxxxx"}[harm])
    assert Cache.make(layout_of(root), "cpu", folder=folder).pixels.equal(pixels)
    assert path.read_bytes() == data


def _killed_while_writing(layout: CacheLayout, folder: Path) -> None:
    def fill(_: CacheLayout, pixels: torch.Tensor, *others: Any) -> None:
        pixels[:100] = 7
        os._exit(9)

    CacheLayout.fill = fill  # type: ignore[method-assign]
    Cache.make(layout, "cpu", folder=folder)


def _write(layout: CacheLayout, folder: Path) -> None:
    os._exit(0 if Cache.make(layout, "cpu", folder=folder).pixels.sum() > 0 else 1)


def test_killed_and_concurrent_writers_leave_intact_file(tree: Tree, tmp_path: Path) -> None:
    layout, folder = layout_of(tree(a=40, b=40)), tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    killed = context.Process(target=_killed_while_writing, args=(layout, folder))
    killed.start()
    killed.join(30)
    assert killed.exitcode == 9 and not list(folder.glob("*.pixels")) and list(folder.glob("*.part"))
    assert layout.room_taken(folder) > layout.bytes  # what it left counts as room that there is
    both = [context.Process(target=_write, args=(layout, folder)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert len(list(folder.glob("*.pixels"))) == 1 and not list(folder.glob("*.part"))
    assert Cache.make(layout, "cpu", folder=folder).pixels.equal(Cache.make(layout, "cpu").pixels)


def test_full_disk_is_reported(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    layout, folder = layout_of(tree(a=6)), tmp_path / "cache"
    with pytest.raises(
        DataError, match=r"cannot write the cache .*: it needs 0\.00 GiB, more than the disk has free; choose another"
    ):
        Cache.make(layout, "cpu", folder=folder)
    assert not list(folder.glob("*.pixels")) and not list(folder.glob("*.part"))
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(DataError, match=r"cannot (read|write) the cache .*(File exists|Not a directory); choose another"):
        Cache.make(layout, "cpu", folder=blocked)


@pytest.mark.parametrize(
    ("change", "report"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:900]),
            r"cannot decode .*a_3\.JPEG: .*truncated.*; it was intact when .* restore it",
        ),
        (lambda path: path.unlink(), r"a_3\.JPEG"),
        (
            lambda path: Image.new("RGB", (90, 80)).save(path),
            r"a_3\.JPEG had 49x74 pixels when it was checked, now it has 90x80",
        ),
        (lambda path: path.write_text("no image"), r"cannot decode .*a_3\.JPEG: not an image"),
    ],
    ids=["truncated", "deleted", "replaced", "no image"],
)
@pytest.mark.parametrize("where", ["ram", "file"])
def test_file_changed_between_check_and_cache_is_named(
    where: str, change: Callable[[Path], Any], report: str, tree: Tree, tmp_path: Path
) -> None:
    root, folder = tree(a=6), tmp_path / "cache"
    layout = layout_of(root)
    change(root / "train/a/a_3.JPEG")
    with pytest.raises(DataError, match=report):
        Cache.make(layout, "cpu", folder=folder if where == "file" else None)
    assert not list(folder.glob("*.pixels"))


def test_placement_follows_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "available_ram", lambda: 10 * 2**30)
    assert placement.choose("auto", 8 * 2**30, CPU) == ("ram", "cache: 8.00 GiB of decoded images in RAM")
    place = placement.choose("auto", 9 * 2**30, CPU)
    assert place.where == "off"
    assert place.message == "no cache of 9.00 GiB: cpu is not a GPU; RAM has 10.00 GiB free, of which at most 80% may be used"
    with pytest.raises(
        DataError, match=r"--cache ram: the decoded images need 9\.00 GiB: RAM has 10\.00 GiB free, .* --cache off"
    ):
        placement.choose("ram", 9 * 2**30, CPU)
    with pytest.raises(DataError, match=r"--cache device: .* cpu is not a GPU"):
        placement.choose("device", 1, CPU)
    assert placement.choose("off", 1, CPU).where == "off"
    small = placement.choose("ram", 3 * 2**20, CPU, tmp_path / "not/yet/there")
    assert small == ("ram", f"cache: 3.0 MiB of decoded images in a file in {tmp_path / 'not/yet/there'}")
    with pytest.raises(DataError, match=r"the disk of .* has .* GiB free"):
        placement.choose("ram", 2**60, CPU, tmp_path)
    assert placement.choose("ram", 2**60, CPU, tmp_path, taken=2**61).where == "ram"
    with pytest.raises(
        DataError, match=r"RAM has 10\.00 GiB free, of which the run needs about 5\.00 GiB, and of the rest at most 80% may"
    ):
        placement.choose("ram", 5 * 2**30, CPU, reserved=5 * 2**30)
    assert placement.choose("ram", 4 * 2**30, CPU, reserved=5 * 2**30).where == "ram"
    assert (
        placement.choose("ram", 8 * 2**30, torch.device("cuda"), reserved=5 * 2**30).where == "ram"
    )  # the GPU's are not RAM's
    assert placement.choose("ram", 1, CPU, tmp_path, reserved=2**60).where == "ram"  # nor does a mapped file keep it


def test_available_ram_respects_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:   500 kB\n")
    monkeypatch.setattr(placement, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(placement, "CGROUP", tmp_path)
    assert placement.available_ram() == 512000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 100\nfile 900\ninactive_file 700\nactive_file 200\n")
    assert placement.available_ram() == 512000
    (tmp_path / "memory.max").write_text("3000\n")
    assert placement.available_ram() == 2700, "files that were read once do not count"
