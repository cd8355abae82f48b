"""Retrain small networks of several cells on real images, with several seeds each: `python -m bench.retrain --data FOLDER`.

The cells: what a small search by MAE-NAS finds on the same images (`found`), a published one, and random ones, which say how
much of an accuracy is the cell's. A finished run is recorded at once, in results/retrain.jsonl, and skipped by the next call;
an interrupted one continues in --runs. Networks are far smaller and trainings far shorter than the published ones: accuracies
compare with each other only. Ends with status 1 if a run fails, 2 on wrong input.
"""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from time import monotonic
from typing import Any

from bench.records import RESULTS, append, tagged
from fastdarts.settings import ConfigError, Settings, setting
from fastdarts.spaces import S0
from fastdarts.spaces.genotype import Genotype, read_architecture_json

PROG = "python -m bench.retrain"
NODES = 4
SEARCH = ["--init_channels", "8", "--layers", "5", "--batch_size", "32", "--epochs", "4", "--begin", "0"]


@dataclass(frozen=True, kw_only=True)
class RetrainBench(Settings):
    """Flags of `python -m bench.retrain`."""

    data: str = setting("", "images: a folder with train*.npz and test*.npz, or train/CLASS and val/CLASS", path=True)
    dataset: str = setting("cifar", "cifar: in memory; imagenet: files, at --image_size")
    image_size: int = setting(0, "pixels a side; 0 = the images'", at_least=0)
    images: int = setting(10_000, "training images, the first of each class; 0 = all", at_least=0)
    cells: str = setting("found,DARTS_V2,random", "comma-separated; random draws one for each seed")
    seeds: int = setting(3, "trainings of each cell", at_least=1)
    init_channels: int = setting(8, "channels", at_least=1)
    layers: int = setting(8, "cells", at_least=3)
    epochs: int = setting(15, "epochs", at_least=1)
    batch_size: int = setting(96, "images per step", at_least=1)
    minutes: float = setting(0.0, "start no run after these; 0 = no limit", at_least=0)
    runs: str = setting("build/retrain", "run folders", path=True)
    results: str | None = setting(None, "folder of the records; without it bench/results", path=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    s = RetrainBench.make(RetrainBench.given(argv, PROG, __doc__))
    began, path = monotonic(), Path(s.results or RESULTS) / "retrain.jsonl"
    try:
        if not Path(s.data).exists() or not s.data:
            raise ConfigError("--data: give the images")
        listed = _list(s)
        for seed in range(s.seeds):
            for cell in s.cells.split(","):
                key = {"cell": cell, "seed": seed} | _facts(s)
                if any(key.items() <= record.items() for record in _records(path)):
                    continue
                if s.minutes and monotonic() - began > 60 * s.minutes:
                    print(f"no time left; the next call goes on with {cell}, seed {seed}")
                    return 0
                append(path, tagged(key | _train(s, cell, seed, listed)))
    except ConfigError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"{PROG}: {' '.join(map(str, error.cmd[1:]))} ended with {error.returncode}", file=sys.stderr)
        return 1
    print(text([record for record in _records(path) if _facts(s).items() <= record.items()]))
    return 0


def _facts(s: RetrainBench) -> dict[str, Any]:
    names = ("dataset", "image_size", "images", "init_channels", "layers", "epochs", "batch_size")
    return {"data": Path(s.data).name} | {name: getattr(s, name) for name in names}


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _list(s: RetrainBench) -> list[str]:
    """Return the flags that choose the training images: a list of the first --images, evenly from all classes."""
    if not s.images:
        return []
    from fastdarts.data import ImageIndex, read_images  # decodes them

    index = read_images(s.data, 2) if s.dataset == "cifar" else ImageIndex.from_root(s.data)
    share, taken, chosen = s.images // len(index.classes), [0] * len(index.classes), []
    for name, label in zip(index.files, index.labels.tolist(), strict=True):
        if taken[label] < share:
            taken[label] += 1
            chosen.append(name)
    path = Path(s.runs) / f"{Path(s.data).name}-{s.images}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in chosen))
    return ["--train_list", str(path)]


def _train(s: RetrainBench, cell: str, seed: int, listed: list[str]) -> dict[str, Any]:
    """Run one training and return its facts and figures."""
    genotype, folder = _genotype(s, cell, seed, listed), Path(s.runs) / f"{Path(s.data).name}-{cell}-{seed}"
    network = "cifar" if s.dataset == "cifar" else "imagenet"
    flags = ["--dataset", s.dataset, "--network", network, "--data", s.data, *listed, "--genotype", str(genotype)]
    flags += ["--recipe", "darts-cifar10", "--no-auxiliary", "--seed", str(seed), "--save", str(folder)]
    for name in ("image_size", "init_channels", "layers", "epochs", "batch_size"):
        flags += [f"--{name}", str(getattr(s, name))]
    began = monotonic()
    subprocess.run([sys.executable, "-m", "fastdarts.retrain", *flags, "--eval_every", "5"], check=True)
    result, record = (json.loads((folder / name).read_text()) for name in ("result.json", "genotype.json"))
    last = result["accuracies"]["last"]
    figures = {"top1": last["top1"], "loss": last["loss"], "params": record["params"], "macs": record["macs"]}
    return {"genotype": str(genotype)} | figures | {"minutes": round((monotonic() - began) / 60, 1)}


def _genotype(s: RetrainBench, cell: str, seed: int, listed: list[str]) -> Any:
    if cell == "random":
        return random_genotype(seed)
    if cell != "found":
        return cell
    folder, command = Path(s.runs) / f"{Path(s.data).name}-search", f"search_{s.dataset}"
    size = ["--image_size", str(s.image_size)] if s.image_size else []
    flags = ["--data", s.data, *size, *SEARCH, "--train_fraction", "0.1", "--val_fraction", "0.1", "--save", str(folder)]
    recipe = ["--recipe", "mae-nas-cifar10"] if s.dataset == "cifar" else []
    subprocess.run([sys.executable, "-m", f"fastdarts.{command}", *recipe, *flags], check=True)
    return read_architecture_json((folder / "genotype.json").read_text())


def random_genotype(seed: int) -> Genotype:
    """Draw two inputs and an operation for each of them, uniformly, for each node of both cells; no `none`."""
    chance = random.Random(seed)
    operations = [name for name in S0.normal[0] if name != "none"]

    def genes() -> tuple[tuple[str, int], ...]:
        inputs = [chance.sample(range(2 + node), 2) for node in range(NODES)]
        return tuple((chance.choice(operations), state) for pair in inputs for state in pair)

    states = tuple(range(2, 2 + NODES))
    return Genotype(genes(), states, genes(), states)


def text(records: list[dict[str, Any]]) -> str:
    """Return a line for each cell: mean and deviation of the test accuracy over its seeds."""
    lines = []
    for cell in dict.fromkeys(record["cell"] for record in records):
        rows = [record for record in records if record["cell"] == cell]
        top1 = [100 * row["top1"] for row in rows]
        spread = f" ± {stdev(top1):.2f}" if len(top1) > 1 else ""
        parameters = mean(row["params"] for row in rows)
        lines.append(f"{cell:12} {mean(top1):6.2f}{spread} % of {len(top1)} trainings, {parameters:.0f} parameters")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
