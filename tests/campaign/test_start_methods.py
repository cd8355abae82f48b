"""Scripts with worker processes, by each way in which Python starts these; each process imports torch, which takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import write_tree

pytestmark = pytest.mark.campaign
SCRIPT = """
import multiprocessing, sys, torch
from fastdarts.data import FolderLoader, ImageIndex
from fastdarts.ops.philox import Stream

def main():
    index = ImageIndex.from_root(sys.argv[2])
    settings = dict(stream=Stream.TRAIN, seed=0, batch_size=4, image_size=16)
    whole = FolderLoader(index, torch.arange(16), workers=0, **settings)
    with FolderLoader(index, torch.arange(16), workers=2, **settings) as loader:
        print(all(next(loader).images.equal(next(whole).images) for _ in range(9)))

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
"""


def run(script: str, tmp_path: Path, method: str) -> subprocess.CompletedProcess:
    (tmp_path / "script.py").write_text(script)
    root = write_tree(tmp_path / "data")
    return subprocess.run(
        [sys.executable, tmp_path / "script.py", method, root], capture_output=True, text=True, timeout=120, cwd=Path.cwd()
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_batches_do_not_depend_on_start_method(method: str, tmp_path: Path) -> None:
    done = run(f"{SCRIPT}    main()\n", tmp_path, method)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_script_without_main_guard_fails_with_message(tmp_path: Path) -> None:
    done = run(f"{SCRIPT}main()\n", tmp_path, "spawn")
    assert done.returncode == 1 and "__name__ == '__main__'" in done.stderr.splitlines()[-1]
