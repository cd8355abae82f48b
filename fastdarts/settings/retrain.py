"""Settings of a retraining and of an evaluation by topic, in addition to the groups that a search has too (groups.py).

The defaults are DARTS' training on CIFAR-10; a recipe overrides them for other published trainings.
"""

from typing import Literal

from fastdarts.registry import RETRAININGS, STATISTICS
from fastdarts.settings.fields import Settings, group, setting


@group
class Source(Settings):
    """Architecture to train, and the published training."""

    title = "architecture"

    run: str | None = setting(
        None, "run folder of a search: its cell is trained on its images, by the recipe for them", place=True, brings=True
    )
    genotype: str | None = setting(
        None, "architecture: text, file, run folder or published name (DARTS_V2, ...); default: that of --run", also=("arch",)
    )
    recipe: str | None = setting(
        None, "published training; flags override its settings", among=RETRAININGS, brings=True, resumable=True
    )


@group
class AnyImages(Settings):
    """Kind of images; before the groups of both kinds, whose settings of the same names it replaces."""

    title = "images"

    dataset: Literal["cifar", "imagenet"] = setting(
        "cifar", "kind of images: of one size in memory (cifar), or files of any size (imagenet)"
    )
    data: str | None = setting(
        None,
        "cifar-10-batches-py, cifar-100-python, a folder with train*.npz and test*.npz, or a folder with train/CLASS/* and "
        "val/CLASS/*; default: a generated sample",
        place=True,
        also=("data_dir",),
    )
    image_size: int = setting(0, "pixels a side; auto (or 0) = the images' size (cifar), 224 (imagenet)", at_least=0, auto=0)


@group
class TrainingSplits(Settings):
    """Which images train, choose the best epoch and test."""

    title = "splits"

    val_fraction: float = setting(
        0.0, "share of each class held back from training, whose accuracy chooses the best epoch", at_least=0, below=1
    )
    train_list: str | None = setting(
        None, "text file of the training images instead, one per line as in a run's train.txt", place=True
    )
    val_list: str | None = setting(None, "the same for the images held back", place=True)
    val_labels: str | None = setting(
        None, "file of the classes of the test images where they are in no class folders", place=True
    )
    best_on_test: bool = setting(
        False, "choose the best epoch by accuracy on the TEST images, as published codes do; it is then optimistic"
    )


@group
class DiscreteNetwork(Settings):
    """Network built from the architecture."""

    title = "network"

    network: Literal["cifar", "imagenet", "nasbench201"] = setting(
        "cifar", "stem and head: of DARTS' CIFAR or ImageNet network, or NAS-Bench-201's network"
    )
    init_channels: int = setting(36, "channels of the first cells' nodes", at_least=1)
    layers: int = setting(20, "cells; of NAS-Bench-201's network: of each of its three stages", at_least=1)
    auxiliary: bool = setting(True, "auxiliary head after two thirds of the cells (cifar, imagenet)")
    auxiliary_weight: float = setting(0.4, "weight of its loss", at_least=0)
    auxiliary_pool: Literal["fixed", "adaptive"] = setting(
        "fixed", "its pooling: published (for 32 or 224 px), or adaptive to other image sizes"
    )
    drop_path: float = setting(
        0.2, "drop-path rate of the last epoch; grows linearly from 0", at_least=0, below=1, also=("drop_path_prob",)
    )
    dropout: float = setting(0.0, "dropout before the classifier", at_least=0, below=1, also=("drop",))
    bn_momentum: float = setting(0.1, "share of a batch in BatchNorm's running statistics", above=0, at_most=1)


@group
class Training(Settings):
    """Loss, schedule, optimizer and moving average of a retraining."""

    title = "training"

    optimizer: Literal["sgd", "rmsprop-tf"] = setting(
        "sgd", "SGD with momentum, or RMSprop as TensorFlow computes it", also=("opt",)
    )
    optimizer_eps: float = setting(1e-3, "epsilon of rmsprop-tf, inside the root", above=0, also=("opt_eps",))
    decay_norm: bool = setting(True, "weight decay of BatchNorm's parameters and biases too")
    schedule: Literal["cosine", "linear", "exponential", "constant"] = setting(
        "cosine", "learning rate by epoch; linear: PC-DARTS' with a flatter end of five epochs", also=("sched",)
    )
    warmup_style: Literal["replace", "scale", "ramp"] = setting(
        "replace",
        "warm-up: linear in place of the schedule (PC-DARTS), a factor on it (P-DARTS), or from --warmup_rate (timm)",
    )
    warmup_rate: float = setting(1e-5, "first learning rate of the warm-up (ramp)", at_least=0, also=("warmup_lr",))
    lr_decay: float = setting(0.97, "factor of the schedule (exponential)", above=0, at_most=1, also=("decay_rate",))
    lr_decay_epochs: float = setting(1.0, "epochs between two factors (exponential)", above=0, also=("decay_epochs",))
    label_smoothing: float = setting(0.0, "label smoothing", at_least=0, below=1, also=("smoothing", "label_smooth"))
    ema_decay: float = setting(
        0.0,
        "decay of an exponential moving average of weights and statistics, per step; 0 = none",
        at_least=0,
        below=1,
        also=("model_ema_decay", "model_ema"),
        bare=0.9998,
    )
    ema_warmup: bool = setting(False, "limit that decay in the first steps, as TensorFlow does")


@group
class Augmentation(Settings):
    """Augmentation of training images in addition to crops and flips."""

    title = "augmentation"

    cutout: int = setting(16, "side of the hidden square in pixels; 0 = none", at_least=0, also=("cutout_length",), bare=16)
    jitter: float = setting(
        0.0, "strength of random brightness, contrast and saturation; 0 = none", at_least=0, also=("color_jitter",)
    )
    jitter_hue: float = setting(0.0, "strength of random hue shifts in turns; 0 = none", at_least=0, at_most=0.5)


@group
class Weights(Settings):
    """Trained network to evaluate."""

    title = "network"

    checkpoint: str | None = setting(
        None, "run folder of a retraining, a checkpoint of one, or a published checkpoint", path=True, positional=True
    )
    weights: Literal["last", "best", "ema"] = setting(
        "last", "of a run folder: the last epoch's, those of checkpoint-best.pt, or their moving average"
    )
    genotype: str | None = setting(
        None, "architecture of a published checkpoint: text, file, run folder or name (DARTS_V2, ...)", also=("arch",)
    )


@group
class EvaluatedImages(Settings):
    """Test images of an evaluation."""

    title = "images"

    val_labels: str | None = setting(
        None, "file of the classes of the test images where they are in no class folders", path=True
    )
    batch_size: int = setting(256, "images per forward pass, over all ranks", at_least=1, also=("b",))
    statistics: str = setting(
        "auto",
        "mean and standard deviation of the pixels; auto: the run's, else by data set and number of classes",
        among=STATISTICS,
    )
    amp: Literal["off", "bf16", "fp16"] = setting("off", "autocast of forward passes on a GPU")
    json: bool = setting(False, "print the result as JSON")
    input_timeout: float = setting(300.0, "seconds without a batch before input counts as stuck", above=0)
