"""Read CIFAR's python batches (pickles) without executing any code they name.

Notation: N images of 32 x 32 pixels.
"""

import pickle
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastdarts.data.errors import DataError

SIDE = 32
INTEGERS = re.compile(r"[|<>=]?([iu][1248])")


class Layout(NamedTuple):
    """Files of one data set and the keys of their content."""

    batches: tuple[str, ...]
    test: str
    labels: str
    meta: str
    names: str


LAYOUTS = {
    "cifar-10-batches-py": Layout(
        tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "labels", "batches.meta", "label_names"
    ),
    "cifar-100-python": Layout(("train",), "test", "fine_labels", "meta", "fine_label_names"),
}


def layout_of(folder: Path) -> Layout | None:
    """Return the layout of the batches in `folder`, or None if it holds none."""
    return next((row for row in LAYOUTS.values() if any((folder / name).is_file() for name in (*row.batches, row.test))), None)


def read_batches(folder: Path, layout: Layout, split: str = "train") -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Read the images of "train" or "test", uint8 (N, 32, 32, 3), their labels, int64 (N,), and the class names.

    Raises DataError, which names the file, if it is missing, damaged, or contains more than arrays, text and lists.
    """
    images, labels = [], []
    for name in layout.batches if split == "train" else (layout.test,):
        batch = read_pickle(folder / name)
        data, own = batch.get("data"), _integers(batch.get(layout.labels))
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * SIDE * SIDE:
            found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
            raise DataError(f"{folder / name}: 'data' must be uint8 (N, {3 * SIDE * SIDE}), it is {found}")
        if own is None or own.shape != (len(data),):
            found = "none" if own is None else str(own.size)
            raise DataError(f"{folder / name}: {len(data)} images need as many numbers in '{layout.labels}', found {found}")
        images.append(data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
        labels.append(own)
    names = read_pickle(folder / layout.meta).get(layout.names)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{folder / layout.meta}: '{layout.names}' must be a list of the classes' names")
    return np.concatenate(images), np.concatenate(labels), tuple(names)


def read_pickle(path: Path) -> dict[str, Any]:
    """Read the dict in `path`, with text keys; of all importable objects only integer arrays are admitted.

    Raises DataError, which names the file and the rejected object.
    """
    try:
        with open(path, "rb") as file:
            content = _Restricted(file, encoding="latin1").load()
        if isinstance(content, dict):
            return {_text(key): _plain(value) for key, value in content.items()}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; a folder of CIFAR's python batches has it") from error
    except Exception as error:  # any failure of unpickling is a fault of this file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is no whole batch of CIFAR ({reason}); unpack the archive again") from error
    raise DataError(f"{path} is no batch of CIFAR: it holds a {type(content).__name__}, not a dict")


def _integers(value: Any) -> np.ndarray | None:
    """Return a list or array of integers as int64."""
    if isinstance(value, list) and not all(type(number) is int and abs(number) < 2**31 for number in value):
        return None
    return np.asarray(value, np.int64) if isinstance(value, list | np.ndarray) else None


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    """Convert a stand-in to its array and bytes to text, also one level deep in a list."""
    if isinstance(value, _Array):
        return value.array()
    if isinstance(value, list):
        return [_text(item) if isinstance(item, bytes) else item for item in value]
    return _text(value) if isinstance(value, bytes) else value


class _Dtype:
    """Stand-in for a pickled dtype."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code, self.order = _text(code), "|"

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])

    def dtype(self) -> np.dtype:
        """Raises UnpicklingError for anything but integers."""
        found = INTEGERS.fullmatch(self.code)
        if found is None or self.order not in "|<>=":
            raise pickle.UnpicklingError(f"an array of {self.code or 'nothing'}, integers are wanted")
        order: Any = self.order
        return np.dtype(found[1]).newbyteorder(order)


class _Array:
    """Stand-in for a pickled array: its state, passed to NumPy only after validation."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        """Build the array. Raises the errors of an inconsistent state."""
        _, shape, dtype, fortran, content = self.state
        kind = dtype.dtype()
        content = content.encode("latin1") if isinstance(content, str) else bytes(content)
        return np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")


class _Restricted(pickle.Unpickler):
    """Unpickler that resolves only the names of a pickled array, to stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            "numpy.core.multiarray._reconstruct": _Array,
            "numpy.ndarray": _Array,
            "numpy.dtype": _Dtype,
            "numpy.core.numeric._frombuffer": self._from_buffer,
            "_codecs.encode": self._encoded,
        }
        if (found := known.get(f"{module}.{name}".replace("numpy._core.", "numpy.core."))) is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which such a file does not need and which is not run")
        return found

    def _from_buffer(self, content: Any, dtype: _Dtype, shape: Any, order: Any) -> _Array:
        """Build an array of pickle protocol 5."""
        array = _Array()
        array.state = 1, shape, dtype, order == "F", content
        return array

    def _encoded(self, text: str, encoding: str) -> bytes:
        """Decode bytes as protocol 2 writes them."""
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"bytes are encoded as {str(encoding)[:20]}, latin1 is wanted")
        return text.encode("latin1")
