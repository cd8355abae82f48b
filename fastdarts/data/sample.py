"""Generated sample of JPEG files in the ImageNet layout, for a search without user data."""

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

from fastdarts.data.errors import DataError
from fastdarts.data.textures import PATTERNS, texture
from fastdarts.data.user_cache import user_cache

NAME = "sample-v1"  # changes whenever the images change
IMAGES = 100  # per class
MANIFEST = "manifest.sha256"  # in `sha256sum` format


def sample_root(cache: str | os.PathLike[str] | None = None) -> Path:
    """Return ROOT of the sample, ROOT/train/CLASS/*.JPEG: 10 classes of 100 images, 96 to 160 pixels a side, some grayscale.

    Written on first use into `cache`, by default fastdarts in the user's cache folder ($XDG_CACHE_HOME or ~/.cache), and
    rewritten if a file is missing, changed or added. Created atomically; safe for concurrent processes. Identical on every
    call and machine, except for rounding in other versions of NumPy and the JPEG library. Raises DataError if it cannot be
    written.
    """
    folder = Path(cache) if cache is not None else user_cache()
    root = folder / NAME
    try:
        if not _intact(root):
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / f"{NAME}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _intact(root):  # not written meanwhile by another process
                    _replace(root)
    except OSError as error:
        remedy = "set XDG_CACHE_HOME to a writable folder, or give --data"
        raise DataError(f"cannot write the generated sample to {root}: {error.strerror or error}; {remedy}") from error
    return root


def _replace(root: Path) -> None:
    """Write the sample next to `root` and rename it."""
    fresh = root.with_name(f"{root.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)  # left by a killed process
    for name in PATTERNS:
        (fresh / "train" / name).mkdir(parents=True)
        for number in range(IMAGES):
            image = texture(name, number)
            image.save(fresh / "train" / name / f"{name}_{number:04d}.JPEG", quality=80 + number % 16)
    (fresh / MANIFEST).write_bytes(_manifest(fresh))
    shutil.rmtree(root, ignore_errors=True)  # damaged sample, if any
    fresh.rename(root)


def _intact(root: Path) -> bool:
    """Return whether the sample's files are complete and unchanged, without additional files."""
    manifest = root / MANIFEST
    return manifest.is_file() and manifest.read_bytes() == _manifest(root)


def _manifest(root: Path) -> bytes:
    """Return the `sha256sum` lines of every file in the class folders, sorted by name."""
    files = sorted(path for path in (root / "train").glob("*/*") if path.is_file())
    sums = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(root)}\n" for path in files)
    return "".join(sums).encode()
