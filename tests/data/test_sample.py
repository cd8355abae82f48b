"""The generated sample: what it is, that it is the same each time, that a damaged one is repaired."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdarts.data import DataError, ImageIndex, sample_root, verify
from fastdarts.data.sample import MANIFESTS
from fastdarts.data.textures import PATTERNS, texture


def test_sample_contents(sample: Path) -> None:
    """Ten classes of 100 decodable JPEGs of varied sizes, some grayscale."""
    index = ImageIndex.from_root(sample)
    assert index.classes == tuple(PATTERNS) and len(PATTERNS) == 10
    assert index.labels.bincount().tolist() == [100] * 10
    good, _, bad = verify(index, torch.arange(len(index)), 2)
    assert len(good) == 1000 and not bad
    gray, sizes = 0, []
    for i in range(len(index)):
        with Image.open(index.path(i)) as image:
            assert image.format == "JPEG"
            gray += image.mode == "L"
            sizes += image.size
    assert 40 <= gray <= 130 and min(sizes) == 96 and max(sizes) == 160


def test_neighbouring_pixels_predict_masked_ones(sample: Path) -> None:
    """A pixel 6 pixels away is a far better guess than the mean colour: masked reconstruction can be learned."""
    index = ImageIndex.from_root(sample)
    near = far = 0.0
    for i in range(0, len(index), 10):
        with Image.open(index.path(i)) as image:
            pixels = np.asarray(image.convert("RGB"), np.float32)
        near += abs(pixels[:, 6:] - pixels[:, :-6]).mean()
        far += abs(pixels - pixels.mean((0, 1))).mean()
    assert near < 0.5 * far


def test_images_differ_and_are_reproducible() -> None:
    for name in PATTERNS:
        first, second = texture(name, 0), texture(name, 1)
        assert texture(name, 0).tobytes() == first.tobytes()
        assert first.tobytes() != second.tobytes()
    assert texture("dots", 0).tobytes() != texture("rings", 0).tobytes()


@pytest.mark.slow
def test_concurrent_processes_write_same_sample(sample: Path, tmp_path: Path) -> None:
    """Both at once into one cache, given by the environment: neither fails, and one complete sample results."""
    program = "from fastdarts.data import sample_root; print(sample_root())"
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert outputs == {str(tmp_path / "fastdarts" / sample.name)} and not any(p.returncode for p in processes)
    assert (Path(outputs.pop()) / MANIFESTS["train"]).read_bytes() == (sample / MANIFESTS["train"]).read_bytes()
    assert {path.name for path in (tmp_path / "fastdarts").iterdir()} == {sample.name, f"{sample.name}.lock"}


def test_intact_cache_is_kept_and_damaged_one_repaired(sample: Path) -> None:
    manifest = (sample / MANIFESTS["train"]).read_bytes()
    victim = sample / "train/dots/dots_0007.JPEG"
    data = victim.read_bytes()
    written = victim.stat().st_mtime_ns
    assert sample_root(sample.parent) == sample and victim.stat().st_mtime_ns == written
    victim.write_bytes(data[:-1])
    (sample / "train/dots/extra.JPEG").write_bytes(data)
    (sample.parent / f"{sample.name}.new").mkdir()  # of a process that was killed
    assert sample_root(sample.parent) == sample
    assert victim.read_bytes() == data and not (sample / "train/dots/extra.JPEG").exists()
    assert (sample / MANIFESTS["train"]).read_bytes() == manifest
    assert not (sample.parent / f"{sample.name}.new").exists()


def test_sample_test_images_are_written_on_demand(sample: Path, tmp_path: Path) -> None:
    """Next to the training images, of which no byte changes."""
    root = shutil.copytree(sample, tmp_path / sample.name, ignore=shutil.ignore_patterns("val", "manifest-val*"))
    before = {path: path.stat().st_mtime_ns for path in root.glob("train/*/*")}
    assert sample_root(tmp_path) == root and not (root / "val").exists()
    assert sample_root(tmp_path, "val") == root
    train, val = ImageIndex.from_root(root), ImageIndex.from_root(root, "val")
    assert val.classes == train.classes and val.labels.bincount().tolist() == [40] * 10
    digests = [{hashlib.sha256(path.read_bytes()).digest() for path in root.glob(f"{split}/*/*")} for split in ("train", "val")]
    assert [len(each) for each in digests] == [1000, 400] and not digests[0] & digests[1]
    assert {path: path.stat().st_mtime_ns for path in root.glob("train/*/*")} == before
    (root / "val/dots/dots_0100.JPEG").unlink()
    assert sample_root(tmp_path) == root and not (root / "val/dots/dots_0100.JPEG").exists()
    assert sample_root(tmp_path, "val") == root and (root / "val/dots/dots_0100.JPEG").exists()


def test_sample_training_images_never_change(sample: Path) -> None:
    """Saved runs on the sample find them again: the digest of all names, and the sizes of a few."""
    index = ImageIndex.from_root(sample)
    assert index.sha256().startswith("102485c74a62d2739c71d03320aa2f10")
    sizes = []
    for number in (0, 555, 999):
        with Image.open(index.path(number)) as image:
            sizes.append(image.size)
    assert sizes == [(98, 96), (132, 102), (127, 154)]


def test_unwritable_cache_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write the generated sample .* set XDG_CACHE_HOME"):
        sample_root(tmp_path / "file")


def test_missing_home_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(DataError, match="no home folder"):
        sample_root()
