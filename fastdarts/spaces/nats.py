"""The files of NATS-Bench (Dong et al., TPAMI 2021), the later measurements of NAS-Bench-201's cells, through `nats_bench`.

That package (version 1.8) is an optional dependency. Its files are pickles, and loading a pickle executes code in it, so use
only files of its authors. A folder is read cell by cell; the single file as a whole, which takes minutes and much memory.
"""

import pickle
from pathlib import Path
from typing import Any, Protocol

from fastdarts.spaces.lookup import ACCURACIES, CELLS, MORE, Lookup, Table, TableError

_META = "meta.pickle.pbz2"
_UNREADABLE = (AssertionError, OSError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError)  # nats_bench's
_EPOCHS = {"": "200", "_12ep": "12"}
# NATS-Bench's data set and metric of each column; the validation accuracy of CIFAR-10 belongs to half the training set.
_OF = {
    "cifar10_valid": ("cifar10-valid", "valid-accuracy"),
    "cifar10_test": ("cifar10", "test-accuracy"),
    "cifar100_valid": ("cifar100", "valid-accuracy"),
    "cifar100_test": ("cifar100", "test-accuracy"),
    "imagenet16_valid": ("ImageNet16-120", "valid-accuracy"),
    "imagenet16_test": ("ImageNet16-120", "test-accuracy"),
    "cifar10_test_halftrain": ("cifar10-valid", "test-accuracy"),
}


class Api(Protocol):
    """The interface of nats_bench's NATStopology that is used here."""

    fast_mode: bool  # whether it reads a cell's file on demand
    arch2infos_dict: dict[int, Any]  # the cells read so far

    def __len__(self) -> int: ...
    def arch(self, index: int) -> str: ...
    def get_more_info(self, index: int, dataset: str, *, hp: str, is_random: bool) -> dict[str, Any]: ...


class NatsBench(Lookup):
    """All cells through nats_bench. The first `rank` reads every cell: from a folder that takes minutes (30 ms a cell)."""

    def __init__(self, api: Api, source: str = "nats_bench") -> None:
        """Take an open API. Raises TableError for that of another space."""
        super().__init__(source, (api.arch(index) for index in range(len(api))), (*ACCURACIES, *MORE))
        self._api = api

    @staticmethod
    def open(path: str | Path) -> "NatsBench":
        """Open a folder NATS-tss-...-simple or a file NATS-tss-....pickle.pbz2.

        Raises TableError for another one, an incomplete folder, and if nats_bench is not installed.
        """
        path = Path(path)
        if path.is_dir():
            _check_folder(path)
        elif not path.is_file():
            raise TableError(f"{path}: no such file or folder")
        try:
            from nats_bench import create
        except ImportError as error:
            raise TableError(f"{path}: reading it needs the package nats_bench (pip install nats_bench)") from error
        try:
            api = create(str(path), "tss", fast_mode=path.is_dir(), verbose=False)
        except _UNREADABLE as error:
            raise TableError(f"{path}: nats_bench cannot read it: {error}") from error
        return NatsBench(api, str(path))

    def _read(self, index: int) -> dict[str, float]:
        values = {}
        try:
            for column in self.columns:
                base, suffix, _ = column.partition("_12ep")
                dataset, number = _OF[base]
                # is_random=False: the mean over the runs; by default the package draws one of them
                values[column] = self._api.get_more_info(index, dataset, hp=_EPOCHS[suffix], is_random=False)[number]
        except _UNREADABLE as error:
            raise TableError(f"{self.source}: nats_bench has no {column} of cell {index}: {error}") from error
        if self._api.fast_mode:
            self._api.arch2infos_dict.pop(index, None)  # all cells together take many gigabytes; each is read again on demand
        return values


def read(path: str | Path) -> Lookup:
    """Read the table of a CSV file, or a path of nats_bench. Raises TableError."""
    return Table.read(path) if Path(path).suffix.lower() == ".csv" else NatsBench.open(path)


def _check_folder(path: Path) -> None:
    """Raise TableError unless the folder has the list of the cells and a file for each."""
    names = {entry.name for entry in path.iterdir()}
    if _META not in names:
        raise TableError(f"{path}: not a folder of NATS-Bench, it lacks {_META}")
    missing = [i for i in range(CELLS) if f"{i:06d}.pickle.pbz2" not in names and f"{i}.pickle.pbz2" not in names]
    if missing:
        raise TableError(f"{path}: {len(missing)} of {CELLS} cells have no file, such as {missing[0]:06d}.pickle.pbz2")
