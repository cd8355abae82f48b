"""Index of a folder in the ImageNet layout, ROOT/SPLIT/CLASS/*, with stable image numbers."""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fastdarts.data.errors import DataError
from fastdarts.data.packed import packed, what_it_is
from fastdarts.quoting import quoted, shortlist

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's, any case
EXPECTED = "expected a readable folder, ROOT of ROOT/train/CLASS/*.JPEG or below"

log = logging.getLogger(__name__)


class Index(Protocol):
    """All images available to a search; an image's position is its stable index.

    root     source of the images
    classes  names
    files    a name for each image
    labels   int64 (N,), position of each image's class in `classes`
    """

    @property
    def root(self) -> Path: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def files(self) -> Sequence[str]: ...
    @property
    def labels(self) -> Tensor: ...
    def __len__(self) -> int: ...

    def sha256(self) -> str:
        """Return the digest of everything a continued run must find unchanged."""
        ...


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """All images of one split, sorted by class folder, then by name; an image's position is its stable index.

    root     parent folder of the split
    classes  names of the class folders with images, sorted; of a test split: the training images'
    files    names relative to root, with forward slashes, one for each image
    labels   int64 (N,), position of each image's class in `classes`
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: Tensor

    @staticmethod
    def from_root(root: str | os.PathLike[str], split: str = "train", classes: Sequence[str] | None = None) -> "ImageIndex":
        """List root/split/CLASS/*: image extensions in any case, no deeper folders, no names that start with a dot.

        classes  names of all classes, in the order of their labels, those of the training images for example; None: the
                 split's own

        Any entry with an image's name counts, even a folder, a pipe or a dangling link: verify() reports it.
        Class folders without images are left out and logged. Raises DataError if the folder is missing, unreadable, flat
        (images directly in the split's folder), has no images, or has some of none of `classes`.
        """
        root = Path(root)
        folders, images = listing(root)
        if split not in folders:
            raise DataError(f"{root} has no folder {split!r}: {_guess(root, split, folders, images)}")
        folders, loose = listing(root / split)
        if loose and not folders:
            arrange = f"move each into the folder of its class, {split}/CLASS/{loose[0]}"
            raise DataError(f"{root / split} is flat, its {len(loose)} images are directly in it: {arrange}")
        found = {name: _images(*listing(root / split / name)) for name in folders}
        present = tuple(name for name, images in found.items() if images)
        if not present:
            raise DataError(f"no images in {root / split}: expected {split}/CLASS/*.JPEG, {_found(root / split)}")
        if empty := [name for name, images in found.items() if not images]:
            log.warning("%s: ignoring %d class folders without images: %s", root / split, len(empty), shortlist(empty))
        if loose:
            log.warning("%s: ignoring %d images outside the class folders: %s", root / split, len(loose), shortlist(loose))
        files = tuple(f"{split}/{name}/{image}" for name in present for image in found[name])
        counts = torch.tensor([len(found[name]) for name in present])
        names = present if classes is None else tuple(classes)
        return ImageIndex(root, names, files, _positions(root / split, present, names).repeat_interleave(counts))

    def __len__(self) -> int:
        return len(self.files)

    def path(self, number: int) -> str:
        """Return the path of image `number`."""
        return os.path.join(self.root, self.files[number])

    def bytes_of(self, indices: Tensor) -> tuple[int, str]:
        """Return the total bytes of the files `indices`, int64 (N,), and the digest of their names and sizes.

        Raises DataError, which names the file, if one is gone.
        """
        total, digest = 0, hashlib.sha256()
        for number in indices.tolist():
            try:
                size = os.stat(self.path(number)).st_size
            except OSError as error:
                raise DataError(f"cannot read {quoted(self.path(number))}: {error.strerror}") from error
            total += size
            digest.update(os.fsencode(f"{self.files[number]}\0{size}\n"))
        return total, digest.hexdigest()

    def sha256(self) -> str:
        """Return the digest of all image names, which determine every image's number and thereby its random streams."""
        return hashlib.sha256(os.fsencode("\n".join(self.files))).hexdigest()


def listing(folder: Path) -> tuple[list[str], list[str]]:
    """List the folders, and the other entries with an image extension, directly in `folder`, each sorted.

    Raises DataError if it is unreadable.
    """
    folders, images = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append(entry.name)
                elif entry.name.lower().endswith(EXTENSIONS):
                    images.append(entry.name)
    except NotADirectoryError as error:
        message = what_it_is(folder) or f"is a file: {EXPECTED}"
        raise DataError(f"{folder} {message}") from error
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}; {EXPECTED}") from error
    return sorted(folders, key=os.fsencode), sorted(images, key=os.fsencode)  # by bytes: the same in every locale


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link, or one into an unreadable folder
        return False


def _images(folders: list[str], images: list[str]) -> list[str]:
    """Return the images of a class folder, including folders with an image's name."""
    return sorted(images + [name for name in folders if name.lower().endswith(EXTENSIONS)], key=os.fsencode)


def _positions(folder: Path, present: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Return the position of each class folder in `classes`, int64. Raises DataError for an unknown one."""
    position = {name: i for i, name in enumerate(classes)}
    if unknown := [name for name in present if name not in position]:
        others = f"{shortlist(unknown)}, which are no classes of the training images ({shortlist(classes)})"
        raise DataError(f"{folder} has {len(unknown)} class folders {others}: take them away, or name them as those of train")
    return torch.tensor([position[name] for name in present])


def _guess(root: Path, split: str, folders: list[str], images: list[str]) -> str:
    """Return a guess at the layout of `root`, which has no folder `split`, and the remedy."""
    if images:
        return f"{len(images)} images are directly in it; arrange them as ROOT/{split}/CLASS/{images[0]}"
    if any(listing(root / name)[1] for name in folders if name not in ("val", "test")):
        remedy = f"give its parent {root.parent}" if root.name == split else f"move it to ROOT/{split} and give ROOT"
        return f"it looks like the {split} folder itself; {remedy}"
    return f"expected ROOT/{split}/CLASS/*.JPEG, {_found(root)}"


def _found(folder: Path) -> str:
    """Describe the unexpected content of a folder, one or two levels deep."""
    names = sorted(os.listdir(folder))
    inside = [f"{name}/{inner}" for name in names[:1] if (folder / name).is_dir() for inner in os.listdir(folder / name)]
    return f"found {shortlist(sorted(inside) or names) or 'nothing'}{packed(names)}"
