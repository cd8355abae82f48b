"""A small network, its images and its trainer, for tests of what a retraining computes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.data import ArrayEvalLoader, ArrayLoader, Pixels
from fastdarts.networks import DiscreteNetwork, NetworkShape, build
from fastdarts.ops.philox import Stream
from fastdarts.optim.optimizers import weight_optimizer
from fastdarts.optim.schedules import Schedule
from fastdarts.spaces.published import published
from fastdarts.training.augment import Prepare
from fastdarts.training.moving_average import MovingAverage
from fastdarts.training.trainer import Passes, Trainer
from fastdarts.training.update import WeightUpdate

CLASSES, SIDE, IMAGES = 3, 8, 40


def network(auxiliary: bool = False, dtype: torch.dtype = torch.float32, channels: int = 2) -> DiscreteNetwork:
    """Three cells of DARTS_V2."""
    torch.manual_seed(0)
    genotype = published("DARTS_V2")
    assert genotype is not None
    shape = NetworkShape("cifar", channels, 3, CLASSES, auxiliary, auxiliary_pool="adaptive", image_size=SIDE)
    return build(genotype, shape).to(dtype).to(memory_format=torch.channels_last)


def pixels() -> Pixels:
    """Noise whose brightness tells its label."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(IMAGES) % CLASSES
    images = torch.randint(90, (IMAGES, SIDE, SIDE, 3), generator=g) + 80 * labels.view(-1, 1, 1, 1)
    return Pixels(images.to(torch.uint8), labels)


def update(net: DiscreteNetwork, ema: float = 0.0, **settings: Any) -> WeightUpdate:
    weights: list[Tensor] = list(net.parameters())
    optimizer = weight_optimizer(weights, 0.05, momentum=0.9, weight_decay=3e-4)
    prepare = Prepare((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), cutout=4)
    settings = {"auxiliary_weight": 0.4, "grad_clip": 5.0} | settings
    return WeightUpdate(net, optimizer, prepare, moving=MovingAverage(net, ema) if ema else None, **settings)


def trainer(
    epochs: int = 2,
    *,
    auxiliary: bool = False,
    drop_path: float = 0.2,
    ema: float = 0.9,
    rank: int = 0,
    size: int = 1,
    **more: Any,
) -> Trainer:
    """A trainer of 5 steps of 6 images an epoch, with 6 held-back and 4 test images."""
    array = pixels()
    dtype = more.pop("dtype", torch.float32)
    ranks, sync = more.pop("ranks", None), more.pop("sync", None)
    net = network(auxiliary, dtype)
    net.synchronise(sync)
    common: dict[str, Any] = {"batch_size": 6, "image_size": SIDE, "rank": rank, "world_size": size}
    train = ArrayLoader(array, torch.arange(30), padding=1, stream=Stream.TRAIN, seed=0, **common)
    val, test = (ArrayEvalLoader(array, torch.arange(*span), **common) for span in ((30, 36), (36, 40)))
    made = update(net, ema, reduce=None if ranks is None else ranks.average)
    options = {"epochs": epochs, "num_classes": CLASSES, "schedule": Schedule("cosine", 0.05), "drop_path": drop_path}
    return Trainer(made, train, passes=Passes(val, test), ranks=ranks, **options, **more)


def batches(count: int = 1, n: int = 4) -> Iterator[Batch]:
    """Return the first images, without augmentation."""
    array = pixels()
    for number in range(count):
        index = torch.arange(n * number, n * (number + 1))
        yield Batch(array.pixels[index], array.labels[index], index, index < 0)


def tensors(made: Trainer) -> dict[str, Tensor]:
    """Return everything that a training leaves, by name."""
    state = made.state_dict()
    found = {f"network {k}": v for k, v in state["network"].items()}
    found |= {f"ema {k}": v for k, v in state["ema"]["network"].items()} if "ema" in state else {}
    moments = state["optimizer"]["state"]
    return found | {f"momentum {n}": s["momentum_buffer"] for n, s in moments.items() if "momentum_buffer" in s}
