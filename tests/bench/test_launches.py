"""What a supernet's mixed cells launch on a GPU: counts, grids, bytes, the time of the bytes; the command."""

import json
from collections import Counter

import pytest

from bench import launches
from bench.network import NetworkWorkload
from bench.workload import SUPERNETS, Workload


@pytest.mark.parametrize("supernet", SUPERNETS)
def test_step_launch_counts(supernet: str) -> None:
    """Eight cells of 24 launches forward (25 where it reduces), twice; backward 29 for alpha, fewer sums for weights."""
    preset = SUPERNETS[supernet]
    passes = list(launches.step(launches.calls(Workload(supernet, 64, preset.image_size, preset.partial_channels))))
    counts = Counter(p.part for p in passes)
    assert counts["forward, alpha"] == counts["forward, weights"] == 6 * 24 + 2 * 25
    assert counts["backward, alpha"] == 8 * 29
    assert max(Counter((p.cell, p.part) for p in passes).values()) <= 35  # of a cell and direction
    assert all(p.launch.programs != 0 and p.launch.numbers >= 0 for p in passes)


def test_bytes_and_time_match_hand_count() -> None:
    """One CIFAR cell's first launch reads an input for each unit and writes a y; a quarter of the channels a quarter of it."""
    m, C = 64 * 32 * 32, 16
    whole, quarter = (
        next(p.launch for p in launches.step(launches.calls(Workload("cifar", 64, 32, k))) if p.launch.kernel == "separable")
        for k in (1, 4)
    )
    units = 2 * 4 * 4  # two inputs, four edges from each, four convolutions that read it
    assert whole.bytes(2) == 2 * 2 * units * m * C
    assert quarter.bytes(2) * 4 == whole.bytes(2)
    everything = list(launches.step(launches.calls(Workload("cifar", 64, 32, 1))))
    *rows, total = launches.table(everything, 2, 4300.0)
    assert total["kernel"] == "all" and total["launches"] == len(everything) == sum(row["launches"] for row in rows)
    assert total["gb"] == pytest.approx(sum(p.launch.bytes(2) for p in everything) / 1e9, abs=1e-4)
    assert total["us"] == pytest.approx(1e6 * total["gb"] / 4300, abs=0.1)


def test_half_precision_halves_bytes() -> None:
    passes = list(launches.step(launches.calls(Workload("pc-imagenet", 8, 224, 2))))
    single, half = (launches.table(passes, size, 4300.0)[-1]["gb"] for size in (4, 2))
    assert single == pytest.approx(2 * half, rel=1e-3)


def test_discrete_network_launches_of_cells_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 20 cells 13 have 36 or 72 channels; a step of training runs each forward and backward once."""
    assert launches.main(["--network", "darts-cifar", "--batch", "2"]) == 0
    assert "cells of one training step, 13 of 20" in capsys.readouterr().out
    cells = launches.network_calls(NetworkWorkload("darts-cifar", 2, 32, layers=3, init_channels=8))
    assert [call.shape for call in cells] == [(2, 8, 32, 32), (2, 16, 32, 32), (2, 32, 16, 16)]
    passes = list(launches.step(cells, {"weights": launches.WEIGHTS}))
    assert {p.part for p in passes} == {"forward, weights", "backward, weights"} and {p.cell for p in passes} == {0, 1, 2}


def test_command_prints_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert launches.main(["--supernet", "pc-cifar", "--batch", "2"]) == 0
    assert "pc-cifar, batch 2, k = 4, bfloat16" in capsys.readouterr().out
    assert launches.main(["--batch", "2", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].keys() == {"cell", "part", "kernel", "programs", "bytes", "operations"}
    assert launches.main(["--partial_channels", "3"]) == 2
    assert "--partial_channels 3" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        launches.main(["--batch", "0"])
