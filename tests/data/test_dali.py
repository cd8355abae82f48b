"""The DALI route: the same batches as the torchvision route's, odd files, faults, and that nothing is left behind."""

import builtins
import gc
import io
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdarts.batch import Batch
from fastdarts.data import DaliLoader, DataError, FolderLoader, ImageIndex, InputStopped
from fastdarts.data import dali as dali_module
from fastdarts.data import prefetch as prefetch_module
from fastdarts.data.dali import unavailable
from fastdarts.data.sampler import BatchSampler
from fastdarts.ops.philox import Stream
from tests.data.conftest import picture, running, settles

dali = pytest.importorskip("nvidia.dali")
Tree = Callable[..., Path]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def settings(**changes: Any) -> dict[str, Any]:
    """Batches of 6 at 32 pixels."""
    return {"stream": Stream.TRAIN, "seed": 11, "batch_size": 6, "image_size": 32} | changes


def loader(index: ImageIndex, threads: int = 1, **changes: Any) -> DaliLoader:
    return DaliLoader(index, torch.arange(len(index)), threads=threads, **settings(**changes))


def folder(index: ImageIndex, **changes: Any) -> FolderLoader:
    return FolderLoader(index, torch.arange(len(index)), workers=0, **settings(**changes))


def same(a: Batch, b: Batch) -> bool:
    return all(x.equal(y) for x, y in zip(a, b, strict=True))


def assert_agree(ours: Batch, theirs: Batch) -> None:
    """Everything but pixels is equal; pixels are within the tolerance that DaliLoader states."""
    assert all(getattr(ours, name).equal(getattr(theirs, name)) for name in ("labels", "index", "flip"))
    assert ours.images.shape == theirs.images.shape and ours.images.dtype == torch.uint8 and ours.images.is_contiguous()
    off = (ours.images.int() - theirs.images.int()).abs()
    assert off[:, 1:-1, 1:-1].max() <= 1
    assert off.max() <= 64
    assert off.float().mean((1, 2, 3)).max() < 0.5


@pytest.fixture
def odd(tmp_path: Path) -> ImageIndex:
    """JPEGs of every kind, and other images named so."""
    photo, exif = picture(90, 70, 0), Image.Exif()
    exif[0x0112] = 6
    gray16 = Image.fromarray((np.arange(5400).reshape(60, 90) * 12).astype(np.uint16))
    palette = photo.quantize(30)
    palette.info["transparency"] = 3
    images: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "alpha": (photo.convert("RGBA"), {"format": "PNG"}),
        "cmyk": (photo.convert("CMYK"), {}),
        "exif": (photo, {"exif": exif}),
        "gif": (photo.quantize(60), {"format": "GIF"}),
        "gray": (photo.convert("L"), {}),
        "gray16": (gray16, {"format": "PNG"}),
        "grayalpha": (photo.convert("LA"), {"format": "PNG"}),
        "half": (photo, {"subsampling": "4:2:2"}),
        "icc": (photo, {"icc_profile": b"no profile at all"}),
        "one": (photo.resize((1, 1)), {}),
        "palette": (palette, {"format": "PNG"}),
        "png": (photo, {"format": "PNG"}),
        "progressive": (photo, {"progressive": True}),
        "rgb": (photo, {"keep_rgb": True}),
        "webp": (photo, {"format": "WEBP"}),
        "wide": (photo.resize((400, 3)), {"subsampling": "4:2:0"}),
    }
    target = tmp_path / "train/odd"
    target.mkdir(parents=True)
    for name, (image, options) in images.items():
        image.save(target / f"{name}.JPEG", **({"format": "JPEG", "quality": 90} | options))
    with open(target / "half.JPEG", "ab") as file:
        file.write(b"\0trailing bytes")
    return ImageIndex.from_root(tmp_path)


@pytest.fixture
def quick_grace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A thread that is stuck is not waited for, until the test is over."""
    monkeypatch.setattr(prefetch_module, "GRACE", 0.1)
    yield
    for thread in threading.enumerate():
        if thread.name == "fastdarts-input":
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize("changes", [{}, {"image_size": 48, "scale": (0.5, 1.0)}, {"stream": Stream.VAL, "seed": 2**63}])
def test_batches_match_torchvision_route(changes: dict[str, Any], tree: Tree) -> None:
    index = ImageIndex.from_root(tree(a=8, b=6))
    with loader(index, **changes) as ours, folder(index, **changes) as theirs:
        for _ in range(5):  # into a third epoch
            assert_agree(next(ours), next(theirs))


def test_centre_view_matches_torchvision_route(sample: Path) -> None:
    """Cropped before resizing, so slightly different from the other route's."""
    index = ImageIndex.from_root(sample)
    with loader(index, train=False) as ours, folder(index, train=False) as theirs:
        a, b = next(ours), next(theirs)
    assert a.index.equal(b.index) and not a.flip.any()
    assert (a.images.int() - b.images.int()).abs().float().mean() < 4


def test_unusual_files_are_decoded(odd: ImageIndex) -> None:
    for size in (24, 80):
        count = {"batch_size": len(odd), "image_size": size, "scale": (0.3, 1.0)}
        with loader(odd, **count) as ours, folder(odd, **count) as theirs:
            for _ in range(2):
                assert_agree(next(ours), next(theirs))


@pytest.mark.parametrize("part", ["train", "odd"])
def test_real_files_match_torchvision_route(part: str, shared_data: Path, tmp_path: Path) -> None:
    real = (shared_data / "imagenet_sample").resolve()
    if part == "odd":
        (tmp_path / "train").mkdir()
        (tmp_path / "train/odd").symlink_to(real / "odd")
    index = ImageIndex.from_root(tmp_path if part == "odd" else real)
    count = {"batch_size": 33, "image_size": 64}
    with loader(index, **count) as ours, folder(index, **count) as theirs:
        for _ in range(4):
            assert_agree(next(ours), next(theirs))


def test_cropping_after_decoding_is_bitwise_identical(odd: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is done on a GPU, here on the CPU: to the bit."""
    with loader(odd, batch_size=len(odd)) as boxes:
        expected = next(boxes)
    monkeypatch.setattr(dali_module, "decodes_boxes", lambda device: False)
    with loader(odd, batch_size=len(odd)) as whole:
        assert same(next(whole), expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_resume_is_bitwise_identical(threads: int, tree: Tree) -> None:
    index = ImageIndex.from_root(tree(a=8, b=6))
    with loader(index) as whole:
        expected = [next(whole) for _ in range(6)]
    with loader(index, threads) as first:
        for batch in expected[:3]:
            assert same(next(first), batch)
        state = first.state_dict()
        assert state == {"batch": 3}
        next(first)
        first.load_state_dict(state)
        assert same(next(first), expected[3])
    with loader(index, 3 - threads) as second, folder(index) as other:
        for resumed in (second, other):
            resumed.load_state_dict(state)
        for batch in expected[3:]:
            assert same(next(second), batch)
            assert_agree(batch, next(other))  # the other route goes on with it too
    with loader(index, start=5) as late:
        assert same(next(late), expected[5])


def test_batches_do_not_depend_on_world_size(tree: Tree) -> None:
    index = ImageIndex.from_root(tree(a=7, b=6))
    whole = loader(index)
    ranks = [loader(index, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(3):
        expected, parts = next(whole), [next(part) for part in ranks]
        for field, shares in zip(expected, zip(*parts, strict=True), strict=True):
            assert torch.stack(shares, 1).flatten(0, 1).equal(field)
    for each in (whole, *ranks):
        each.close()


def test_kept_batches_are_not_overwritten(tree: Tree) -> None:
    """DALI does not overwrite the memory of a batch."""
    index = ImageIndex.from_root(tree(a=8, b=6))
    with loader(index) as batches:
        kept = [next(batches) for _ in range(8)]
        copies = [batch.images.clone() for batch in kept]
        for _ in range(8):
            next(batches)
    assert all(batch.images.equal(copy) for batch, copy in zip(kept, copies, strict=True))


def damaged(index: ImageIndex, batch: int, data: bytes | None) -> tuple[Path, bytes]:
    """Replaces an image of batch `batch` by `data`, or removes it; its path and what was in it."""
    whole = BatchSampler(torch.arange(len(index)), stream=Stream.TRAIN, seed=11, batch_size=6)
    path = Path(index.path(int(whole.batch(batch)[1][4])))
    before = path.read_bytes()
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    return path, before


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("fault", ["truncated", "deleted", "replaced", "empty"])
def test_file_damaged_later_is_named_and_loader_continues(fault: str, batch: int, tree: Tree) -> None:
    """The batches before it come out, then a DataError in one line; when the file is back the loader goes on."""
    index = ImageIndex.from_root(tree(a=13, b=12))
    with loader(index) as whole:
        expected = [next(whole) for _ in range(batch + 1)]
    data = {"deleted": None, "replaced": b"<html>Not found</html>", "empty": b""}.get(fault, b"?")
    path, before = damaged(index, batch, data)
    if fault == "truncated":
        path.write_bytes(before[:700])
    reason = {
        "truncated": "cannot decode .*truncated",
        "deleted": "cannot read .*No such file",
        "replaced": "cannot decode .*not an image",
        "empty": "cannot read .*empty file",
    }[fault]
    with loader(index) as batches:
        for number in range(batch):
            assert same(next(batches), expected[number])
        for _ in range(2):
            with pytest.raises(DataError, match=reason) as caught:
                next(batches)
            assert path.name in str(caught.value) and "\n" not in str(caught.value)
        path.write_bytes(before)
        assert same(next(batches), expected[batch])


def test_file_made_unreadable_is_named(public: Path, nobody: Callable[[], AbstractContextManager[None]]) -> None:
    target = public / "train/a"
    target.mkdir(parents=True)
    for i in range(6):
        picture(40, 50, i).save(target / f"{i}.JPEG")
        (target / f"{i}.JPEG").chmod(0o644)
    index = ImageIndex.from_root(public)
    (target / "2.JPEG").chmod(0)
    with nobody(), loader(index) as batches, pytest.raises(DataError, match=r"cannot read .*2\.JPEG: Permission denied"):
        next(batches)


def test_file_only_dali_cannot_decode_is_named(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a GIF that is taken for a plain JPEG."""
    index = ImageIndex.from_root(tree(a=6))
    buffer = io.BytesIO()
    picture(40, 50, 0).quantize(20).save(buffer, format="GIF")
    damaged(index, 0, buffer.getvalue())
    monkeypatch.setattr(dali_module, "plain_size", lambda data: (50, 40))
    with loader(index) as batches, pytest.raises(InputStopped, match=r"DALI stopped: .*; the torchvision route"):
        next(batches)


def test_unresponsive_file_system_times_out(tree: Tree, quick_grace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    index, answer = ImageIndex.from_root(tree(a=6)), Event()
    monkeypatch.setattr(dali_module, "read_bytes", lambda path: answer.wait() and Path(path).read_bytes())
    with loader(index, timeout=1.0) as batches:
        with pytest.raises(InputStopped, match=r"stuck at: reading the files of train images, first .*a_"):
            next(batches)
        answer.set()


def test_close_leaves_no_threads_and_random_state_unchanged(tree: Tree) -> None:
    """Neither threads of Python's nor of DALI's, whether the loader is closed, forgotten, or ends with an error."""
    root = tree(a=13)
    index = ImageIndex.from_root(root)

    def closed() -> None:
        with loader(index, 2) as batches:
            next(batches)
            assert running() > before

    def forgotten() -> None:
        next(loader(index, 2))

    def failed() -> None:
        with pytest.raises(DataError):
            next(loader(broken, 2, batch_size=13))

    broken = ImageIndex(root, index.classes, (*index.files[:-1], "train/a/none.JPEG"), index.labels)
    with loader(index, 2) as batches:
        next(batches)  # what starts once stays
    gc.collect()  # and what other tests left ends
    states = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()
    before = running()
    for use in (closed, forgotten, failed):
        use()
        gc.collect()
        assert settles(before), use.__name__
    assert random.getstate() == states[0] and np.random.get_state()[1].tobytes() == states[1]
    assert torch.get_rng_state().equal(states[2])


def test_unusable_dali_gives_reason(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    index = ImageIndex.from_root(tree(a=6))
    assert unavailable(CPU) is None
    assert "DALI decodes for cpu and cuda" in str(unavailable(torch.device("mps")))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "cannot share cuda" in str(unavailable(CUDA))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(dali, "__cuda_version__", 13492)
    assert str(unavailable(CUDA)) == (
        "DALI is built for CUDA 13, torch for CUDA 12: "
        "pip uninstall nvidia-dali-cuda130, then pip install 'fastdarts[dali-cuda120]'"
    )
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert unavailable(CUDA) is None
    monkeypatch.setattr(dali, "__cuda_version__", 1291)
    assert "pip install 'fastdarts[dali]'" in str(unavailable(CUDA))
    assert unavailable(CPU) is None
    real = builtins.__import__

    def fail(error: Exception) -> None:
        def importing(name: str, *args: Any) -> Any:
            if name.startswith("nvidia"):
                raise error
            return real(name, *args)

        monkeypatch.setattr(builtins, "__import__", importing)

    fail(ModuleNotFoundError("No module named 'nvidia.dali'", name="nvidia.dali"))
    with pytest.raises(DataError, match=r"DALI is not installed: pip install 'fastdarts\[dali\]'"):
        loader(index)
    fail(ImportError("libdali.so: cannot open shared object file\nand more"))
    assert unavailable(CPU) == "DALI is installed but does not import: libdali.so: cannot open shared object file"
    fail(ModuleNotFoundError("No module named 'astunparse'", name="astunparse"))
    assert "does not import: No module named 'astunparse'" in str(unavailable(CPU))


def test_invalid_batch_size_is_rejected(tree: Tree) -> None:
    index = ImageIndex.from_root(tree(a=6))
    with pytest.raises(DataError, match="batch_size is 7 but the train split has 6 images"):
        loader(index, batch_size=7)
