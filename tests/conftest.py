"""Shared by all tests: fair threads under xdist, GPU tests skipped without a GPU, the shared data where it is, a table."""

import csv
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What starts processes, Triton's interpreter or a compiler, or trains for a while: `make test-fast` skips it.
SLOW_FOLDERS = {"bench", "campaign", "cuda", "gpu", "interop", "kernels", "runs", "zoo"}
SLOW_FILES = {
    *("test_cuda_graph", "test_distributed", "test_docs", "test_drawing", "test_early_stop", "test_exact_hessian"),
    *("test_examples", "test_files", "test_heap", "test_memory", "test_packaging", "test_processes", "test_progressive"),
    *("test_ranks_stopping", "test_recipes", "test_retrain", "test_search_cifar", "test_search_imagenet", "test_search_stages"),
    *("test_session", "test_signals", "test_stopping", "test_sweep", "test_torchrun", "test_trainer"),
    *("test_trajectories", "test_verified_store"),
}


def pytest_configure() -> None:
    """Workers of xdist share the cores instead of fighting for them: set before torch is imported, child processes too."""
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // int(workers)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    items.sort(key=lambda item: item.path.stem != "test_interpreter")  # the longest first, so that workers end together
    for item in items:
        compiles = item.name.startswith("test_compiles_")
        if compiles or item.path.parent.name in SLOW_FOLDERS or item.path.stem in SLOW_FILES:
            item.add_marker(pytest.mark.slow)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what was captured of names that are no UTF-8: xdist's workers cannot send them."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own, in subprocesses too: nothing is written into the user's, nor found there."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("user_cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data folder next to the checkout (../shared/data), which not every machine has."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared data next to the checkout (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def made_up_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table as NAS-Bench-201's: its cell number n has 100 * n / 15,624 % in every column."""
    from fastdarts.spaces import Architecture
    from fastdarts.spaces.lookup import ACCURACIES, CELLS

    path = tmp_path_factory.mktemp("table") / "made_up.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["index", "arch_str", *ACCURACIES])
        for number in range(CELLS):
            accuracy = f"{100 * number / (CELLS - 1):.6f}"
            lines.writerow([number, Architecture.from_number(number), *[accuracy] * len(ACCURACIES)])
    return path


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let searches of this process draw no report and plan once (tests.support.runs.hasten); not those of module fixtures."""
    from tests.support.runs import hasten

    hasten(monkeypatch)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For modules of thousands of tiny operators, where threads do nothing but wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
