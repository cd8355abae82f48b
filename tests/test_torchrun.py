"""The command under torchrun, as a user meets it: a run folder, other numbers of ranks, wrong starts, a killed rank."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from fastdarts.data import DataError, ImageIndex
from fastdarts.inputs.batches import steps_of_an_epoch
from fastdarts.inputs.images import ImageFiles
from fastdarts.search_imagenet import main, resolve
from tests.support.runs import Run, free_port
from tests.test_search_imagenet import FILES, arguments, write_tree

pytestmark = pytest.mark.usefixtures("no_report")
PATIENCE = 200.0  # seconds


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("images"))


def torchrun(ranks: int, *flags: str, restarts: int = 0) -> list[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(free_port())]
    return [*run, "--max-restarts", str(restarts), "-m", "fastdarts.search_imagenet", *flags]


def epochs(folder: Path) -> list[dict]:
    return [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if r["kind"] == "epoch"]


def test_two_ranks_write_one_run_folder(tree: Path, tmp_path: Path) -> None:
    """With a cache that both share, and BatchNorm over both: the losses of one process."""
    folder = tmp_path / "run"
    flags = arguments(
        tree, "--epochs", "1", "--begin", "0", "--sync_bn", "--cache_folder", str(tmp_path / "kept"), "--check_ranks_every", "1"
    )
    done = subprocess.run(torchrun(2, *flags, "--save", str(folder)), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert set(FILES.split()) <= {p.name for p in folder.iterdir()}
    saved = json.loads((folder / "settings.json").read_text())
    assert saved["ranks"] == 2 and saved["settings"]["batch_size"] == 4
    log = (folder / "log.txt").read_text()
    assert "ranks 2 by gloo" in log and "each takes 2 of every 4 images; --learning_rate 0.5 applies to the whole batch" in log
    assert "BatchNorm over all 4;" in log and done.stdout.count("epoch 1/1 done") == 1
    assert len(list((tmp_path / "kept").glob("*.pixels"))) == 1
    assert main(arguments(tree, "--epochs", "1", "--begin", "0", "--save", str(tmp_path / "one"))) == 0
    for name in ("train.txt", "val.txt"):
        assert (folder / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    (first,), (alone,) = epochs(folder), epochs(tmp_path / "one")
    assert first["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-4)
    assert first["valid"]["baseline"] == pytest.approx(alone["valid"]["baseline"], rel=1e-5)


def test_killed_rank_ends_all_and_other_rank_count_continues(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """SIGKILL of one of two ranks after the first checkpoint; one process continues, and says so."""
    folder, flags = tmp_path / "run", arguments(tree, "--epochs", "15", "--threads", "1")
    assert killed_on_the_way(folder, torchrun(2, *flags, "--save", str(folder))) == 1
    done = len(epochs(folder))
    assert 0 < done < 15
    assert main([*flags, "--save", str(folder)]) == 0
    assert "the run started with 2 ranks and continues with 1: same images" in capsys.readouterr().out
    assert [r["epoch"] for r in epochs(folder)] == list(range(1, 16))


def test_indivisible_batch_is_rejected(tree: Path) -> None:
    index = ImageIndex.from_root(tree)
    settings = resolve({"data": str(tree), "batch_size": 3}).settings
    with pytest.raises(DataError, match="batch_size 3 cannot be divided equally among 2 ranks: choose a multiple"):
        steps_of_an_epoch(settings, ImageFiles(index, torch.arange(8), torch.arange(8, 16)), 2)


@pytest.mark.campaign
def test_torchrun_restart_is_bitwise_identical(tree: Path, tmp_path: Path) -> None:
    """SIGKILL of a rank; torchrun starts all again, which continue the run folder: the bytes of a run left in peace."""
    flags = arguments(tree, "--epochs", "60", "--threads", "1")
    killed, calm = tmp_path / "killed", tmp_path / "calm"
    assert killed_on_the_way(killed, torchrun(2, *flags, "--save", str(killed), restarts=1)) == 0
    assert "continuing" in (killed / "log.txt").read_text()
    subprocess.run(torchrun(2, *flags, "--save", str(calm)), stdout=subprocess.DEVNULL, check=True, timeout=PATIENCE)
    for name in ("metrics.jsonl", "genotype.json"):
        assert (killed / name).read_bytes() == (calm / name).read_bytes()


def killed_on_the_way(folder: Path, command: list[str]) -> int:
    """SIGKILL of the last rank once there is a checkpoint; the exit status of torchrun."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    return process.wait(PATIENCE)


def errors_to(path: Path) -> None:
    """A hook: what the process prints to stderr goes to a file of its own."""
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)


def on_two_nodes(folder: Path, *flags: list[str]) -> tuple[list[int], list[str]]:
    """Ranks by hand, as torchrun would start them on a node each: their exit statuses, and what they print to stderr."""
    common = {"WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    files, ranks = [folder / f"stderr of {rank}" for rank in range(2)], []
    for rank, given in enumerate(flags):
        environment = {name: str(value) for name, value in (common | {"RANK": rank}).items()}
        ranks.append(Run(given, folder / f"stdout of {rank}", partial(errors_to, files[rank]), environment))
    return [rank.wait(PATIENCE) for rank in ranks], [file.read_text() for file in files]


@pytest.mark.parametrize(
    ("mine", "others", "message", "by"),
    [
        (
            "--momentum 0.9",
            "--momentum 0.8",
            "rank 1 was started differently from rank 0: --momentum is 0.8 there, 0.9 on rank 0",
            0,
        ),
        ("", "--data {other}", "differ from those on rank 0: give all nodes the same", 1),
        (
            "--space {other}0.json",
            "--space {other}1.json",
            "rank 1 was started differently from rank 0: --space is {'name': 'own'",
            0,
        ),
    ],
    ids=["settings", "images", "candidates"],
)
def test_inconsistent_ranks_exit_with_one_line(
    mine: str, others: str, message: str, by: int, tree: Path, tmp_path: Path
) -> None:
    write_tree(tmp_path / "other", images=7)
    for number, names in enumerate((["skip_connect"], ["sep_conv_3x3"])):
        (tmp_path / f"other{number}.json").write_text(json.dumps({"name": "own", "candidates": names}))
    flags = [
        arguments(tree, "--save", str(tmp_path / "run"), *more.format(other=tmp_path / "other").split())
        for more in (mine, others)
    ]
    statuses, errors = on_two_nodes(tmp_path, *flags)
    assert statuses == [2, 2], errors
    assert message in errors[by] and errors[by].count("\n") == 1
    assert errors[1 - by] in ("", f"[rank 1] {errors[0]}")
    assert errors[1].startswith("[rank 1] ") or not errors[1]
    assert not (tmp_path / "run").exists()


def test_ranks_keep_their_device_and_cache_settings(tree: Path, tmp_path: Path) -> None:
    """Of rank 0's plan the others take the batch size; where they compute and keep images they know themselves."""
    flags = [*arguments(tree, "--epochs", "1", "--save", str(tmp_path / "run")), "--batch_size", "auto"]
    each = [[*flags, "--cache_folder", str(tmp_path / f"of {rank}")] for rank in range(2)]
    statuses, errors = on_two_nodes(tmp_path, *each)
    assert statuses == [0, 0], errors
    for rank in range(2):
        assert len(list((tmp_path / f"of {rank}").glob("*.pixels"))) == 1
