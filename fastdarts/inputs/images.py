"""Images of one search: the splits for weights and alpha, verified and recorded with the run."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from fastdarts.data import (
    DataError,
    ImageArray,
    ImageIndex,
    Index,
    VerifiedStore,
    image_sizes,
    read_images,
    read_list,
    sample_images,
    sample_root,
    subsets,
    unlisted,
    verify,
    write_list,
)
from fastdarts.engine import RunFolder, RunFolderError, write_text
from fastdarts.quoting import quoted, shortlist, unquoted
from fastdarts.settings import AnySearch, ConfigError, SearchCifarSettings, groups

CHECK_SECONDS = 10.0  # between two progress lines of file verification
log = logging.getLogger("fastdarts")


class Splits(NamedTuple):
    """Part of Images sent from the rank that verified the files to the others; sha256 is the index digest."""

    train: Tensor
    val: Tensor
    excluded: tuple[tuple[str, str], ...]
    sizes: Tensor | None
    sha256: str


@dataclass(frozen=True)
class Images:
    """Both splits of a search; subclasses define the source of the images.

    index       all available images
    train, val  int64 (N,), image numbers of the splits for weights and alpha
    excluded    (file, reason) of chosen images that cannot be decoded, in neither split
    sizes       int32 (len(index), 2), height and width by image number, zeros for images in neither split;
                None until `ready` measures them, if needed
    """

    index: Index
    train: Tensor
    val: Tensor
    excluded: tuple[tuple[str, str], ...] = ()
    sizes: Tensor | None = None

    @staticmethod
    def find(settings: Any) -> Index:  # of the command whose images they are
        """Find all images named by `settings`. Raises ConfigError, DataError."""
        raise NotImplementedError

    @classmethod
    def choose(cls, settings: AnySearch, folder: RunFolder) -> Self:
        """Choose a continued run's splits, the given lists, or shares of each class; opens no image files.

        Raises ConfigError, DataError, and RunFolderError if a continued run began with different images.
        """
        index = cls.find(settings)
        if folder.saved is not None:
            return cls._continued(settings, index, folder)
        if settings.train_list is None and settings.val_list is None:
            return cls(index, *subsets(index, settings.train_fraction, settings.val_fraction, settings.seed))
        if settings.train_list is None or settings.val_list is None:
            raise ConfigError("--train_list and --val_list must be given together")
        train, val = read_list(settings.train_list, index), read_list(settings.val_list, index)
        if common := set(train.tolist()) & set(val.tolist()):
            raise ConfigError(
                f"--train_list and --val_list share {len(common)} images, {quoted(index.files[min(common)])} first"
            )
        return cls(index, train, val)

    @classmethod
    def _continued(cls, settings: AnySearch, index: Index, folder: RunFolder) -> Self:
        """Restore the run's splits, even if their images have moved. Raises DataError; RunFolderError for different images."""
        saved = folder.saved or {}
        then = {"sha256": "", "files": "others", "root": ""} | dict(saved.get("data") or {})
        if then["sha256"] != index.sha256():
            gone = [name for split in ("train.txt", "val.txt") for name in unlisted(folder[split], index)]
            raise _others(
                index, folder, f"{then['files']} then, {len(index)} now" + (f", without {shortlist(gone)}" if gone else "")
            )
        images = cls(index, read_list(folder["train.txt"], index), read_list(folder["val.txt"], index))
        if settings.data is not None and then["root"] != str(index.root):
            if why := images.unlike(then):
                raise _others(index, folder, why)
            log.info(f"the run's images are now in {index.root}, unchanged; they were in {then['root']} when it started")
        for name, split in (("train_list", images.train), ("val_list", images.val)):
            path, before = getattr(settings, name), (saved.get("settings") or {}).get(name)
            if path != before:
                other = set(read_list(path, index).tolist()) ^ set(split.tolist())
                left_out = set(_excluded(folder)) if other else set()
                if files := [index.files[i] for i in sorted(other) if index.files[i] not in left_out]:
                    message = f"--{name} {path} differs from {before}, with which {folder.path} started"
                    raise RunFolderError(f"{message}, in {shortlist(files)}: give the same list, or choose another folder")
                log.info(f"--{name} {path} lists the same images as {before} did when the run started")
        return images

    def unlike(self, then: Mapping[str, Any]) -> str:
        """Describe how images of equal digest differ from those of a run with `facts` `then`; "" if they do not."""
        return ""

    @classmethod
    def listed(cls, settings: AnySearch, splits: Splits) -> Self:
        """Find another rank's chosen images on this rank. Raises DataError if they differ."""
        index = cls.find(settings)
        if index.sha256() != splits.sha256:
            raise DataError(f"the images of {index.root} differ from those on rank 0: give all nodes the same images")
        return cls(index, splits.train, splits.val).taking(splits)

    def splits(self) -> Splits:
        """Return the data for `listed` and `taking`."""
        return Splits(self.train, self.val, self.excluded, self.sizes, self.index.sha256())

    def taking(self, splits: Splits) -> Self:
        """Return a copy with another rank's verification result."""
        return replace(self, train=splits.train, val=splits.val, excluded=splits.excluded, sizes=splits.sizes)

    def side(self, settings: Any) -> int:
        """Return the pixels a side of the crops: --image_size if given. Raises ConfigError if it does not fit."""
        return settings.image_size

    def ready(self, settings: Any, threads: int, begun: bool) -> Self:
        """Prepare the images for input; `begun`: the run is continued. Raises DataError for files that cannot be decoded."""
        return self

    def write(self, folder: RunFolder) -> None:
        """Write train.txt, val.txt and excluded.txt; creates the folder of a new run."""
        folder.path.mkdir(parents=True, exist_ok=True)
        write_list(folder["train.txt"], self.index, self.train)
        write_list(folder["val.txt"], self.index, self.val)
        write_text(folder["excluded.txt"], "".join(f"{quoted(name)}\t{reason}\n" for name, reason in self.excluded))

    def facts(self) -> dict[str, Any]:
        """Return the entries for settings.json."""
        return {
            "root": str(self.index.root),
            "train_images": len(self.train),
            "val_images": len(self.val),
            "excluded": len(self.excluded),
            "files": len(self.index),
            "sha256": self.index.sha256(),
        }


def _others(index: Index, folder: RunFolder, why: str) -> RunFolderError:
    """Return the error for a continued run whose images are not found."""
    return RunFolderError(
        f"the images of {index.root} are not those that {folder.path} started with ({why}), so its images would change: "
        "put them back, or begin in another folder"
    )


def _excluded(folder: RunFolder) -> list[str]:
    """Return the files excluded by a run."""
    lines = folder["excluded.txt"].read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    return [unquoted(line.partition("\t")[0]) for line in lines if line]


@dataclass(frozen=True)
class ImageFiles(Images):
    """Image files under ROOT/train, verified and measured."""

    index: ImageIndex

    @staticmethod
    def find(settings: groups.ImageFiles) -> ImageIndex:
        """Find the files under --data, or the generated sample. Raises DataError."""
        return ImageIndex.from_root(settings.data or sample_root())

    def facts(self) -> dict[str, Any]:
        size, digest = self.index.bytes_of(torch.cat([self.train, self.val]))
        return super().facts() | {"bytes": size, "bytes_sha256": digest}

    def unlike(self, then: Mapping[str, Any]) -> str:
        """Compare the file sizes, since the index contains only names."""
        if "bytes_sha256" not in then:
            return f"it recorded no file sizes, so only the original folder can be used: {then['root']}"
        size, digest = self.index.bytes_of(torch.cat([self.train, self.val]))
        same = digest == then["bytes_sha256"]
        return "" if same else f"same file names, but different sizes: {then['bytes']} bytes then, {size} now"

    def ready(self, settings: groups.ImageFiles, threads: int, begun: bool) -> Self:
        """Measure the images; for a new run, or with --strict, also exclude files that cannot be decoded."""
        return self.measured(threads) if begun and not settings.strict else self.checked(threads, settings.strict)

    def checked(self, threads: int, strict: bool = False) -> Self:
        """Exclude and log the files that cannot be decoded; good files go to the store of verified files.

        Raises DataError if a split becomes empty or, with `strict`, if a file is bad.
        """
        last = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last > CHECK_SECONDS:
                last = time.monotonic()
                log.info(f"checking files: {done} of {total}")

        chosen = torch.cat([self.train, self.val]).sort().values  # in disk order
        with VerifiedStore() as store:
            good, sizes, bad = verify(self.index, chosen, threads, progress, store)
        log.info(f"checked {len(chosen)} files, {store.used} of them unchanged since an earlier check")
        if bad and strict:
            named = shortlist([f"{name} ({reason})" for name, reason in bad])
            raise DataError(
                f"--strict: {len(bad)} of {len(chosen)} chosen files under {self.index.root} cannot be decoded: {named}; "
                "repair or remove them, or continue without --strict"
            )
        for name, reason in bad:
            log.warning(f"excluded: {quoted(name)}: {reason}")
        if bad:
            log.warning(f"{len(bad)} of {len(chosen)} files cannot be decoded and are excluded")
        train, val = (split[torch.isin(split, good)] for split in (self.train, self.val))
        if not len(train) or not len(val):
            left = f"{len(train)} train, {len(val)} val"
            raise DataError(f"too few of the chosen files under {self.index.root} can be decoded: {left}")
        return replace(self, train=train, val=val, excluded=tuple(bad), sizes=self._by_number(good, sizes))

    def measured(self, threads: int) -> Self:
        """Measure the images of a continued run without verifying them again: stored sizes, else headers.

        Raises DataError, which names the file, if one cannot be opened or has no header.
        """
        if self.sizes is not None:
            return self
        chosen = torch.cat([self.train, self.val])
        with VerifiedStore() as store:
            sizes = image_sizes(self.index, chosen, threads, store)
        return replace(self, sizes=self._by_number(chosen, sizes))

    def _by_number(self, indices: Tensor, sizes: Tensor) -> Tensor:
        whole = torch.zeros(len(self.index), 2, dtype=torch.int32)
        whole[indices] = sizes
        return whole


@dataclass(frozen=True)
class ImageArrays(Images):
    """Decoded images of one size in memory, which need no verification."""

    index: ImageArray

    @staticmethod
    def find(settings: SearchCifarSettings) -> ImageArray:
        """Read the training images of --data, or the generated sample. Raises DataError."""
        return sample_images() if settings.data is None else read_images(settings.data, settings.threads)

    def side(self, settings: groups.ImageArrays) -> int:
        """Return --image_size, by default the images' size. Raises ConfigError if it cannot be cropped from them."""
        side, size = self.index.side, settings.image_size or self.index.side
        if size > side:
            raise ConfigError(f"--image_size {size}: the images of {self.index.root} have only {side} pixels a side")
        if settings.crop_padding >= size:
            raise ConfigError(f"--crop_padding {settings.crop_padding}: crops of {size} pixels could be all black, choose less")
        return size
