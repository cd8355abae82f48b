"""Settings that images and their input read, documented with the command's settings (settings.groups)."""

from typing import Literal, Protocol


class InputOptions(Protocol):
    """Settings read by every input."""

    @property
    def image_size(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def input_timeout(self) -> float: ...


class FileOptions(InputOptions, Protocol):
    """Settings read by input from image files."""

    @property
    def loader(self) -> Literal["auto", "torchvision", "dali"]: ...
    @property
    def cache(self) -> Literal["auto", "device", "ram", "off"]: ...
    @property
    def cache_folder(self) -> str | None: ...
    @property
    def cache_size(self) -> int: ...
    @property
    def workers(self) -> int: ...


class ArrayOptions(InputOptions, Protocol):
    """Settings read by input from images in memory."""

    @property
    def crop_padding(self) -> int: ...


class TestOptions(FileOptions, Protocol):
    """Settings read by an evaluation on the test images of either kind of data."""

    @property
    def data(self) -> str | None: ...
    @property
    def val_labels(self) -> str | None: ...
    @property
    def strict(self) -> bool: ...
    @property
    def threads(self) -> int: ...


class TrainingOptions(TestOptions, ArrayOptions, Protocol):
    """Settings read by a retraining on either kind of data."""

    @property
    def val_fraction(self) -> float: ...
    @property
    def train_list(self) -> str | None: ...
    @property
    def val_list(self) -> str | None: ...
    @property
    def seed(self) -> int: ...
