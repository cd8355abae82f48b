"""Published trainings of a found cell by name: settings, source and reported results.

A recipe includes width and depth, because published accuracies of one cell differ by them more than by anything else: test
errors on CIFAR-100 of 21 to 29 % are of 16 channels and 8 cells (R-DARTS), those of 15 to 19 % of 36 and 20. Where a paper and
its code differ, the code's value is taken. docs/retrain.md lists them; no results of ours are recorded yet.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fastdarts.registry import RETRAININGS

Values = Mapping[str, Any]


@dataclass(frozen=True)
class RetrainRecipe:
    """Published training.

    source     paper or code
    published  its results, in short
    settings   settings in addition to the command's defaults
    """

    source: str
    published: str
    settings: Values = field(default_factory=dict)


def _cifar(source: str, published: str, /, **settings: Any) -> RetrainRecipe:
    return RetrainRecipe(source, published, {"dataset": "cifar", "network": "cifar", **settings})


def _imagenet(source: str, published: str, /, **settings: Any) -> RetrainRecipe:
    return RetrainRecipe(source, published, {**IMAGENET, **settings})


# of all DARTS codes; the test images are resized to 256 and cropped to 224
IMAGENET: Values = {
    "dataset": "imagenet",
    "network": "imagenet",
    "image_size": 224,
    "init_channels": 48,
    "layers": 14,
    "epochs": 250,
    "weight_decay": 3e-5,
    "label_smoothing": 0.1,
    "drop_path": 0.0,
    "cutout": 0,
    "jitter": 0.4,
    "jitter_hue": 0.2,
}
BATCH_1024: Values = {"batch_size": 1024, "learning_rate": 0.5, "warmup_epochs": 5}
SMALL: Values = {"init_channels": 16, "layers": 8}

RETRAININGS |= {
    "darts-cifar10": _cifar("DARTS; also SGAS, SDARTS, DARTS-PT, FairDARTS", "DARTS_V2: 97.24 ± 0.09 %"),
    "darts-cifar100": _cifar("DARTS' training, as SDARTS and MAE-NAS' table 8 run it", "DARTS_V2: 82.46 %"),
    "pc-darts-cifar10": _cifar("PC-DARTS", "PC_DARTS_cifar: 97.43 ± 0.07 %", drop_path=0.3),
    "p-darts-cifar10": _cifar("P-DARTS", "PDARTS: 97.50 %", batch_size=128, drop_path=0.3),
    "p-darts-cifar100": _cifar(
        "P-DARTS (weight decay by its paper)", "PDARTS: 83.45 %", batch_size=128, drop_path=0.3, weight_decay=5e-4
    ),
    "drnas-cifar10": _cifar("DrNAS", "DrNAS_cifar10: 97.54 ± 0.03 %", batch_size=64, drop_path=0.3),
    "r-darts-cifar10": _cifar("R-DARTS; also DARTS- on S4", "S1 to S4", **SMALL),
    "r-darts-cifar100": _cifar(
        "R-DARTS; also DARTS-, DARTS-PT, MAE-NAS",
        "S1 to S4: errors of 21 to 29 %",
        statistics="r-darts-cifar100",
        **SMALL,
    ),
    "r-darts-svhn": _cifar("R-DARTS; also DARTS-PT", "S1 to S4", statistics="svhn", **SMALL),
    "nasbench201": RetrainRecipe(
        "NAS-Bench-201",
        "best cell on CIFAR-10: 94.37 %",
        {
            "dataset": "cifar",
            "network": "nasbench201",
            "init_channels": 16,
            "layers": 5,
            "epochs": 200,
            "batch_size": 256,
            "learning_rate": 0.1,
            "nesterov": True,
            "weight_decay": 5e-4,
            "grad_clip": 0.0,
            "auxiliary": False,
            "drop_path": 0.0,
            "cutout": 0,
        },
    ),
    "darts-imagenet": _imagenet("DARTS", "DARTS_V2: top-1 73.3 %", batch_size=128, learning_rate=0.1, schedule="exponential"),
    "pc-darts-imagenet": _imagenet("PC-DARTS", "PC_DARTS_image: top-1 75.8 %", schedule="linear", **BATCH_1024),
    "drnas-imagenet": _imagenet(
        "DrNAS", "DrNAS_imagenet: top-1 76.3 %", schedule="linear", **{**BATCH_1024, "batch_size": 768}
    ),
    "p-darts-imagenet": _imagenet(
        "P-DARTS as run for its paper; also SGAS, RLNAS, MIM-DARTS",
        "PDARTS: top-1 75.6 %",
        schedule="linear",
        warmup_style="scale",
        **BATCH_1024,
    ),
    "unnas-imagenet": _imagenet("UnNAS", "cells of 42 to 46 channels: top-1 about 76 %", nesterov=True, **BATCH_1024),
    "mobilenetv3-imagenet": _imagenet(
        "MnasNet's training, which MobileNetV3 and DARTS- follow: MAE-NAS names it without any number, so that its auxiliary "
        "head and augmentation are unknown (here: none)",
        "MAE-NAS: top-1 76.1 %",
        optimizer="rmsprop-tf",
        schedule="exponential",
        batch_size=1024,
        learning_rate=0.064,
        lr_decay=0.97,
        lr_decay_epochs=2.4,
        warmup_epochs=5,
        warmup_style="replace",
        epochs=350,
        weight_decay=1e-5,
        decay_norm=False,
        grad_clip=0.0,
        auxiliary=False,
        dropout=0.2,
        bn_momentum=0.01,
        ema_decay=0.9999,
        ema_warmup=True,
        jitter=0.0,
        jitter_hue=0.0,
    ),
}

# the recipe of a cell where none is given, by kind of images and space of its search; None: of any other space, or unknown
DEFAULTS: Mapping[tuple[str, str | None], str] = {
    ("cifar", None): "darts-cifar10",
    ("imagenet", None): "pc-darts-imagenet",
    **{("cifar", space): "r-darts-cifar10" for space in ("s1", "s2", "s3", "s4")},
    **{(dataset, "nasbench201"): "nasbench201" for dataset in ("cifar", "imagenet")},
}

# instead of a recipe's, for the generated sample: about two minutes; one thread, as in a search of it
SAMPLE: Mapping[Literal["cifar", "imagenet"], Values] = {
    "cifar": {"init_channels": 8, "batch_size": 32, "epochs": 4, "warmup_epochs": 0, "auxiliary": False, "threads": 1},
    "imagenet": {
        "init_channels": 16,
        "batch_size": 32,
        "epochs": 4,
        "warmup_epochs": 1,
        "image_size": 64,
        "auxiliary": False,
        "threads": 1,
    },
}
SAMPLE_LAYERS = {"cifar": 5, "imagenet": 5, "nasbench201": 1}  # by network
