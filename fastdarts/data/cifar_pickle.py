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
INTEGERS = re.compile(r"[|<>=][iu][1248]")


class BatchFiles(NamedTuple):
    """Files of one data set and the keys of their content."""

    batches: tuple[str, ...]
    test: str
    labels: str
    meta: str
    names: str


BATCH_FILES = {
    "cifar-10-batches-py": BatchFiles(
        tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "labels", "batches.meta", "label_names"
    ),
    "cifar-100-python": BatchFiles(("train",), "test", "fine_labels", "meta", "fine_label_names"),
}


def files_of(folder: Path) -> BatchFiles | None:
    """Return the layout of the batches in `folder`, or None if it holds none."""
    rows = BATCH_FILES.values()
    return next((row for row in rows if any((folder / name).is_file() for name in (*row.batches, row.test))), None)


def read_batches(folder: Path, files: BatchFiles, split: str = "train") -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Read the images of "train" or "test", uint8 (N, 32, 32, 3), their labels, int64 (N,), and the class names.

    Raises DataError, which names the file, if it is missing, damaged, or contains more than arrays, text and lists.
    """
    images, labels = [], []
    for name in files.batches if split == "train" else (files.test,):
        batch = read_pickle(folder / name)
        data, own = batch.get("data"), _integers(batch.get(files.labels))
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * SIDE * SIDE:
            found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
            raise DataError(f"{folder / name}: 'data' must be uint8 (N, {3 * SIDE * SIDE}), it is {found}")
        if own is None or own.shape != (len(data),):
            found = "none" if own is None else str(own.size)
            raise DataError(f"{folder / name}: {len(data)} images need {len(data)} integers in '{files.labels}', found {found}")
        images.append(data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
        labels.append(own)
    names = read_pickle(folder / files.meta).get(files.names)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{folder / files.meta}: '{files.names}' must be a list of the classes' names")
    return np.concatenate(images), np.concatenate(labels), tuple(names)


def read_pickle(path: Path) -> dict[str, Any]:
    """Read the dict in `path`, with text keys; it may hold builtin containers, numbers, text and arrays of integers.

    Raises DataError, which names the file and the rejected object.
    """
    try:
        with open(path, "rb") as file:
            content = _Restricted(file, encoding="latin1").load()
        if isinstance(content, dict):
            return {str(_text(key)): _plain(value) for key, value in content.items()}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; a folder of CIFAR's python batches has it") from error
    except Exception as error:  # any failure of unpickling is a fault of this file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is not a complete CIFAR batch ({reason}); unpack the archive again") from error
    raise DataError(f"{path} is not a CIFAR batch: it contains a {type(content).__name__}, not a dict")


def _integers(value: Any) -> np.ndarray | None:
    """Return a list or array of integers as int64."""
    if isinstance(value, list) and not all(type(number) is int and abs(number) < 2**31 for number in value):
        return None
    return np.asarray(value, np.int64) if isinstance(value, list | np.ndarray) else None


def _text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _plain(value: Any) -> Any:
    """Convert a stand-in to its array and bytes to text, also one level deep in a list."""
    if isinstance(value, list):
        return [_text(item) for item in value]
    return _array(*value.args) if isinstance(value, _StandIn) else _text(value)


class _StandIn:
    """Arguments, then state, of an array or a dtype: NumPy itself would trust the state of a pickle."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.args = (*self.args, *state)


def _array(*args: Any) -> np.ndarray:
    """Return the array. Raises UnpicklingError for anything but integers, and NumPy's errors for inconsistent ones.

    args  content, dtype, shape, order: arguments of numpy's _frombuffer; or three arguments of its _reconstruct and a state
    """
    content, dtype, shape, order = args if len(args) == 4 else (args[7], args[5], args[4], "F" if args[6] else "C")
    kind = _text(dtype.args[4]) + _text(dtype.args[0])  # byte order from the state, code from the arguments
    if not INTEGERS.fullmatch(kind):
        raise pickle.UnpicklingError(f"an array of {kind[1:]}, expected integers")
    content = content.encode("latin1") if isinstance(content, str) else bytes(content)
    return np.frombuffer(content, kind).reshape(shape, order="F" if order == "F" else "C")


NAMES = {
    "numpy.core.multiarray._reconstruct": _StandIn,
    "numpy.core.numeric._frombuffer": _StandIn,
    "numpy.ndarray": _StandIn,
    "numpy.dtype": _StandIn,
    "_codecs.encode": str.encode,  # of bytes, as protocol 2 writes them
}


class _Restricted(pickle.Unpickler):
    """Unpickler that looks up nothing but the NAMES of a pickled array."""

    def find_class(self, module: str, name: str) -> Any:
        if (found := NAMES.get(f"{module}.{name}".replace("numpy._core.", "numpy.core."))) is None:
            raise pickle.UnpicklingError(
                f"it requests {module}.{name}, which CIFAR's files do not need and which is not executed"
            )
        return found
