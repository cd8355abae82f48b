"""The store of verified files: entries, their validity, and faults, which never stop a run."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastdarts.data import DataError, ImageIndex, Verified, VerifiedStore, image_sizes, verify
from fastdarts.data import verified_store as module
from tests.data.conftest import settle

Tree = Callable[..., Path]
Nobody = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def index(tree: Tree) -> ImageIndex:
    """Six good files, not new."""
    root = tree(a=4, b=2)
    settle(root)
    return ImageIndex.from_root(root)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "store.jsonl"


def check(index: ImageIndex, store: Path | None) -> tuple[int, Verified]:
    """How many files were not opened, and what verify() says."""
    with VerifiedStore(store) as verified:
        found = verify(index, torch.arange(len(index)), 2, store=verified)
    return verified.used, found


def rows(store: Path) -> int:
    return len(store.read_text().split()) // 5 if store.exists() else 0


def same(a: Verified, b: Verified) -> bool:
    return a.good.equal(b.good) and a.sizes.equal(b.sizes) and a.bad == b.bad


def test_second_check_opens_no_file(index: ImageIndex, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used, first = check(index, store)
    assert used == 0 and len(first.good) == 6
    monkeypatch.setattr(Image, "open", lambda file: pytest.fail(f"{file} was opened"))
    used, second = check(index, store)
    assert used == 6 and same(first, second)
    with VerifiedStore(store) as verified:
        assert image_sizes(index, torch.tensor([4, 1]), 1, verified).equal(first.sizes[[4, 1]])
    link = store.parent / "link"
    link.symlink_to(index.root)
    assert check(ImageIndex.from_root(link), store)[0] == 6  # the same files by another way
    monkeypatch.chdir(index.root)
    assert check(ImageIndex.from_root("."), store)[0] == 6


def test_changed_files_are_checked_again(index: ImageIndex, store: Path) -> None:
    a, b, c, d, *_ = (Path(index.path(i)) for i in range(6))
    check(index, store)
    times = a.stat().st_mtime_ns
    a.write_bytes(a.read_bytes()[:-200])  # another size, the time put back
    os.utime(a, ns=(times, times))
    b.write_bytes(bytes(b.stat().st_size))  # the same size, another time
    c.unlink()
    d.unlink()
    d.mkdir()
    used, (good, _, bad) = check(index, store)
    assert used == 2 and good.tolist() == [4, 5]
    assert [Path(name).name for name, _ in bad] == [path.name for path in (a, b, c, d)]
    assert "truncated" in bad[0][1] and bad[1][1] == "not an image"


def test_stored_sizes_are_ignored_after_change(index: ImageIndex, store: Path) -> None:
    check(index, store)
    other = Path(index.path(5)).read_bytes()
    Path(index.path(0)).write_bytes(other)
    with VerifiedStore(store) as verified:
        sizes = image_sizes(index, torch.arange(6), 2, verified)
    assert sizes[0].equal(sizes[5]) and not sizes[0].equal(sizes[4])
    Path(index.path(0)).write_bytes(b"")
    with VerifiedStore(store) as verified, pytest.raises(DataError, match=r"a_0\.JPEG: empty file"):
        image_sizes(index, torch.arange(6), 2, verified)
    Path(index.path(0)).write_bytes(other[:-200])  # a header and too little after it: not what is asked here
    settle(index.root)
    with VerifiedStore(store) as verified:
        image_sizes(index, torch.arange(6), 2, verified)
    assert [name for name, _ in check(index, store)[1].bad] == ["train/a/a_0.JPEG"]  # nor remembered as good


def test_bad_files_are_checked_again(index: ImageIndex, store: Path) -> None:
    """A mended one may have its old size and time."""
    path = Path(index.path(2))
    whole, times = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(bytes(len(whole)))
    os.utime(path, ns=(times, times))
    assert check(index, store)[1].bad == [("train/a/a_2.JPEG", "not an image")]
    path.write_bytes(whole)
    os.utime(path, ns=(times, times))
    used, found = check(index, store)
    assert used == 5 and not found.bad
    assert check(index, store)[0] == 6


def test_changed_permissions_are_noticed(public: Path, index: ImageIndex, nobody: Nobody) -> None:
    """They change neither size nor time."""
    index.root.rename(public / "images")
    moved = ImageIndex.from_root(public / "images")
    (public / "images").chmod(0o755)
    store = public / "store.jsonl"
    check(moved, store)
    Path(moved.path(1)).chmod(0)
    with nobody():
        used, found = check(moved, store)
        assert used == 5 and found.bad == [("train/a/a_1.JPEG", "Permission denied")]


def test_files_being_written_are_not_stored(tree: Tree, store: Path) -> None:
    """Within a tick of its clock a file may change without a trace in its time."""
    index = ImageIndex.from_root(tree(a=3))
    check(index, store)
    assert check(index, store)[0] == 0 and rows(store) == 0


def test_non_text_names_are_stored(tree: Tree, store: Path) -> None:
    root = tree(a=1)
    os.rename(root / "train/a/a_0.JPEG", os.fsencode(root / "train/a") + b"/\xff\xfe'; --.JPEG")
    settle(root)
    index = ImageIndex.from_root(root)
    check(index, store)
    assert check(index, store)[0] == 1


def test_interrupted_check_keeps_results(tree: Tree, store: Path) -> None:
    root = tree(a=200)
    settle(root)
    index = ImageIndex.from_root(root)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), VerifiedStore(store) as verified:
        verify(index, torch.arange(200), 2, stop, verified)
    assert rows(store) == 64
    assert check(index, store)[0] == 64


def test_store_is_in_user_cache(index: ImageIndex, user_cache: Path) -> None:
    with VerifiedStore() as verified:
        assert verified.path == user_cache / "fastdarts" / module.NAME
    check(index, None)
    assert check(index, None)[0] == 6


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda data: data[:-20], 5),  # the last write was cut off
        (lambda data: data[:200] + b"\xa5" * 9 + data[209:], 5),
        (lambda data: data.replace(b"_0.JPEG", b"_9.JPEG"), 4),
        (lambda data: data.replace(b"]\n", b"]"), 0),
        (lambda data: data + b"[" * 100_000, 6),
        (lambda data: data + b'5\n{}\n["/a", 1]\n["/a", 1, 2, 3.5, 4]\n[[], 1, 2, 3, 4]\n[2, 1, 2, 3, 4]\n', 6),
        (lambda data: b"something else\n" * 100, 0),
        (lambda data: b"", 0),
    ],
)
def test_damaged_lines_are_skipped(damage: Callable[[bytes], bytes], left: int, index: ImageIndex, store: Path) -> None:
    _, first = check(index, store)
    store.write_bytes(damage(store.read_bytes()))
    used, found = check(index, store)
    assert used == left and same(found, first)
    assert check(index, store)[0] == 6


def test_store_of_mostly_useless_lines_is_rebuilt(index: ImageIndex, store: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    check(index, store)
    content = store.read_bytes()
    store.write_bytes(2 * content)
    assert check(index, store)[0] == 6 and store.read_bytes() == 2 * content and not caplog.records
    store.write_bytes(2 * content + b"no line\n")
    assert check(index, store)[0] == 6 and store.read_bytes() == content.lstrip()
    assert [record.message for record in caplog.records] == [f"{store} is rebuilt: 7 of 13 lines are damaged or outdated"]
    assert list(store.parent.iterdir()) == [store]


def test_folder_in_its_place_is_not_changed(index: ImageIndex, store: Path, caplog: pytest.LogCaptureFixture) -> None:
    store.mkdir(parents=True)
    assert check(index, store)[0] == 0 and len(check(index, store)[1].good) == 6
    assert {record.message for record in caplog.records} == {f"verified files are not stored: {store}: Is a directory"}


def test_unwritable_store_is_used_read_only(public: Path, index: ImageIndex, nobody: Nobody, caplog) -> None:
    """What it knows is of use, and what it cannot learn is said once."""
    index.root.rename(public / "images")
    (public / "images").chmod(0o755)
    moved = ImageIndex.from_root(public / "images")
    store = public / "store.jsonl"
    check(moved, store)
    with nobody():
        assert check(moved, store)[0] == 6 and not caplog.records
    Path(moved.path(0)).touch()
    settle(moved.root)
    with nobody():
        assert len(check(moved, store)[1].good) == 6
        assert len(caplog.records) == 1 and "Permission denied" in caplog.text
        caplog.clear()
        assert len(check(moved, public / "no" / "store.jsonl")[1].good) == 6
        assert len(caplog.records) == 1 and "Permission denied" in caplog.text


def test_full_disk_is_reported(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    with VerifiedStore(store) as verified:
        store.parent.mkdir()
        store.symlink_to("/dev/full")
        for i in range(2 * module.BATCH):
            verified.add(f"/{i}", module.Known(1, 2, 3, 4))
    assert [record.message for record in caplog.records] == [f"verified files are not stored: {store}: No space left on device"]


def test_missing_home_is_reported(index: ImageIndex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert len(check(index, None)[1].good) == 6
    assert len(caplog.records) == 1 and "not stored: no home folder" in caplog.text


def test_concurrent_processes_share_store(tree: Tree, store: Path) -> None:
    """Both open the store while it is empty, fill it at once, and lose or damage no line of each other."""
    root = tree(a=300)
    settle(root)
    program = (
        "import sys, torch\n"
        "from fastdarts.data import ImageIndex, VerifiedStore, verify, verified_store\n"
        "verified_store.BATCH = 20\n"
        "index = ImageIndex.from_root(sys.argv[1])\n"
        "with VerifiedStore(sys.argv[2]) as store:\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    print(len(verify(index, torch.arange(300), 2, store=store).good))"
    )
    command = [sys.executable, "-c", program, str(root), str(store)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, **pipes, text=True, cwd=Path(__file__).parents[2]) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["open\n"] * 2
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=120) for process in processes] == [("300\n", "")] * 2
    lines = [json.loads(line) for line in store.read_text().splitlines() if line]
    assert len(lines) == 600 and len({path for path, *_ in lines}) == 300
    assert check(ImageIndex.from_root(root), store)[0] == 300
