"""A tiny retraining that is killed at random moments twenty times: it ends with the bytes of one that was left in peace."""

import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.records import RESULTS, append, tagged
from fastdarts.engine.checkpoints import load_checkpoint
from tests.support.runs import Run

pytestmark = pytest.mark.campaign
KILLS = 20
SAME = ("metrics.jsonl", "result.json", "genotype.json", "train.txt", "val.txt")


class Retraining(Run):
    """`python -m fastdarts.retrain ARGV` as a process."""

    command = "retrain"


def test_killed_retraining_continues_bitwise_identically(tmp_path: Path) -> None:
    """With auxiliary head, drop path, cutout, colour jitter, moving average and held-back images."""
    chance, began = random.Random(0), time.monotonic()
    labels = np.arange(60) % 3
    noise = np.random.default_rng(0).integers(0, 100, (60, 16, 16, 3)) + 70 * labels[:, None, None, None]
    for name, part in (("train", slice(0, 48)), ("test", slice(48, 60))):
        np.savez(tmp_path / f"{name}.npz", images=noise[part].astype(np.uint8), labels=labels[part])
    argv = f"--genotype DARTS_V2 --data {tmp_path} --layers 3 --init_channels 2 --batch_size 4 --epochs 30 --threads 1".split()
    argv += [
        "--auxiliary_pool",
        "adaptive",
        "--cutout",
        "4",
        "--jitter",
        "0.2",
        "--val_fraction",
        "0.25",
        "--ema_decay",
        "0.9",
        "--log_every",
        "2",
    ]
    argv += ["--checkpoint_minutes", "1e-9", "--save"]
    peace, disturbed = tmp_path / "peace", tmp_path / "disturbed"
    undisturbed = Retraining([*argv, str(peace)], tmp_path / "peace.out")
    assert undisturbed.wait() == 0, undisturbed.printed()
    kills = finished = 0
    while kills < KILLS:
        run = Retraining([*argv, str(disturbed)], tmp_path / f"{kills}.out")
        deadline = time.monotonic() + 60
        while run.alive and not (disturbed / "checkpoint.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.uniform(1.5, 3.0))  # it takes a second to begin
        finished += not run.alive
        run.signal(signal.SIGKILL)
        assert run.wait() in (-signal.SIGKILL, 0), run.printed()
        kills += 1
    last = Retraining([*argv, str(disturbed)], tmp_path / "last.out")
    assert last.wait() == 0, last.printed()
    for name in SAME:
        assert (disturbed / name).read_bytes() == (peace / name).read_bytes(), name
    ends = [load_checkpoint(folder / "checkpoint.pt") for folder in (peace, disturbed)]
    for part in ("network", "ema"):
        weights = [end[part]["network"] if part == "ema" else end[part] for end in ends]
        assert all(torch.equal(t, weights[1][name]) for name, t in weights[0].items())
    assert finished < KILLS // 2  # or most kills came after the end
    record = {"campaign": "retraining killed", "kills": kills, "after_the_end": finished}
    append(RESULTS / "campaign.jsonl", tagged(record | {"seconds": round(time.monotonic() - began)}))
