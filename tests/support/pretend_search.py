"""A fake search command: writes a run folder at once, or waits, fails or dies as configured."""

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from fastdarts.settings import ConfigError, Settings, setting


@dataclass(frozen=True, kw_only=True)
class PretendSettings(Settings):
    """loss of a run = mask_ratio + seed, skips of the normal cell = patch_size + seed."""

    save: str | None = setting(None, "run folder", resumable=True)
    dry_run: bool = setting(False, "do nothing", resumable=True)
    device: str = setting("auto", "cpu, or cuda, which is not there")
    epochs: int = setting(2, "epochs", at_least=1)
    mask_ratio: float = setting(0.5, "ratio", above=0, below=1)
    patch_size: int = setting(4, "patch", at_least=1)
    seed: int = setting(0, "seed", at_least=0)
    loss: Literal["l1", "l2"] = setting("l1", "loss")
    flip: bool = setting(False, "flip")
    data: str | None = setting(None, "a path")
    workers: int = setting(0, "workers", resumable=True)
    trouble: Literal["no", "wait", "fail", "die", "lie"] = setting("no", "of the run with seed 1", resumable=True)


class Resolved(NamedTuple):
    settings: PretendSettings


def resolve(given):
    settings = PretendSettings.make(given)
    if settings.device == "cuda":
        raise ConfigError("--device cuda: there is none")
    if settings.patch_size > 8 and settings.mask_ratio > 0.5:
        raise ConfigError("--patch_size: too big for that --mask_ratio")
    return Resolved(settings)


def main(argv):
    s = resolve(PretendSettings.given(argv, "pretend", "")).settings
    folder = Path(s.save)
    folder.mkdir(exist_ok=True)
    print("started, pid", os.getpid(), flush=True)
    (folder / "settings.json").write_text(json.dumps({"settings": asdict(s)}))
    trouble = s.trouble if s.seed == 1 and not (folder.parent / "healed").exists() else "no"
    if trouble == "fail":
        print("pretend: error: no luck\n", file=sys.stderr)
        return 3
    if trouble == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "wait" and not wait(folder):
        return 75
    if trouble == "lie":
        return 0
    cell = {"skips": s.patch_size + s.seed, "entropy": 1.5, "skip_minus_conv": None}
    epoch = {"kind": "epoch", "epoch": s.epochs, "step": 9, "train_loss": 0.25, "alpha_loss": None, "genotype": "Genotype(old)"}
    epoch |= {"valid": {"loss": s.mask_ratio + s.seed, "baseline": 2.0}, "cells": {"normal": cell, "reduce": cell}}
    epoch["valid"] |= {"top1": float("nan")} if s.seed else {"top1": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps({"kind": "step", "step": 1}) + "\n" + json.dumps(epoch) + '\n{"kind"')
    (folder / "timing.jsonl").write_text('{"seconds": 60}\n{"seconds": 120}\n')
    looked_up = {"cifar10_test": 90 + s.seed, "rank": 7, "table": "a.csv"}
    (folder / "genotype.json").write_text(json.dumps({"text": "Genotype(new)", "benchmark": looked_up}))
    (folder / "status").write_text("finished  epoch 2/2\n")
    return 0


def wait(folder):
    """True when there is a file `healed`, False after a signal."""
    came = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda number, _: came.append(number))
    (folder / "status").write_text("running\n")
    while not came and not (folder.parent / "healed").exists():
        time.sleep(0.02)
    for number in came:
        print("stopped by", signal.Signals(number).name, flush=True)
    return not came


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
