"""A synthetic run folder, and random valid genotypes."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastdarts.report import picture_grid
from fastdarts.spaces.genotype import Genotype

POOLS = ["max_pool_3x3", "avg_pool_3x3"]
CONVS = ["sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]
OPS = ["none", *POOLS, "skip_connect", *CONVS]
EDGES = [(state, node) for node in range(4) for state in range(2 + node)]


def make_genotype(seed: int, nodes: int = 4) -> Genotype:
    """Any valid genotype: repeated inputs of a node and any non-empty concatenation included."""
    rng = random.Random(seed)

    def genes() -> list[tuple[str, int]]:
        return [(rng.choice(OPS[1:]), rng.randrange(2 + node)) for node in range(nodes) for _ in range(2)]

    def concat() -> list[int]:
        return sorted(rng.sample(range(2 + nodes), rng.randint(1, 2 + nodes)))

    return Genotype.from_fields({"normal": genes(), "normal_concat": concat(), "reduce": genes(), "reduce_concat": concat()})


def write_run(folder: Path, epochs: int = 5, planned: int = 5, **settings: object) -> Path:
    """A run folder as a search leaves it, made of random figures."""
    folder.mkdir(parents=True)
    rng, steps = random.Random(0), 20
    genotype = make_genotype(3)
    candidates = [OPS if edge != 1 else OPS[:4] for edge in range(len(EDGES))]  # edge 1 has fewer: padded rows
    with (folder / "metrics.jsonl").open("w") as metrics, (folder / "timing.jsonl").open("w") as timing:
        for epoch in range(1, epochs + 1):
            for step in range((epoch - 1) * steps + 1, epoch * steps + 1):
                loss = 0.2 + math.exp(-step / 40) + 0.05 * rng.random()
                alpha_loss = None if epoch == 1 else loss + 0.02
                _line(metrics, kind="step", step=step, epoch=epoch, train_loss=loss, alpha_loss=alpha_loss)
            ops = {kind: [_row(rng, len(names), epoch) for names in candidates] for kind in ("normal", "reduce")}
            cells = {
                kind: {
                    "skips": min(8, epoch + extra),
                    "entropy": 2.0 - 0.1 * epoch,
                    "skip_minus_conv": 0.02 * epoch - 0.05,
                }
                for extra, kind in enumerate(("normal", "reduce"))
            }
            _line(
                metrics,
                kind="epoch",
                epoch=epoch,
                step=epoch * steps,
                lr=0.1,
                train_loss=0.25 + math.exp(-epoch / 2),
                alpha_loss=None if epoch == 1 else 0.27 + math.exp(-epoch / 2),
                valid=None if epoch == 2 else {"loss": 0.3 + math.exp(-epoch / 2), "baseline": 0.9},
                genotype=str(genotype),
                cells=cells,
                ops=ops,
                edges={kind: [0.5] * len(EDGES) for kind in ops},
            )
            _line(timing, epoch=epoch, seconds=31.5, images_per_s=412.0)
    record = {
        "settings": {"objective": "mae", "epochs": planned, "batch_size": 64, "mask_ratio": 0.5, "unrolled": False} | settings,
        "commit": "0123abc",
        "versions": {"torch": "2.15", "python": "3.11"},
        "machine": "2 cores",
        "command": "search_imagenet",
        "data": {"root": "/data/sample", "is_sample": True, "train_images": 12811, "val_images": 3203, "excluded": 2},
        "candidates": {"normal": candidates, "reduce": candidates},
    }
    (folder / "settings.json").write_text(json.dumps(record))
    (folder / "genotype.json").write_text(genotype.to_json(epoch=epochs))
    (folder / "excluded.txt").write_text("train/a/broken.JPEG: truncated\ntrain/b/<empty>.JPEG: empty\n")
    pictures = torch.rand(3, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    picture_grid(*pictures, folder / "reconstruction.png")
    return folder


def _line(file, **record: object) -> None:
    file.write(json.dumps(record) + "\n")


def _row(rng: random.Random, count: int, epoch: int) -> list[float]:
    powers = [math.exp(0.4 * epoch * rng.random()) for _ in range(count)]
    return [power / sum(powers) for power in powers] + [0.0] * (len(OPS) - count)


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Path]:
    """write_run into a fresh folder of the test."""
    return lambda **given: write_run(tmp_path / "run", **given)


@pytest.fixture
def random_genotype() -> Callable[..., Genotype]:
    return make_genotype
