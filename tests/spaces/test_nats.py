"""NATS-Bench's files through a stand-in with the interface of nats_bench 1.8, which needs none of their gigabytes.

Where the package is installed, its own classes write a cell's file and read it.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastdarts.spaces import Architecture
from fastdarts.spaces.lookup import ACCURACIES, MORE, TableError
from fastdarts.spaces.nats import NatsBench, read

CELLS = [str(Architecture.from_number((index + 7) % 15625)) for index in range(15625)]
SETS = {"cifar10-valid": 40.0, "cifar10": 50.0, "cifar100": 60.0, "ImageNet16-120": 70.0}


class Api:
    """NATStopology as documented: the mean of the runs is asked for, a random run and 12 epochs are the defaults."""

    def __init__(self, cells: list[str] = CELLS, fast_mode: bool = True, broken: int = -1) -> None:
        self.cells, self.fast_mode, self.broken = cells, fast_mode, broken
        self.arch2infos_dict: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.cells)

    def arch(self, index: int) -> str:
        return self.cells[index]

    def get_more_info(
        self, index: int, dataset: str, iepoch: int | None = None, hp: str = "12", is_random: bool = True
    ) -> dict[str, Any]:
        assert index != self.broken, "invalid data path"
        self.arch2infos_dict[index] = "read"
        shift = 1000 if is_random else {"12": 0.0, "200": 10.0}[hp]
        info = {"test-accuracy": SETS[dataset] + shift + index / 1e4, "comment": "text"}
        return info if dataset == "cifar10" else info | {"valid-accuracy": SETS[dataset] + shift + 5}


def test_columns_have_data_set_and_training() -> None:
    bench = NatsBench(Api())
    assert bench.columns == (*ACCURACIES, *MORE)
    assert bench.accuracies(bench.architecture(100)) == {
        "cifar10_valid": 55.0,
        "cifar10_test": 60.01,
        "cifar100_valid": 75.0,
        "cifar100_test": 70.01,
        "imagenet16_valid": 85.0,
        "imagenet16_test": 80.01,
        "cifar10_test_halftrain": 50.01,
        "cifar10_valid_12ep": 45.0,
        "cifar10_test_12ep": 50.01,
        "cifar100_valid_12ep": 65.0,
        "cifar100_test_12ep": 60.01,
        "imagenet16_valid_12ep": 75.0,
        "imagenet16_test_12ep": 70.01,
    }


def test_index_and_rank() -> None:
    bench = NatsBench(Api())
    assert bench.index(Architecture.from_number(7)) == 0
    assert bench.architecture(0).number == 7
    assert bench.rank(bench.architecture(15624), "cifar10_test") == (1, 15625)
    assert bench.rank(bench.architecture(15000), "cifar100_test_12ep") == (625, 15625)
    assert bench.rank(bench.architecture(15000), "cifar10_valid") == (1, 15625)


@pytest.mark.parametrize(("fast_mode", "kept"), [(True, []), (False, [3])])
def test_cells_of_folder_are_not_kept_in_memory(fast_mode: bool, kept: list[int]) -> None:
    """Of the single file they are all that there is."""
    api = Api(fast_mode=fast_mode)
    NatsBench(api).accuracies(Architecture.from_text(CELLS[3]))
    assert list(api.arch2infos_dict) == kept


def test_missing_api_values_are_reported() -> None:
    with pytest.raises(TableError, match="here: not a table of NAS-Bench-201: cell 0"):
        NatsBench(Api(["64:64:64:64:64"] * 32768), "here")
    with pytest.raises(TableError, match="here: 5 of NAS-Bench-201's 15625 cells"):
        NatsBench(Api(CELLS[:5]), "here")
    with pytest.raises(TableError, match="here: nats_bench has no cifar10_valid of cell 8: invalid data path"):
        NatsBench(Api(broken=8), "here").accuracies(Architecture.from_text(CELLS[8]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of NATS-Bench's layout, its files empty, that need only have the first ten cells."""
    monkeypatch.setattr("fastdarts.spaces.nats.CELLS", 10)
    path = tmp_path / "NATS-tss-v1_0-3ffb9-simple"
    path.mkdir()
    for name in ("meta", *(f"{index:06d}" for index in range(10))):
        (path / f"{name}.pickle.pbz2").touch()
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What a stand-in for the package was asked to open."""
    calls: list[tuple[Any, ...]] = []

    def create(path: str, search_space: str, fast_mode: bool = False, verbose: bool = True) -> Api:
        calls.append((Path(path).name, search_space, fast_mode, verbose))
        if path.endswith("damaged.pickle.pbz2"):
            raise OSError("Invalid data stream")
        return Api(fast_mode=fast_mode)

    monkeypatch.setitem(sys.modules, "nats_bench", SimpleNamespace(create=create))
    return calls


def test_folder_is_read_by_cell_and_file_as_whole(folder: Path, calls: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "NATS-tss-v1_0-3ffb9.pickle.pbz2"
    file.touch()
    assert read(folder).source == str(folder)
    assert read(file).index(Architecture.from_number(7)) == 0
    assert calls == [(folder.name, "tss", True, False), (file.name, "tss", False, False)]


def test_unreadable_paths_are_rejected(calls: list[Any], tmp_path: Path) -> None:
    with pytest.raises(TableError, match="nothing: no such file or folder"):
        read(tmp_path / "nothing")
    with pytest.raises(TableError, match=r"not a folder of NATS-Bench, it lacks meta\.pickle\.pbz2"):
        read(tmp_path)
    (tmp_path / "meta.pickle.pbz2").touch()
    (tmp_path / "0.pickle.pbz2").touch()
    with pytest.raises(TableError, match=r"15624 of 15625 cells have no file, such as 000001\.pickle\.pbz2"):
        read(tmp_path)
    assert calls == []
    damaged = tmp_path / "damaged.pickle.pbz2"
    damaged.touch()
    with pytest.raises(TableError, match=r"damaged\.pickle\.pbz2: nats_bench cannot read it: Invalid data stream"):
        read(damaged)


def test_missing_package_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nats_bench", None)
    with pytest.raises(TableError, match=r"needs the package nats_bench \(pip install nats_bench\)"):
        read(folder)


def test_file_written_by_package_is_read(folder: Path) -> None:
    """Two runs of each training: the means come back, though the package's default is one of them at random."""
    nats_bench = pytest.importorskip("nats_bench", reason="nats_bench is not installed")
    sets = {"cifar10-valid": ("x-valid", "ori-test"), "cifar10": ("ori-test",)}
    sets |= dict.fromkeys(("cifar100", "ImageNet16-120"), ("x-valid", "x-test", "ori-test"))
    trainings = {}
    for hp, epochs in {"12": 12, "200": 200}.items():
        results = nats_bench.ArchResults(5, CELLS[5])
        for number, (dataset, evaluations) in enumerate(sets.items()):
            for seed in (777, 888):
                last = {epochs - 1: 99.0}
                run = nats_bench.ResultsCount(dataset, None, last, last, 1.0, 1.0, {}, seed, epochs, None)
                for place, name in enumerate(evaluations):
                    key = f"{name}@{epochs - 1}"
                    run.eval_acc1es[key] = 20.0 * number + 5 * place + (seed == 888) + epochs / 100
                    run.eval_losses[key] = 0.0
                results.update(dataset, seed, run)
        trainings[hp] = results.state_dict()
    nats_bench.pickle_save({"meta_archs": CELLS}, folder / "meta.pickle")
    nats_bench.pickle_save(trainings, folder / "000005.pickle")
    bench = read(folder)
    values = bench.accuracies(Architecture.from_text(CELLS[5]))
    assert values == pytest.approx(
        {"cifar10_valid": 2.5, "cifar10_test": 22.5, "cifar10_test_halftrain": 7.5}
        | {"cifar100_valid": 42.5, "cifar100_test": 47.5, "imagenet16_valid": 62.5, "imagenet16_test": 67.5}
        | {"cifar10_valid_12ep": 0.62, "cifar10_test_12ep": 20.62}
        | {"cifar100_valid_12ep": 40.62, "cifar100_test_12ep": 45.62}
        | {"imagenet16_valid_12ep": 60.62, "imagenet16_test_12ep": 65.62}
    )
    with pytest.raises(TableError, match="nats_bench has no cifar10_valid of cell 6"):
        bench.accuracies(Architecture.from_text(CELLS[6]))
