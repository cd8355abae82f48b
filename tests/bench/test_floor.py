"""The floor report: every stage timed and counted, wrong input refused."""

import pytest

from bench import floor
from bench.network import NetworkWorkload
from bench.workload import CELL, Workload
from tests.support.backends import needs_native


@needs_native
def test_stages_have_times_and_costly_ones_counts():
    record = floor.measure(Workload(CELL, 2, 8, 1), rounds=1)
    assert all(stage["ms"] > 0 for stage in record["stages"].values())
    convolutions = ("first_halves", "second_halves", "second_gradients", "first_gradients")
    assert all(record["stages"][name]["gflop"] > 0 for name in convolutions)
    assert sum(stage["ms"] for stage in record["stages"].values()) <= 1.05 * record["step_ms"]
    assert record["fma_gflop_per_s"] > 1
    assert "first_gradients" in floor.text(record)


@needs_native
def test_cell_operations_match_hand_count():
    """C = 16: 102 C + 6 C^2 multiply-adds a pixel and edge in the forward's convolutions (14 edges)."""
    record = floor.measure(Workload(CELL, 2, 8, 1), rounds=1)
    forward = record["stages"]["first_halves"]["gflop"] + record["stages"]["second_halves"]["gflop"]
    assert forward == pytest.approx(2 * 14 * 2 * 8 * 8 * (102 * 16 + 6 * 16**2) / 1e9, abs=2e-4)


@needs_native
def test_network_operations_match_hand_count():
    """Pixels, C and input channels of three cells' preprocess layers; the backward has twice the forward's products."""
    record = floor.measure(NetworkWorkload("darts-cifar", 2, 16, layers=3, init_channels=4), rounds=1)
    cells = [(256, 4, 12 + 12), (256, 8, 12 + 16), (64, 16, 16 + 32)]
    forward = 2 * 2 * sum(pixels * C * inputs for pixels, C, inputs in cells)
    assert record["network"] == "darts-cifar" and "relu_conv_bn_backward" in floor.text(record)
    assert record["stages"]["relu_conv_bn"]["gflop"] == pytest.approx(forward / 1e9, abs=1e-4)
    assert record["stages"]["relu_conv_bn_backward"]["gflop"] == pytest.approx(2 * forward / 1e9, abs=1e-4)


@needs_native
def test_invalid_input_exits_with_one_line(capsys):
    assert floor.main(["--supernet", "cifar", "--batch", "1", "--image_size", "30"]) == 2
    assert "--image_size 30" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--layers", "3"], ["--network", "darts-cifar", "--partial_channels", "2"]])
def test_flags_of_other_workload_are_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit):
        floor.main(flags)
