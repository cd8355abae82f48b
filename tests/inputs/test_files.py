"""Input routes of a search as chosen by flags: messages, saved facts, rejections, bitwise equality."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastdarts.data import CacheLoader, InputStopped, dali, placement
from fastdarts.engine import Session
from fastdarts.inputs import supply as input_module
from fastdarts.search_imagenet import main
from tests.support.runs import write_tree
from tests.test_search_imagenet import arguments

pytestmark = pytest.mark.usefixtures("no_report")
Search = Callable[..., Path]
needs_dali = pytest.mark.skipif(dali.unavailable(torch.device("cpu")) is not None, reason="DALI is not installed")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("images"), side=60)


@pytest.fixture
def search(tree: Path, tmp_path: Path) -> Search:
    """A call `search("name", flags...)` runs one and returns its folder."""

    def run(name: str, *flags: str, status: int = 0) -> Path:
        assert main(arguments(tree, "--save", str(tmp_path / name), *flags)) == status
        return tmp_path / name

    return run


def metrics(folder: Path) -> bytes:
    return (folder / "metrics.jsonl").read_bytes()


def given(folder: Path) -> dict:
    return json.loads((folder / "settings.json").read_text())["input"]


def test_ram_and_file_caches_are_bitwise_identical(search: Search, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ram = search("ram")
    assert "cache: 0.2 MiB of decoded images in RAM" in capsys.readouterr().out
    assert given(ram) == {"route": "cache", "cache": "ram", "bytes": 16 * 3 * 60 * 60, "short_side": 256}
    kept = tmp_path / "kept"
    file = search("file", "--cache_folder", str(kept))
    assert f"in a file in {kept}" in capsys.readouterr().out and len(list(kept.glob("*.pixels"))) == 1
    again = search("again", "--cache", "ram", "--cache_folder", str(kept))
    assert metrics(ram) == metrics(file) == metrics(again)
    smaller = search("smaller", "--cache_size", "37")
    assert given(smaller)["short_side"] == 37 and metrics(smaller) != metrics(ram)


@pytest.mark.parametrize("loader", ["torchvision", pytest.param("dali", marks=needs_dali)])
def test_search_without_cache_does_not_depend_on_workers(loader: str, search: Search, capsys: pytest.CaptureFixture) -> None:
    one = search("one", "--loader", loader)
    message = capsys.readouterr().out
    assert f"no cache: --loader {loader} was requested" in message and f"loader: {loader}" in message
    two = search("two", "--loader", loader, "--cache", "off", "--workers", "2")
    assert metrics(one) == metrics(two) and given(one) == given(two) == {"route": loader, "cache": "off"}


def test_continued_run_keeps_or_reports_its_route(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Interrupted after two of three epochs; without a flag, the rest is fed as the beginning was."""
    whole = search("whole", "--cache", "off")
    record = Session._record

    def interrupted(session: Session, line: dict) -> None:
        record(session, line)
        if line["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_record", interrupted)
        for name in ("same", "other", "old"):
            search(name, "--cache", "off", status=130)
    capsys.readouterr()
    same = search("same")
    assert "no cache: the run started without one" in capsys.readouterr().out and metrics(same) == metrics(whole)
    other = search("other", "--cache", "ram")
    message = capsys.readouterr().out
    assert "continues with images from cache instead of torchvision: order, boxes and flips stay the same" in message
    assert "pixels differ, because boxes are cropped from reduced images" in message
    assert "input: cache, --cache ram" in (other / "log.txt").read_text()
    assert metrics(other) != metrics(whole)
    assert [json.loads(line)["epoch"] for line in metrics(other).splitlines()] == [1, 1, 2, 2, 3, 3]
    (saved := tmp_path / "old" / "settings.json").write_text(saved.read_text().replace('"torchvision"', '"dali-reader"'))
    assert given(search("old"))["route"] == "dali-reader"
    message = "continues with images from torchvision instead of dali-reader: order and flips stay the same, boxes differ"
    assert f"{message}; dali-reader is no longer a loader" in capsys.readouterr().out


def test_unavailable_input_is_rejected_before_writing(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refused(*flags: str) -> str:
        folder = search("refused", *flags, status=2)
        assert not folder.exists()
        line = capsys.readouterr().err.strip()
        assert "\n" not in line
        return line

    assert "--cache device: the decoded images need 0.2 MiB: cpu is not a GPU; choose a smaller --cache_size" in refused(
        "--cache", "device"
    )
    monkeypatch.setattr(placement, "available_ram", lambda: 1000)
    assert "--cache ram: the decoded images need 0.2 MiB: RAM has 0.0 MiB free" in refused("--cache", "ram")
    monkeypatch.setattr(dali, "unavailable", lambda device: "DALI is not installed: pip install 'fastdarts[dali]'")
    assert "--loader dali: DALI is not installed: pip install" in refused("--loader", "dali")
    blocked = tmp_path / "blocked"
    blocked.touch()
    assert "cannot read the cache" in refused("--cache_folder", str(blocked))
    assert "--cache_size" in refused("--cache_size", "-1")
    assert "--input_timeout" in refused("--input_timeout", "0")


def test_missing_memory_falls_back_to_torchvision(
    search: Search, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(placement, "available_ram", lambda: 1000)
    run = search("run")
    message = capsys.readouterr().out
    assert "no cache of 0.2 MiB: cpu is not a GPU; RAM has 0.0 MiB free, of which the run needs about" in message
    assert "loader: torchvision" in message and given(run)["route"] == "torchvision"


def test_dry_run_states_cache_size(search: Search, capsys: pytest.CaptureFixture) -> None:
    assert not search("plan", "--dry_run").exists()
    assert "cache: 0.2 MiB of decoded images in RAM" in capsys.readouterr().out
    search("plan", "--dry_run", "--cache", "off")
    assert "no cache: images are decoded every time they are used; loader: torchvision" in capsys.readouterr().out


def test_dry_run_skips_undecodable_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_tree(tmp_path / "images", images=8, side=60)
    for number in range(3):
        (root / f"train/class0/{number}.JPEG").write_text("no image")
    assert main(arguments(root, "--dry_run")) == 0
    assert "cache: 0.2 MiB of decoded images in RAM" in capsys.readouterr().out
    for path in root.glob("train/*/*"):
        path.write_text("no image")
    assert main(arguments(root, "--dry_run")) == 2
    assert "none of the checked files under" in capsys.readouterr().err


def test_unused_flags_are_reported(search: Search, capsys: pytest.CaptureFixture) -> None:
    search("plan", "--dry_run", "--cache", "ram", "--loader", "dali")
    assert "cache: 0.2 MiB of decoded images in RAM; --loader dali is not used" in capsys.readouterr().out
    search("plan", "--dry_run", "--cache_folder", "x", "--loader", "torchvision")
    assert "no cache: --loader torchvision was requested; --cache_folder is not used" in capsys.readouterr().out


def test_stopped_input_ends_run_with_one_line(
    search: Search, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    class SignalHandler(CacheLoader):
        def __next__(self) -> None:
            raise InputStopped("no input for 300 seconds, stuck at: a test")

    monkeypatch.setattr(input_module, "CacheLoader", SignalHandler)
    search("run", status=1)
    line = capsys.readouterr().err.strip()
    assert "stopped: no input for 300 seconds, stuck at: a test; the same command" in line and "\n" not in line
