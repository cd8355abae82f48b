"""Where images come from: files, or arrays in memory; how they are found, verified, and known again elsewhere."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastdarts.data import (
    DataError,
    ImageArray,
    ImageIndex,
    Index,
    VerifiedStore,
    evaluation_index,
    image_sizes,
    read_images,
    sample_images,
    sample_root,
    verify,
)
from fastdarts.quoting import quoted, shortlist
from fastdarts.settings import ConfigError

CHECK_SECONDS = 10.0  # between two progress lines of file verification
SIDE = 224  # pixels a side of crops from files, if --image_size is auto
log = logging.getLogger("fastdarts")


class Checked(NamedTuple):
    """Result of a verification.

    good      int64 (N,), the images that decode
    sizes     int32 (len(index), 2), height and width by image number, zeros for others; None if they need none
    excluded  (file, reason) of the others
    """

    good: Tensor
    sizes: Tensor | None
    excluded: tuple[tuple[str, str], ...] = ()


class Origin(Protocol):
    """Functions of one kind of images. `settings` are the command's, `index` is of this kind."""

    @staticmethod
    def find(settings: Any) -> Index:
        """Find all training images of --data, or of the generated sample. Raises ConfigError, DataError."""
        ...

    @staticmethod
    def find_tests(settings: Any, classes: Sequence[str] | None) -> Index:
        """Find the test images, with labels of the training images' `classes`; None: of the test images' own.

        Raises DataError, NoTestImages if there are none.
        """
        ...

    @staticmethod
    def check_alike(training: Any, tests: Any) -> None:
        """Raise DataError unless the test images fit the training images."""

    @staticmethod
    def side(settings: Any, index: Any) -> int:
        """Return the pixels a side of the crops: --image_size if given. Raises ConfigError if it does not fit."""
        ...

    @staticmethod
    def check_padding(settings: Any, side: int) -> None:
        """Raise ConfigError if random crops of `side` pixels may show padding alone."""

    @staticmethod
    def facts(index: Any, numbers: Tensor) -> dict[str, Any]:
        """Return entries for settings.json by which the chosen images `numbers` are known elsewhere."""
        ...

    @staticmethod
    def unlike(index: Any, numbers: Tensor, then: Mapping[str, Any]) -> str:
        """Describe how images of equal index digest differ from those of a run with facts `then`; "" if they do not."""
        ...

    @staticmethod
    def ready(index: Any, numbers: Tensor, settings: Any, threads: int, begun: bool) -> Checked:
        """Measure the images `numbers`; for a new run (not `begun`), or with --strict, also verify them.

        Raises DataError for images without a size or, with --strict, for bad ones.
        """
        ...


class Files:
    """Image files under ROOT/train, verified and measured."""

    @staticmethod
    def find(settings: Any) -> ImageIndex:
        return ImageIndex.from_root(settings.data or sample_root())

    @staticmethod
    def find_tests(settings: Any, classes: Sequence[str] | None) -> ImageIndex:
        return evaluation_index(settings.data or sample_root(split="val"), classes, settings.val_labels)

    @staticmethod
    def check_alike(training: ImageIndex, tests: ImageIndex) -> None:
        pass  # files of any size

    @staticmethod
    def side(settings: Any, index: ImageIndex) -> int:
        return settings.image_size or SIDE

    @staticmethod
    def check_padding(settings: Any, side: int) -> None:
        pass  # no padding

    @staticmethod
    def facts(index: ImageIndex, numbers: Tensor) -> dict[str, Any]:
        size, digest = index.bytes_of(numbers)
        return {"bytes": size, "bytes_sha256": digest}

    @staticmethod
    def unlike(index: ImageIndex, numbers: Tensor, then: Mapping[str, Any]) -> str:
        """Compare the file sizes, since the index contains only names."""
        if "bytes_sha256" not in then:
            return f"it recorded no file sizes, so only the original folder can be used: {then['root']}"
        size, digest = index.bytes_of(numbers)
        same = digest == then["bytes_sha256"]
        return "" if same else f"same file names, but different sizes: {then['bytes']} bytes then, {size} now"

    @staticmethod
    def ready(index: ImageIndex, numbers: Tensor, settings: Any, threads: int, begun: bool) -> Checked:
        """Decode the files, those of a continued run only with --strict; take their sizes from the store or from headers.

        Good files go to the store of verified files, and unchanged ones found there are not opened. Bad ones are logged.
        """
        if not begun or settings.strict:
            return _checked(index, numbers, threads, settings.strict)
        with VerifiedStore() as store:
            return Checked(numbers, _by_number(index, numbers, image_sizes(index, numbers, threads, store)))


def _checked(index: ImageIndex, numbers: Tensor, threads: int, strict: bool) -> Checked:
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > CHECK_SECONDS:
            last = time.monotonic()
            log.info(f"checking files: {done} of {total}")

    chosen = numbers.sort().values  # in disk order
    with VerifiedStore() as store:
        good, sizes, bad = verify(index, chosen, threads, progress, store)
    log.info(f"checked {len(chosen)} files, {store.used} of them unchanged since an earlier check")
    if bad and strict:
        named = shortlist([f"{name} ({reason})" for name, reason in bad])
        raise DataError(
            f"--strict: {len(bad)} of {len(chosen)} chosen files under {index.root} cannot be decoded: {named}; "
            "repair or remove them, or continue without --strict"
        )
    for name, reason in bad:
        log.warning(f"excluded: {quoted(name)}: {reason}")
    if bad:
        log.warning(f"{len(bad)} of {len(chosen)} files cannot be decoded and are excluded")
    return Checked(good, _by_number(index, good, sizes), tuple(bad))


def _by_number(index: Index, numbers: Tensor, sizes: Tensor) -> Tensor:
    whole = torch.zeros(len(index), 2, dtype=torch.int32)
    whole[numbers] = sizes
    return whole


class Arrays:
    """Decoded images of one size in memory, which need no verification."""

    @staticmethod
    def find(settings: Any) -> ImageArray:
        return sample_images() if settings.data is None else read_images(settings.data, settings.threads)

    @staticmethod
    def find_tests(settings: Any, classes: Sequence[str] | None) -> ImageArray:
        if settings.data is None:
            return sample_images(split="test")
        return read_images(settings.data, settings.threads, "test", classes, settings.val_labels)

    @staticmethod
    def check_alike(training: ImageArray, tests: ImageArray) -> None:
        if tests.side != training.side:
            sides = f"the test images of {tests.root} have {tests.side} pixels a side, those of {training.root} {training.side}"
            raise DataError(f"{sides}: all must be of one size")

    @staticmethod
    def side(settings: Any, index: ImageArray) -> int:
        """Return --image_size, by default the images' size. Raises ConfigError if it cannot be cropped from them."""
        side, size = index.side, settings.image_size or index.side
        if size > side:
            raise ConfigError(f"--image_size {size}: the images of {index.root} have only {side} pixels a side")
        return size

    @staticmethod
    def check_padding(settings: Any, side: int) -> None:
        if settings.crop_padding >= side:
            raise ConfigError(f"--crop_padding {settings.crop_padding}: crops of {side} pixels could be all black, choose less")

    @staticmethod
    def facts(index: ImageArray, numbers: Tensor) -> dict[str, Any]:
        return {}

    @staticmethod
    def unlike(index: ImageArray, numbers: Tensor, then: Mapping[str, Any]) -> str:
        return ""

    @staticmethod
    def ready(index: ImageArray, numbers: Tensor, settings: Any, threads: int, begun: bool) -> Checked:
        return Checked(numbers, None)
