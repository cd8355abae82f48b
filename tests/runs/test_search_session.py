"""The end of a search: benchmark lookup of its cell, its caching, and signals during rank 0's lookup."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastdarts.engine import RankInfo, World
from fastdarts.networks import architecture_of
from fastdarts.runs.search_session import SearchReporter
from fastdarts.search_imagenet import main
from fastdarts.spaces.genotype import Genotype
from fastdarts.spaces.lookup import TableError
from tests.support.runs import KILLED, SPLIT, TINY, Ranks, hasten, write_tree


class Known:
    """A benchmark that knows every cell, of whatever space."""

    source, columns = "made_up.csv", ("cifar10_test",)

    def accuracies(self, cell: object) -> dict[str, float]:
        return {"cifar10_test": 93.5}

    def rank(self, cell: object, column: str) -> tuple[int, int]:
        return 7, 15625


class Interrupted(Known):
    """SIGTERM comes while it reads all cells for a rank."""

    def rank(self, cell: object, column: str) -> tuple[int, int]:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().rank(cell, column)


class Unknowing(Known):
    """It knows no cell."""

    def accuracies(self, cell: object) -> dict[str, float]:
        raise TableError("not a cell of NAS-Bench-201")


@pytest.fixture(scope="module")
def argv(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    tree = write_tree(tmp_path_factory.mktemp("images"), images=4)
    return ["--data", str(tree), *TINY, *SPLIT, "--epochs", "1", "--begin", "0", "--threads", "1"]


@pytest.fixture
def search(argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Begin or continue the run in tmp_path / "run", with a benchmark or without."""
    hasten(monkeypatch)

    def run(benchmark: Known | None = None) -> int:
        monkeypatch.setattr("fastdarts.runs.search.benchmark_of", lambda *_: benchmark)
        return main([*argv, "--save", str(tmp_path / "run")])

    return run


def genotype(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "genotype.json").read_text())


def test_lookup_is_cached_per_cell(search: Callable[..., int], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert search(Known()) == 0
    found = genotype(folder)
    assert found["benchmark"] == {"cifar10_test": 93.5, "cifar10_test_rank": 7}
    assert search() == 0 and genotype(folder) == found
    for other in (json.dumps(found | {"text": "another cell"}), "[1]", "{"):
        (folder / "genotype.json").write_text(other)
        assert search() == 0 and genotype(folder) == {name: found[name] for name in found if name != "benchmark"}


def test_cell_missing_from_table_has_no_accuracy(search: Callable[..., int], tmp_path: Path) -> None:
    assert search(Unknowing()) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "not looked up: not a cell of NAS-Bench-201" in log and "true accuracy" not in log
    assert search(Known()) == 0
    assert "true accuracy by made_up.csv: cifar10_test 93.50 % (rank 7 of 15625)" in (tmp_path / "run" / "log.txt").read_text()


class Two(World):
    """Rank 0 of two, where the other one has the same to say; `calls` counts what both would do together."""

    def __init__(self) -> None:
        super().__init__(RankInfo(0, 2, 0, 2))
        self.calls = 0

    def agree(self, signal: int, due: bool) -> tuple[int, bool]:
        self.calls += 1
        return super().agree(signal, due)

    def gather(self, value: Any) -> list[Any]:
        self.calls += 1
        return [value, value]

    def on_rank_zero(self, work: Callable[[], Any], *_: object, **__: object) -> Any:
        self.calls += 1
        return work()

    def on_all_ranks(self, work: Callable[[], Any]) -> Any:
        self.calls += 1
        return work()

    def broadcast(self, tensors: object) -> None:
        self.calls += 1


def test_signal_interrupts_final_lookup_of_rank_0(
    search: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, two, then = tmp_path / "run", Two(), []

    @contextmanager
    def join(*_: object) -> Iterator[World]:
        yield two

    class Counting(Interrupted):
        def rank(self, cell: object, column: str) -> tuple[int, int]:
            then.append(two.calls)
            return super().rank(cell, column)

    monkeypatch.setattr(World, "join", staticmethod(join))
    assert search(Counting()) == 75
    assert then == [two.calls] and two.calls > 0
    assert (folder / "status").read_text().startswith("stopped: SIGTERM")
    assert "cifar10_test_rank" not in genotype(folder)["benchmark"]
    assert search(Known()) == 0
    assert (folder / "status").read_text().startswith("finished") and genotype(folder)["benchmark"]["cifar10_test_rank"] == 7


class Slow(Known):
    """SIGTERM comes when the other rank has had the time to end, and minutes before it has read all cells."""

    def rank(self, cell: object, column: str) -> tuple[int, int]:
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(100)
        return super().rank(cell, column)


def looks_up(benchmark: Known) -> None:
    """A hook: whatever --benchmark says, this is it."""
    from fastdarts.runs import search as run

    run.benchmark_of = lambda *_: benchmark


@pytest.mark.parametrize(("table", "status", "message"), [(Slow(), 75, "stopped: SIGTERM"), (Known(), 0, "finished")])
def test_only_rank_0_looks_up(table: Known, status: int, message: str, argv: list[str], tmp_path: Path) -> None:
    folder, began = tmp_path / "run", time.monotonic()
    ranks = Ranks([*argv, "--save", str(folder)], tmp_path / "out", partial(looks_up, table))
    assert ranks.wait() == status, ranks.printed()
    assert (folder / "status").read_text().startswith(message) and time.monotonic() - began < 60 + KILLED
    assert "Traceback" not in ranks.printed() and len(re.findall("^python.* stopped by SIGTERM", ranks.printed(), re.M)) == (
        status == 75  # of rank 0; the other one may still be ending, and receive the signal as well
    )
    assert ("cifar10_test_rank" in genotype(folder)["benchmark"]) == (status == 0)


def test_cell_with_custom_candidate_has_no_counts(caplog: pytest.LogCaptureFixture) -> None:
    """What its modules compute is not known, and is no reason to end a search; every other cell has them."""
    reporter: Any = SimpleNamespace(network="cifar")
    cell = architecture_of("DARTS_V2")
    assert SearchReporter._counts(reporter, cell)["network"] == "cifar network, 36 channels, 20 cells, 10 classes"
    own = Genotype.from_text(str(cell).replace("dil_conv_3x3", "conv_of_my_own"))
    with caplog.at_level("WARNING", "fastdarts"):
        assert SearchReporter._counts(reporter, own) == {}
    assert "conv_of_my_own is a custom candidate: its multiply-adds are unknown" in caplog.text
