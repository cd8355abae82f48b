"""bench.scaling: a record of two ranks, its arithmetic, wrong input."""

import json
from pathlib import Path

import pytest

from bench.records import summary
from bench.scaling import main

SMALL = ["--supernet", "pc-cifar", "--batch", "2", "--image_size", "8", "--rounds", "2", "--warm_up", "0"]


def test_two_ranks_give_a_record(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*SMALL, "--record", "--results", str(tmp_path)]) == 0
    assert "2 ranks of one thread" in capsys.readouterr().out
    (line,) = (tmp_path / "scaling.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["ranks"], record["threads"], record["batch"], record["rounds"]) == (2, 1, 2, 2)
    alone, together = record["alone_ms"]["median"], record["together_ms"]["median"]
    assert record["efficiency"] == pytest.approx(alone / (2 * together), abs=1e-3)
    assert 0 < record["average_ms"]["median"] < together
    assert "efficiency" in summary(record) and record["commit"] and record["versions"]["torch"]


def test_invalid_input_exits_with_one_line(capsys: pytest.CaptureFixture) -> None:
    assert main(["--batch", "3"]) == 2
    assert "--batch 3 cannot be divided equally among 2 ranks" in capsys.readouterr().err
    assert main([*SMALL, "--image_size", "9"]) == 2
    assert "pc-cifar needs a multiple of" in capsys.readouterr().err
