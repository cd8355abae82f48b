"""Generated sample of JPEG files in the ImageNet layout, for a search or a retraining without user data."""

import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from typing import Literal

from fastdarts.data.errors import DataError
from fastdarts.data.textures import PATTERNS, texture
from fastdarts.data.user_cache import user_cache

NAME = "sample-v1"  # changes whenever the images change
IMAGES = {"train": range(100), "val": range(100, 140)}  # of each class, by split
MANIFESTS = {"train": "manifest.sha256", "val": "manifest-val.sha256"}  # in `sha256sum` format


def sample_root(cache: str | os.PathLike[str] | None = None, split: Literal["train", "val"] = "train") -> Path:
    """Return ROOT of the sample, ROOT/train/CLASS/*.JPEG: 10 classes of 100 images, 96 to 160 pixels a side, some grayscale.

    split  "val": with test images as well, ROOT/val/CLASS/*.JPEG: 40 more of each class, drawn likewise

    Written on first use into `cache`, by default fastdarts in the user's cache folder ($XDG_CACHE_HOME or ~/.cache), and
    rewritten if a file is missing, changed or added. Safe for concurrent processes: a split counts once its manifest is
    written. Identical on every call and machine, except for rounding in other versions of NumPy and the JPEG library. Raises
    DataError if it cannot be written.
    """
    folder = Path(cache) if cache is not None else user_cache()
    root = folder / NAME
    missing = [name for name in dict.fromkeys(("train", split)) if not _intact(root, name)]
    try:
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / f"{NAME}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                for name in missing:
                    if not _intact(root, name):  # not written meanwhile by another process
                        _replace(root, name)
    except OSError as error:
        remedy = "set XDG_CACHE_HOME to a writable folder, or give --data"
        raise DataError(f"cannot write the generated sample to {root}: {error.strerror or error}; {remedy}") from error
    return root


def _replace(root: Path, split: str) -> None:
    """Write a split next to `root` and move it there, its manifest last."""
    fresh = root.with_name(f"{root.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)  # left by a killed process
    for name in PATTERNS:
        (fresh / split / name).mkdir(parents=True)
        for number in IMAGES[split]:
            image = texture(name, number)
            image.save(fresh / split / name / f"{name}_{number:04d}.JPEG", quality=80 + number % 16)
    manifest = _manifest(fresh, split)
    root.mkdir(exist_ok=True)
    shutil.rmtree(root / split, ignore_errors=True)  # damaged, if any
    (fresh / split).rename(root / split)
    (root / MANIFESTS[split]).write_bytes(manifest)
    fresh.rmdir()


def _intact(root: Path, split: str) -> bool:
    """Return whether a split's files are complete and unchanged, without additional files."""
    manifest = root / MANIFESTS[split]
    return manifest.is_file() and manifest.read_bytes() == _manifest(root, split)


def _manifest(root: Path, split: str) -> bytes:
    """Return the `sha256sum` lines of every file in the split's class folders, sorted by name."""
    files = sorted(path for path in (root / split).glob("*/*") if path.is_file())
    sums = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(root)}\n" for path in files)
    return "".join(sums).encode()
