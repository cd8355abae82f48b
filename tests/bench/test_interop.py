"""bench.interop: a record of all four networks, wrong input."""

import json
from pathlib import Path

import pytest

from bench.interop import main
from bench.records import summary

SMALL = ["--batch", "2", "--image_size", "8", "--init_channels", "4", "--layers", "3", "--rounds", "1"]


def test_record_times_every_network(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*SMALL, "--record", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name}" in out for name in ("original", "op", "cell", "library")) and "converting takes" in out
    (line,) = (tmp_path / "interop.jsonl").read_text().splitlines()
    record = json.loads(line)
    for name in ("op", "cell", "library"):
        times = record["original_ms"]["median"] / record[f"{name}_ms"]["median"]
        assert record[f"{name}_ratio"] == pytest.approx(times, abs=0.01)
    assert record["convert_ms"] > 0 and record["commit"] and "cell" in summary(record)


def test_invalid_input_exits_with_one_line(capsys: pytest.CaptureFixture) -> None:
    assert main(["--image_size", "12"]) == 2
    assert "--image_size 12: two reductions need a multiple of 8" in capsys.readouterr().err
