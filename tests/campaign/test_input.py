"""Short searches of real images by each route of input: their losses lie where those of three seeds of one lie."""

import json
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch

from bench.records import RESULTS, append, tagged
from fastdarts.data import dali
from fastdarts.search_imagenet import main

pytestmark = pytest.mark.campaign
ROUTES = {
    "torchvision": ["--loader", "torchvision", "--cache", "off"],
    "dali": ["--loader", "dali", "--cache", "off"],
    "cache": ["--cache", "ram"],
}
RECIPE = "--image_size 64 --batch_size 32 --learning_rate 0.1 --threads 1"
EPOCHS = {"tinyimagenet48": 10, "cifar10": 10, "imagenet_sample": 28}  # about 150 steps each
CLASSES, IMAGES = 10, 100  # taken of each set


def written_out(shared: Path, root: Path, name: str) -> Path:
    """ROOT of a set in the ImageNet layout: `imagenet_sample` unchanged, the others with their original JPEG bytes."""
    if name == "imagenet_sample":
        return shared / name
    saved = np.load(shared / name / "train_jpeg.npz")
    data, offsets, labels = saved["data"].tobytes(), saved["offsets"].tolist(), saved["labels"].tolist()
    counts = [0] * CLASSES
    for number, label in enumerate(labels):
        if label < CLASSES and counts[label] < IMAGES:
            counts[label] += 1
            path = root / "train" / f"{label:02d}" / f"{number:05d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data[offsets[number] : offsets[number + 1]])
    return root


def final_losses(root: Path, run: Path, epochs: int, flags: list[str], seed: int) -> dict[str, float]:
    fractions = ["--train_fraction", "0.5", "--val_fraction", "0.25", "--epochs", str(epochs), "--eval_every", str(epochs)]
    argv = ["--data", str(root), "--save", str(run), "--seed", str(seed), *RECIPE.split(), *fractions, *flags]
    assert main(argv) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "epoch"][-1]
    return {"train": last["train_loss"], "alpha": last["alpha_loss"], "valid": last["valid"]["loss"]}


@pytest.mark.parametrize("name", ["tinyimagenet48", "cifar10", "imagenet_sample"])
def test_routes_give_equivalent_searches(name: str, shared_data: Path, tmp_path: Path) -> None:
    """Within three deviations of the mean of three seeds of the torchvision route, 2 % at the least."""
    root = written_out(shared_data, tmp_path / "data", name)
    seeds = [final_losses(root, tmp_path / f"seed{seed}", EPOCHS[name], ROUTES["torchvision"], seed) for seed in range(3)]
    routes = {"torchvision": seeds[0]}
    for route in list(ROUTES)[1:]:
        if route != "dali" or dali.unavailable(torch.device("cpu")) is None:
            routes[route] = final_losses(root, tmp_path / route, EPOCHS[name], ROUTES[route], 0)
    figures = {"campaign": f"input {name}", "seeds": seeds, "routes": routes}
    append(RESULTS / "campaign.jsonl", tagged(figures))
    for what in ("train", "alpha", "valid"):
        values = [losses[what] for losses in seeds]
        room = max(3 * stdev(values), 0.02 * mean(values))
        for route, losses in routes.items():
            assert abs(losses[what] - mean(values)) < room, (route, what, losses[what], values)
