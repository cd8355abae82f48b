"""bench.step: every supernet is timed and reported, both sides compute the same, invalid input is rejected."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from bench.network import FOLDED, NETWORKS, NetworkWorkload
from bench.step import main
from bench.workload import AGAINST, OURS, SUPERNETS, Workload, WorkloadError, arrange
from fastdarts.spaces import S0, Space

SMALL = Space.uniform("one node", S0.normal[0], nodes=1)
SIZES = {"cifar": 32, "pc-cifar": 32, "pc-imagenet": 64, "mae-imagenet": 64, "cell": 8}
KEYS = {"supernet", "batch", "device", "against", "ratio", "ours_ms", "theirs_ms", "ours_peak_mb", "theirs_peak_mb"}
KEYS |= {"images_per_s", "threads", "versions", "commit", "machine", "date"}


def options(supernet: str, *more: str) -> list[str]:
    size = str(SIZES[supernet])
    few = ["--rounds", "1", "--warm_up", "1", "--device", "cpu"]
    return ["--supernet", supernet, "--batch", "2", "--image_size", size, *few, *more]


@pytest.mark.parametrize("supernet", SIZES)
def test_each_supernet_gives_a_record(supernet, capsys):
    assert main(options(supernet, "--json", "--no-memory")) == 0
    record = json.loads(capsys.readouterr().out)
    assert record.keys() >= KEYS
    assert (record["supernet"], record["batch"], record["device"], record["against"]) == (supernet, 2, "cpu", "eager")
    for side in ("ours_ms", "theirs_ms"):
        assert 0 < record[side]["q20"] <= record[side]["median"] <= record[side]["q80"]
    assert record["ratio"] == pytest.approx(record["theirs_ms"]["median"] / record["ours_ms"]["median"], abs=1e-3)
    images = 2 if supernet == "cell" else 4  # a bilevel step passes a training and a validation batch
    assert record["images_per_s"] == pytest.approx(1e3 * images / record["ours_ms"]["median"], abs=0.1)
    assert record["ours_peak_mb"] is None
    uncaptured = "uncaptured: CUDA graphs need a GPU, this runs on cpu"
    assert record["ours_step"] == (None if supernet == "cell" else uncaptured)


def test_command_measures_memory_and_writes_record(tmp_path):
    command = [sys.executable, "-m", "bench.step", *options("cell", "--record", "--results", str(tmp_path / "new"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cell, batch 2, 8 px, k = 1, float32, cpu" in done.stdout
    (line,) = (tmp_path / "new" / "step.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert f"ratio {record['ratio']}" in done.stdout
    # two states, the nodes' output and its gradient are 2 + 4 + 4 maps of (2, 16, 8, 8) floats: 0.08 MB at the least
    assert all(0.08 < record[side] < 500 for side in ("ours_peak_mb", "theirs_peak_mb"))


@pytest.mark.parametrize("supernet", SIZES)
@pytest.mark.parametrize("side", ["eager", "channels-last"])
def test_both_sides_compute_same_numbers(supernet, side):
    workload = Workload(supernet, 2, SIZES[supernet], 2, "float64", space=SMALL)
    ours, theirs = workload.build(OURS), workload.build(side)
    for _ in range(3):
        torch.testing.assert_close(ours(), theirs(), rtol=1e-9, atol=0)


def small(network: str, evaluate: bool) -> NetworkWorkload:
    return NetworkWorkload(network, 2, 32, evaluate, 1 if network == "nasbench201" else 3, 4, "float64")


@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_both_sides_of_a_network_compute_same_numbers(network: str, evaluate: bool) -> None:
    workload = small(network, evaluate)
    ours, *theirs = map(workload.build, [OURS, "channels-last", *([FOLDED] if evaluate else [])])
    for _ in range(3):
        torch.manual_seed(0)  # drop path draws from it
        want = ours()
        for other in theirs:
            torch.manual_seed(0)
            torch.testing.assert_close(other(), want, rtol=1e-9, atol=0)


def test_network_gives_a_record(capsys: pytest.CaptureFixture) -> None:
    few = ["--rounds", "1", "--warm_up", "1", "--device", "cpu", "--no-memory", "--batch", "2", "--layers", "3"]
    argv = ["--network", "darts-cifar", *few, "--init_channels", "4"]
    assert main([*argv, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["network"], record["layers"], record["work"]) == ("darts-cifar", 3, "training step")
    assert record["images_per_s"] == pytest.approx(2e3 / record["ours_ms"]["median"], abs=0.1)
    assert main([*argv, "--evaluate", "--against", "folded"]) == 0
    assert "evaluation of darts-cifar, C = 4, 3 cells, batch 2, 32 px, float32, cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--evaluate"], "are for --network"),
        (["--network", "darts-cifar", "--against", "folded"], "add --evaluate"),
        (["--network", "darts-imagenet", "--image_size", "100"], "multiples of 32"),
    ],
)
def test_flags_that_do_not_fit_a_network_are_one_line(argv: list[str], says: str, capsys: pytest.CaptureFixture) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_step_updates_weights_and_alpha():
    step = Workload("cifar", 2, 32, 1, "float64", space=SMALL).build("eager")
    losses = {step().item() for _ in range(3)}
    assert len(losses) == 3


@pytest.mark.parametrize("side", ["eager", "channels-last"])
def test_sides_keep_their_memory_format(side):
    module = nn.Conv2d(3, 4, 3)
    arrange(module, Workload("cifar", 1, 8, 1), AGAINST[side])
    layout = AGAINST[side].layout
    for given in (torch.contiguous_format, torch.channels_last):
        out = module(torch.randn(2, 3, 8, 8).to(memory_format=given))
        assert out.is_contiguous(memory_format=layout)
        assert module.weight.is_contiguous(memory_format=layout)


def test_bfloat16_means_autocast_with_float32_weights(capsys):
    assert main(options("mae-imagenet", "--json", "--no-memory", "--dtype", "bfloat16", "--rounds", "1")) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--batch", "0"], "--batch: 0 is out of range"),
        (["--image_size", "30"], "--image_size 30: cifar needs a multiple of 4"),
        (["--supernet", "pc-imagenet", "--image_size", "48"], "--image_size 48: pc-imagenet needs a multiple of 32"),
        (["--partial_channels", "3"], "--partial_channels 3: C/k must be even"),
        (["--supernet", "cell", "--partial_channels", "16"], "--partial_channels 16: C/k must be even"),
        (["--against", "graph", "--device", "cpu"], "--against graph: CUDA graphs need a GPU"),
        (["--rounds", "0"], "--rounds: 0 is out of range"),
    ],
)
def test_invalid_input_exits_with_status_2(wrong, message, capsys):
    assert main(wrong) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"python -m bench.step: error: {message}")


@pytest.mark.parametrize(
    "wrong", [["--supernet", "resnet"], ["--backend", "magic"], ["--batch", "many"], ["--device", "tpu"], ["--speed"]]
)
def test_invalid_flags_exit_with_status_2(wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(wrong)
    out, err = capsys.readouterr()
    assert (stopped.value.code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_exits_with_one_line(capsys):
    assert main(["--device", "cuda"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_captured_side_needs_gpu():
    for side in ("graph", "graph-channels-last"):
        with pytest.raises(WorkloadError, match="CUDA graphs need a GPU"):
            Workload("cifar", 2, 32, 1).build(side)


def test_presets_are_published_networks():
    facts = {name: (p.stem, p.image_size, p.partial_channels, p.edge_weights, p.classes) for name, p in SUPERNETS.items()}
    assert facts == {
        "cifar": ("cifar", 32, 1, False, 10),
        "pc-cifar": ("cifar", 32, 4, True, 10),
        "pc-imagenet": ("imagenet", 224, 2, True, 1000),
        "mae-imagenet": ("imagenet", 224, 2, True, None),
    }
