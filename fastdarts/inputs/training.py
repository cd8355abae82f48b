"""Images of a retraining: all training images but a held-back share, and the test images."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from fastdarts.data import DataError, ImageArray, ImageIndex, Index, Loader, NoTestImages, held_back, read_list
from fastdarts.engine import RunFolder, RunFolderError
from fastdarts.inputs.chosen import Chosen, Splits, TrainVal, check_digest, excluded_of, others
from fastdarts.inputs.images import lists
from fastdarts.inputs.options import TrainingOptions
from fastdarts.inputs.origin import Arrays, Files
from fastdarts.protocols import Batches
from fastdarts.quoting import shortlist

log = logging.getLogger("fastdarts")


@dataclass(frozen=True)
class TestImages(Chosen):
    """Test images, with labels of the training images' classes; subclasses define their origin.

    numbers  int64 (N,): all of the index but those that cannot be decoded
    """

    __test__ = False  # it is no test of pytest's
    PARTS: ClassVar[Mapping[str, str]] = {"numbers": "test"}

    numbers: Tensor

    @classmethod
    def find(cls, settings: Any, classes: Sequence[str] | None) -> Self:
        """Find all test images; classes without any are logged.

        classes  the training images'; None: the test images' own
        Raises DataError, NoTestImages if there are none.
        """
        index = cls.origin.find_tests(settings, classes)
        counts = index.labels.bincount(minlength=len(index.classes)).tolist()
        if missing := [name for name, count in zip(index.classes, counts, strict=True) if not count]:
            log.warning(f"no test images of {len(missing)} of {len(counts)} classes: {shortlist(missing)}")
        return cls(index, torch.arange(len(index)))

    def again(self, settings: Any, folder: RunFolder, then: Mapping[str, Any]) -> Self:
        """Return those of a continued run with facts `then`. Raises RunFolderError if it began with different images."""
        check_digest(self.index, folder, then)
        if self._labels() != then["labels_sha256"]:
            raise others(self.index, folder, "the same test images, but with other labels")
        left_out = set(excluded_of(folder))
        kept = [name not in left_out for name in self.index.files]
        images = replace(self, numbers=self.numbers[torch.tensor(kept)])
        images.check_place(settings, folder, then)
        return images

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"images": len(self.numbers), "labels_sha256": self._labels()}

    def _labels(self) -> str:
        """Return the digest of the labels, which a file may give."""
        return hashlib.sha256(self.index.labels.numpy()).hexdigest()


@dataclass(frozen=True)
class TrainingImages(TrainVal):
    """Images of a retraining; subclasses define their origin.

    train  all training images but those held back, or those of --train_list
    val    held back from training to choose the best epoch, may be empty
    test   test images; None if there are none and held-back ones are evaluated
    """

    tests: ClassVar[type[TestImages]]

    test: TestImages | None = field(default=None, kw_only=True)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of their labels."""
        return self.index.classes

    @property
    def left_out(self) -> tuple[tuple[str, str], ...]:
        return self.excluded + (() if self.test is None else self.test.excluded)

    @classmethod
    def choose(cls, settings: TrainingOptions, folder: RunFolder) -> Self:
        images = super().choose(settings, folder)
        return replace(images, test=images._tests(settings, folder))

    @staticmethod
    def drawn(settings: TrainingOptions, index: Index) -> tuple[Tensor, Tensor]:
        """Return all images but a share of each class; or the given lists.

        --train_list alone holds nothing back, --val_list alone leaves all other images to train.
        """
        if settings.train_list is not None and settings.val_list is not None:
            return lists(settings.train_list, settings.val_list, index)
        if settings.train_list is not None:
            return read_list(settings.train_list, index), torch.arange(0)
        if settings.val_list is None:
            return held_back(index, settings.val_fraction, settings.seed)
        val, everything = read_list(settings.val_list, index), torch.arange(len(index))
        return everything[~torch.isin(everything, val)], val

    def _tests(self, settings: TrainingOptions, folder: RunFolder) -> TestImages | None:
        """Find the test images, those that a continued run began with. Raises DataError, RunFolderError."""
        then = None if folder.saved is None else folder.saved["data"].get("test")
        if folder.saved is not None and then is None:
            return None
        try:
            found = self.tests.find(settings, self.classes)
        except NoTestImages as error:
            if then is not None:
                raise RunFolderError(f"{error}; {folder.path} started with test images: put them back") from error
            if not len(self.val):
                raise DataError(f"{error}; add them, or hold training images back by --val_fraction 0.1") from error
            log.warning(f"{error}: only the {len(self.val)} held-back images are evaluated")
            return None
        self.origin.check_alike(self.index, found.index)
        return found if then is None else found.again(settings, folder, then)

    @classmethod
    def listed(cls, settings: TrainingOptions, splits: Splits) -> Self:
        images = super().listed(settings, splits)
        if splits.test is None:
            return images
        return replace(images, test=cls.tests.found_here(cls.origin.find_tests(settings, images.classes), splits.test))

    def splits(self) -> Splits:
        return super().splits()._replace(test=None if self.test is None else self.test.splits())

    def taking(self, splits: Splits) -> Self:
        images = super().taking(splits)
        if self.test is None or splits.test is None:
            return images
        return replace(images, test=self.test.taking(splits.test))

    def ready(self, settings: TrainingOptions, threads: int, begun: bool) -> Self:
        """Prepare the training and test images; bad test files are left out with a warning like all others."""
        images = super().ready(settings, threads, begun)
        return images if self.test is None else replace(images, test=self.test.ready(settings, threads, begun))

    def facts(self) -> dict[str, Any]:
        test = None if self.test is None else self.test.facts()
        return super().facts() | {"classes": list(self.classes), "test": test}


class TrainingInput(NamedTuple):
    """Loader and evaluation passes of a retraining, on its device. A pass covers each image once, over all ranks.

    train    random crops of the training images; an incomplete last batch is dropped from its epoch
    val      pass over the held-back images, None without
    test     pass over the test images, None without
    facts    entries of settings.json: the route (source of the batches) and its details
    message  the same as a log line
    """

    train: Loader
    val: Batches | None
    test: Batches | None
    facts: dict[str, Any]
    message: str

    def close(self) -> None:
        """Close the loader."""
        self.train.close()


class TestInput(NamedTuple):
    """Evaluation pass over test images, each once over all ranks, on the device.

    images   the images, with their classes (images.index.classes)
    message  a log line
    """

    test: Batches
    images: TestImages
    message: str


@dataclass(frozen=True)
class TestFiles(TestImages):
    """Image files under ROOT/val or ROOT/test."""

    origin = Files
    index: ImageIndex


@dataclass(frozen=True)
class TestArrays(TestImages):
    """Decoded images of one size in memory."""

    origin = Arrays
    index: ImageArray


@dataclass(frozen=True)
class TrainingFiles(TrainingImages):
    """Image files under ROOT/train, and test files."""

    origin, tests = Files, TestFiles
    index: ImageIndex
    test: TestFiles | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class TrainingArrays(TrainingImages):
    """Decoded images of one size in memory."""

    origin, tests = Arrays, TestArrays
    index: ImageArray
    test: TestArrays | None = field(default=None, kw_only=True)
