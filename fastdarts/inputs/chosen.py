"""Images chosen from an index: verified, recorded with the run, found again when it continues, the same on all ranks."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from fastdarts.data import DataError, Index, read_list, unlisted, write_list
from fastdarts.engine import RunFolder, RunFolderError, write_text
from fastdarts.inputs.origin import Origin
from fastdarts.quoting import quoted, shortlist, unquoted

log = logging.getLogger("fastdarts")


class Splits(NamedTuple):
    """Part of Chosen sent from the rank that verified the files to the others.

    sha256  digest of the index
    test    the same of a retraining's test images
    """

    parts: dict[str, Tensor]
    excluded: tuple[tuple[str, str], ...]
    sizes: Tensor | None
    sha256: str
    test: "Splits | None" = None


@dataclass(frozen=True)
class Chosen:
    """Disjoint parts of an index; subclasses name them, and the origin of the images.

    index     all available images
    excluded  (file, reason) of chosen images that cannot be decoded, in no part
    sizes     int32 (len(index), 2), height and width by image number, zeros for images in no part; None until `ready`
              measures them, if needed
    """

    origin: ClassVar[type[Origin]]
    PARTS: ClassVar[Mapping[str, str]]  # fields, int64 (N,) of image numbers, and what messages call them

    index: Index
    excluded: tuple[tuple[str, str], ...] = field(default=(), kw_only=True)
    sizes: Tensor | None = field(default=None, kw_only=True)

    @property
    def parts(self) -> dict[str, Tensor]:
        """Return the parts by name."""
        return {name: getattr(self, name) for name in self.PARTS}

    @property
    def chosen(self) -> Tensor:
        """Return the images of all parts, int64 (N,)."""
        return torch.cat(list(self.parts.values()))

    @property
    def left_out(self) -> tuple[tuple[str, str], ...]:
        """Return (file, reason) of all chosen images that cannot be decoded."""
        return self.excluded

    def splits(self) -> Splits:
        """Return the data for `found_here` and `taking`."""
        return Splits(self.parts, self.excluded, self.sizes, self.index.sha256())

    def taking(self, splits: Splits) -> Self:
        """Return a copy with another rank's verification result."""
        return replace(self, **splits.parts, excluded=splits.excluded, sizes=splits.sizes)

    @classmethod
    def found_here(cls, index: Index, splits: Splits) -> Self:
        """Return another rank's chosen images of the `index` found on this rank. Raises DataError if they differ."""
        if index.sha256() != splits.sha256:
            raise DataError(f"the images of {index.root} differ from those on rank 0: give all nodes the same images")
        return cls(index, **splits.parts, excluded=splits.excluded, sizes=splits.sizes)

    def side(self, settings: Any) -> int:
        """Return the pixels a side of the crops: --image_size if given. Raises ConfigError if it does not fit."""
        return self.origin.side(settings, self.index)

    def ready(self, settings: Any, threads: int, begun: bool) -> Self:
        """Measure the images; for a new run (not `begun`), or with --strict, also exclude those that cannot be decoded.

        Raises DataError for images without a size, if a part becomes empty or, with --strict, if a file is bad.
        """
        found = self.origin.ready(self.index, self.chosen, settings, threads, begun)
        kept = {name: part[torch.isin(part, found.good)] for name, part in self.parts.items()}
        if any(len(part) and not len(kept[name]) for name, part in self.parts.items()):
            left = ", ".join(f"{len(part)} {self.PARTS[name]}" for name, part in kept.items())
            raise DataError(f"too few of the chosen files under {self.index.root} can be decoded: {left}")
        return replace(self, **kept, excluded=found.excluded, sizes=found.sizes)

    def check_place(self, settings: Any, folder: RunFolder, then: Mapping[str, Any]) -> None:
        """Log that a continued run's images have moved since its facts `then`. Raises RunFolderError if they are others."""
        if settings.data is None or then.get("root") == str(self.index.root):
            return
        if why := self.origin.unlike(self.index, self.chosen, then):
            raise others(self.index, folder, why)
        before = f"they were in {then['root']} when it started"
        log.info(f"the run's images are now in {self.index.root}, unchanged; {before}")

    def facts(self) -> dict[str, Any]:
        """Return the entries for settings.json."""
        return {
            "root": str(self.index.root),
            "excluded": len(self.excluded),
            "files": len(self.index),
            "sha256": self.index.sha256(),
        } | self.origin.facts(self.index, self.chosen)


@dataclass(frozen=True)
class TrainVal(Chosen):
    """Training images in two parts, recorded as the lists train.txt and val.txt of a run folder.

    train, val  int64 (N,), image numbers
    """

    PARTS: ClassVar[Mapping[str, str]] = {"train": "train", "val": "val"}

    train: Tensor
    val: Tensor

    @classmethod
    def choose(cls, settings: Any, folder: RunFolder) -> Self:
        """Choose a continued run's parts, the given lists, or shares of each class; opens no image files.

        Raises ConfigError, DataError, and RunFolderError if a continued run began with different images.
        """
        index = cls.origin.find(settings)
        return cls(index, *cls.drawn(settings, index)) if folder.saved is None else cls._continued(settings, index, folder)

    @staticmethod
    def drawn(settings: Any, index: Index) -> tuple[Tensor, Tensor]:
        """Return the parts of a new run. Raises ConfigError, DataError."""
        raise NotImplementedError

    @classmethod
    def _continued(cls, settings: Any, index: Index, folder: RunFolder) -> Self:
        """Restore the run's parts, even if their images have moved. Raises DataError; RunFolderError for different images."""
        saved = folder.saved or {}
        then = dict(saved.get("data") or {})
        gone = [name for part in cls.PARTS for name in unlisted(folder[f"{part}.txt"], index)]
        check_digest(index, folder, then, gone)
        images = cls(index, *(_part(folder, index, name, then.get(f"{name}_images")) for name in cls.PARTS))
        images.check_place(settings, folder, then)
        for name, part in images.parts.items():
            given, before = getattr(settings, f"{name}_list"), (saved.get("settings") or {}).get(f"{name}_list")
            if given != before:
                _check_list(folder, index, part, f"--{name}_list {given}", given, before)
        return images

    def side(self, settings: Any) -> int:
        side = super().side(settings)
        self.origin.check_padding(settings, side)
        return side

    @classmethod
    def listed(cls, settings: Any, splits: Splits) -> Self:
        """Find another rank's chosen images on this rank. Raises DataError if they differ."""
        return cls.found_here(cls.origin.find(settings), splits)

    def write(self, folder: RunFolder) -> None:
        """Write train.txt, val.txt and excluded.txt; creates the folder of a new run."""
        folder.path.mkdir(parents=True, exist_ok=True)
        for part, numbers in self.parts.items():
            write_list(folder[f"{part}.txt"], self.index, numbers)
        write_text(folder["excluded.txt"], "".join(f"{quoted(name)}\t{reason}\n" for name, reason in self.left_out))

    def facts(self) -> dict[str, Any]:
        return super().facts() | {f"{name}_images": len(part) for name, part in self.parts.items()}


def check_digest(index: Index, folder: RunFolder, then: Mapping[str, Any], gone: Sequence[str] = ()) -> None:
    """Raise RunFolderError unless the index has the digest of a continued run's facts `then`; gone: names it lacks."""
    if then.get("sha256") != index.sha256():
        why = f"{then.get('files', 'others')} then, {len(index)} now" + (f", without {shortlist(gone)}" if gone else "")
        raise others(index, folder, why)


def others(index: Index, folder: RunFolder, why: str) -> RunFolderError:
    """Return the error for a continued run whose images are not found."""
    return RunFolderError(
        f"the images of {index.root} are not those that {folder.path} started with ({why}), so its images would change: "
        "put them back, or begin in another folder"
    )


def excluded_of(folder: RunFolder) -> list[str]:
    """Return the files excluded by a run."""
    lines = folder["excluded.txt"].read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    return [unquoted(line.partition("\t")[0]) for line in lines if line]


def _part(folder: RunFolder, index: Index, name: str, count: int | None) -> Tensor:
    """Return a part of a continued run, of `count` images if that is known. Raises DataError."""
    return torch.arange(0) if count == 0 else read_list(folder[f"{name}.txt"], index)


def _check_list(folder: RunFolder, index: Index, part: Tensor, flag: str, given: Any, before: Any) -> None:
    """Raise RunFolderError unless the list `given` names a continued run's part, or files that it excluded."""
    other = set(read_list(given, index).tolist()) ^ set(part.tolist())
    left_out = set(excluded_of(folder)) if other else set()
    if files := [index.files[i] for i in sorted(other) if index.files[i] not in left_out]:
        message = f"{flag} differs from {before}, with which {folder.path} started"
        raise RunFolderError(f"{message}, in {shortlist(files)}: give the same list, or choose another folder")
    log.info(f"{flag} lists the same images as {before} did when the run started")
