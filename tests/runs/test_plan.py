"""What a search says where memory gives out; the plan itself is tested with the commands that print it."""

import os
import re
import signal
from pathlib import Path

import pytest
import torch

from fastdarts import steps
from fastdarts.search_imagenet import main
from tests.support.runs import SPLIT, TINY, write_tree


@pytest.mark.parametrize("when", ["before", "while it is counted"])
def test_out_of_memory_is_reported_despite_signal(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The same command would not get further, so it is not said that it continues."""
    plain = steps.step_bytes

    def counted(*args: object, **how: object) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(*args, **how)

    def gives_out(*_: object) -> None:
        if when == "before":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            monkeypatch.setattr(steps, "step_bytes", counted)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr("fastdarts.steps.CapturedSteps.__call__", gives_out)
    tree, sizes = write_tree(tmp_path / "images", images=16), ["--batch_size", "16", "--epochs", "1", "--begin", "0"]
    assert main(["--data", str(tree), *TINY, *SPLIT, *sizes, "--save", str(tmp_path / "run")]) == 1
    err = capsys.readouterr().err
    assert re.search("a step of 16 images needs about .*: the largest batch that fits is --batch_size 8", err), err
    assert err.count("\n") == 1
