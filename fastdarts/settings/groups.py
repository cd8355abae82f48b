"""Settings of a search by topic, some of other commands too. Groups are independent; a command combines some (commands.py).

The defaults are PC-DARTS' search on ImageNet, which MAE-NAS uses. A command, method or recipe overrides them for other
published searches.
"""

from typing import Literal

from fastdarts.registry import METHODS, OBJECTIVES, SPACES, STATISTICS
from fastdarts.settings.fields import Settings, group, setting
from fastdarts.settings.values import ConfigError


@group
class ImageFiles(Settings):
    """Image files of any size, decoded on the fly or once."""

    title = "images"

    data: str | None = setting(None, "folder with train/CLASS/*.JPEG; default: a generated sample", place=True)
    image_size: int = setting(224, "pixels a side", at_least=1)
    strict: bool = setting(
        False, "stop at a bad file instead of excluding it; also verify the files of a continued run", resumable=True
    )
    loader: Literal["auto", "torchvision", "dali"] = setting(
        "auto", "decoder used without a cache: DALI on a GPU if installed, else torchvision", resumable=True
    )
    cache: Literal["auto", "device", "ram", "off"] = setting(
        "auto", "decode each image once and cache it: on the device if it fits, else in RAM, else not at all", resumable=True
    )
    cache_folder: str | None = setting(
        None,
        "keep the cache in a memory-mapped file in this folder instead of RAM, reused by later runs",
        resumable=True,
        path=True,
    )
    cache_size: int = setting(
        0, "short side of cached images in pixels; 0 = image_size * 256 / 224, at least 256", at_least=0, before=0
    )
    workers: int = setting(
        -1, "decoding processes; 0 = none, -1 = by the number of cores", at_least=-1, resumable=True, also=("j",)
    )


@group
class ImageArrays(Settings):
    """In-memory images of one size."""

    title = "images"

    data: str | None = setting(
        None,
        "cifar-10-batches-py or cifar-100-python, a .npz file of images and labels, or a folder with train/CLASS/*; default: "
        "a generated sample",
        place=True,
    )
    image_size: int = setting(0, "pixels a side; auto (or 0) = the images' size, smaller values crop", at_least=0, auto=0)
    crop_padding: int = setting(4, "zero padding in pixels before the random crop to image_size; 0 = none", at_least=0)


@group
class Pixels(Settings):
    """Normalisation of the pixels."""

    title = "images"

    statistics: str = setting(
        "auto",
        "mean and standard deviation of the pixels; auto: by data set and number of classes, in the training of a cell of "
        "NAS-Bench-201 the benchmark's",
        among=STATISTICS,
        before="auto",
    )


@group
class Splits(Settings):
    """Splits of the training images for weights and alpha."""

    title = "splits"

    train_fraction: float = setting(0.1, "share of each class that trains the weights", above=0, below=1)
    val_fraction: float = setting(0.025, "share of each class that trains alpha", above=0, below=1)
    train_list: str | None = setting(
        None,
        "text file of these images instead, one per line as in a run's train.txt: train/CLASS/FILE or train/NUMBER",
        place=True,
    )
    val_list: str | None = setting(None, "the same for alpha's images", place=True)


@group
class Method(Settings):
    """Published search, or method, as the source of default settings."""

    title = "method"

    recipe: str | None = setting(
        None,
        "published search by name; flags override its settings: see docs/recipes.md",
        brings=True,
        resumable=True,
    )
    method: str = setting(
        "pc-darts",
        "search method; flags and recipe override its settings",
        among=METHODS,
        brings=True,
        before="pc-darts",
    )


@group
class SearchSpace(Settings):
    """Search space, and a benchmark of its true accuracies."""

    title = "space"

    space: str = setting(
        "s0",
        "search space",
        among=SPACES,
        or_else="a file of candidate lists (.yaml, .yml, .json)",
        before="s0",
        place=True,
    )
    benchmark: str | None = setting(
        None,
        "table of true accuracies to look the found cell up in: a .csv file, or the files of the package nats_bench "
        "(nasbench201)",
        resumable=True,
        path=True,
    )


@group
class Network(Settings):
    """Supernet."""

    title = "network"

    init_channels: int = setting(16, "channels of the first stage's nodes", at_least=2)
    layers: int = setting(8, "cells (of DARTS' network)", at_least=3)
    stage_cells: int = setting(5, "cells of each of the three stages (nasbench201)", at_least=1, before=5)
    cell_norm: Literal["batch", "running"] = setting(
        "batch",
        "BatchNorm of the cells: always batch statistics, or running ones (nasbench201)",
        before="batch",
    )
    partial_channels: int = setting(2, "k: C/k channels pass through the candidates; 1 = all", at_least=1)
    channel_sampling: Literal["first", "random"] = setting(
        "first", "selection of the C/k channels: fixed, or drawn at each step"
    )


@group
class Objective(Settings):
    """Objective of a search."""

    title = "search objective"

    objective: str = setting("mae", "objective of the search", among=OBJECTIVES)
    mask_ratio: float = setting(0.5, "share of masked patches (mae, joint, masked-...)", above=0, below=1)
    patch_size: int = setting(8, "side of a patch in pixels (mae, joint, masked-...)", at_least=1)
    mask_token: Literal["zero", "learned"] = setting("zero", "colour of masked pixels: the mean, or learned (mae)")
    loss: Literal["l1", "l2"] = setting("l1", "loss on masked, normalised pixels (mae)")
    decoder: Literal["multi-scale", "single-scale"] = setting(
        "multi-scale", "decoder input: features of all three stages, or of the last (mae)", before="multi-scale"
    )


@group
class Optimisation(Settings):
    """Training of a network's weights."""

    title = "optimisation"

    epochs: int = setting(50, "passes over the images that train the weights", at_least=1)
    batch_size: int = setting(
        1024,
        "images per step, over all ranks; auto (or 0) = the most that fit into 80 % of free memory",
        at_least=0,
        auto=0,
        also=("b",),
    )
    learning_rate: float = setting(0.5, "learning rate of the weights' SGD, for the whole batch", above=0, also=("lr",))
    learning_rate_min: float = setting(0.0, "final value of the cosine schedule", at_least=0, also=("min_lr",))
    warmup_epochs: int = setting(5, "epochs of linear warm-up; scaled if only --epochs is given", at_least=0)
    momentum: float = setting(0.9, "momentum of the weights' SGD", at_least=0, below=1)
    nesterov: bool = setting(False, "Nesterov momentum for the weights' SGD", before=False)
    weight_decay: float = setting(3e-4, "weight decay of the weights", at_least=0)
    grad_clip: float = setting(5.0, "maximum gradient norm of the weights; 0 = no clipping", at_least=0, also=("clip_grad",))
    eval_every: int = setting(1, "epochs between evaluations (the last epoch is always evaluated)", at_least=1)
    optimizer_backend: Literal["torch", "apex"] = setting(
        "torch", "fused SGD and Adam of torch, or of NVIDIA's apex if installed", resumable=True
    )
    amp: Literal["off", "bf16", "fp16"] = setting(
        "off",
        "autocast of forward passes on a GPU; fp16 uses loss scaling; weights and alpha stay float32",
        before="off",
        bare="fp16",
    )
    seed: int = setting(0, "seed of the initial weights, alpha and every random choice", at_least=0, below=2**63)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise ConfigError("--nesterov: Nesterov's momentum needs a --momentum above 0")


@group
class ArchitectureStep(Settings):
    """Training of alpha."""

    title = "architecture step"

    begin: int = setting(35, "epochs before the first update of alpha; scaled if only --epochs is given", at_least=0)
    arch_learning_rate: float = setting(6e-3, "learning rate of alpha's Adam (betas 0.5, 0.999)", above=0)
    arch_weight_decay: float = setting(1e-3, "weight decay of alpha", at_least=0)
    arch_grad_clip: float = setting(5.0, "maximum gradient norm of alpha; 0 = no clipping", at_least=0)
    unrolled: bool = setting(False, "second order: gradient of alpha after a virtual step of the weights")
    step_order: Literal["alpha-first", "weights-first"] = setting("alpha-first", "order of the two updates in a step")
    edge_normalization: bool = setting(True, "also learn a weight for each edge (PC-DARTS' beta)")
    smoothing_epsilon: float = setting(
        0.3,
        "final radius of the perturbed mixing weights; it grows from 0.03 (sdarts-rs, sdarts-adv)",
        above=0,
        before=0.3,
        also=("epsilon_alpha",),
    )
    sgas_warmup: int = setting(-1, "epochs before the first decision; -1 = 9 of 50 (sgas-1, sgas-2)", at_least=-1, before=-1)
    sgas_interval: int = setting(0, "epochs between decisions; 0 = 5 of 50 (sgas-1, sgas-2)", at_least=0, before=0)
    dirichlet_kl: float = setting(
        0.0,
        "factor of the divergence from a uniform distribution in alpha's loss, in place of --arch_weight_decay (drnas)",
        at_least=0,
        before=0.0,
    )
    hessian_every: int = setting(
        0, "epochs between estimates of the validation Hessian's largest eigenvalue in alpha; 0 = never", at_least=0
    )


@group
class Regularisation(Settings):
    """Noise that grows while a search goes on (R-DARTS)."""

    title = "regularisation"

    edge_drop_path: float = setting(
        0.0, "drop-path rate of mixed edges in the last epoch; it grows linearly from 0", at_least=0, below=1, before=0.0
    )
    edge_cutout: int = setting(
        16,
        "side of the square that cutout hides, in a share of the images that grows linearly from 0 to 1; 0 = none "
        "(--edge_drop_path)",
        at_least=0,
        before=16,
    )


@group
class EarlyStop(Settings):
    """Early stopping before cells collapse."""

    title = "early stop"

    early_stop: Literal["off", "eigenvalue", "skips"] = setting(
        "off",
        "stop before cells collapse: when the Hessian's eigenvalue grows (R-DARTS; estimated after every epoch that updates "
        "alpha, regardless of --hessian_every), or at a number of skips in the normal cell (DARTS+)",
        before="off",
    )
    early_stop_skips: int = setting(
        2, "skip connections in the normal cell that stop the search (--early_stop skips)", at_least=1, before=2
    )
    early_stop_from: int = setting(
        11, "first epoch whose cell the eigenvalue rule may choose (--early_stop eigenvalue)", at_least=1, before=11
    )


@group
class Progressive(Settings):
    """Stages of P-DARTS and DrNAS, and their settings."""

    title = "progressive search"

    progressive: bool = setting(
        False, "search in stages with more cells and fewer candidates; --epochs counts all stages, --begin each", before=False
    )
    progressive_layers: str = setting("0,6,12", "cells of each stage in addition to --layers (progressive)", before="0,6,12")
    progressive_candidates: str = setting(
        "5,3", "candidates per edge in the second and each later stage (progressive)", before="5,3"
    )
    progressive_channels: str = setting(
        "", "k of each stage (--partial_channels), smaller in later ones; default: the same in all (progressive)", before=""
    )
    progressive_carry: bool = setting(
        False,
        "go on with the weights, alpha and optimizers of the stage before, candidates widened (progressive)",
        before=False,
    )
    progressive_rate: Literal["stage", "whole", "released"] = setting(
        "stage",
        "cosine schedule: of each stage, of the whole search, or of the whole search but scaled so that each stage begins at "
        "--learning_rate, as DrNAS' released code does (progressive)",
        before="stage",
    )
    skip_dropout: bool = setting(False, "dropout on skips of stride 1, decaying within each stage (progressive)", before=False)
    progressive_dropout: str = setting("0,0.4,0.7", "initial dropout rate of each stage (skip_dropout)", before="0,0.4,0.7")
    skip_limit: int = setting(0, "maximum skips in the derived normal cell; 0 = unlimited", at_least=0, before=0)


@group
class Selection(Settings):
    """Derivation of the cell from a searched supernet. A finished run may be continued with it."""

    title = "selection"

    select: Literal["argmax", "perturbation"] = setting(
        "argmax",
        "by the largest weights, or, after --epochs, by what the supernet misses most (DARTS-PT), with epochs of tuning "
        "between the decisions",
        resumable=True,
    )
    select_figure: Literal["own", "accuracy", "loss"] = setting(
        "own",
        "figure that tells how much is missed: the objective's own (its accuracy, or its loss where it has none), the accuracy "
        "of labels, or the loss (--select perturbation)",
        resumable=True,
    )
    select_batches: int = setting(
        0, "batches of alpha's images for each figure; 0 = an epoch of them (--select perturbation)", at_least=0, resumable=True
    )
    select_interval: int = setting(
        5, "epochs of tuning between two decisions (--select perturbation)", at_least=1, resumable=True
    )
    select_rate: float = setting(
        0.1,
        "constant learning rate of the tuning, as a share of --learning_rate (--select perturbation)",
        above=0,
        resumable=True,
    )


@group
class Device(Settings):
    """Device and numerical precision."""

    title = "device"

    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    tf32: bool = setting(False, "allow TF32 in float32 convolutions and matrix products on a GPU", before=False)
    deterministic: bool = setting(False, "bitwise reproducible runs on a GPU too; slower, logs disabled features", before=False)
    threads: int = setting(
        0,
        "CPU threads of torch per rank; 0 = by the cores and ranks of a node (the number is saved)",
        at_least=0,
        resumable=True,
    )


@group
class Capture(Settings):
    """Replay of training steps."""

    title = "device"

    cuda_graph: Literal["auto", "on", "off"] = setting(
        "auto",
        "replay whole steps as CUDA graphs: if possible (auto), or stop with an error (on), or never (off)",
        resumable=True,
    )


@group
class FusedOps(Settings):
    """Implementation of the fused ops."""

    title = "device"

    backend: str = setting(
        "auto", "backend of the fused ops, masks and cells: auto, definition or one listed by fastdarts.info"
    )


@group
class Communication(Settings):
    """Communication between ranks."""

    title = "ranks"

    dist_backend: Literal["auto", "nccl", "gloo"] = setting(
        "auto", "communication backend: NCCL if each rank has a GPU, else gloo", resumable=True
    )
    dist_timeout: float = setting(
        600.0, "seconds without an answer before another rank counts as lost", above=0, resumable=True
    )


@group
class Ranks(Settings):
    """Data-parallel ranks."""

    title = "ranks"

    sync_bn: bool = setting(False, "BatchNorm over the images of all ranks instead of each rank's", before=False)
    check_ranks_every: int = setting(
        500, "steps between checks that weights and alpha agree on all ranks; 0 = never", at_least=0, resumable=True
    )


@group
class Run(Settings):
    """Run folder, checkpoints and error handling."""

    title = "run"

    save: str | None = setting(
        None, "run folder, created or continued; default: COMMAND-NAME-TIME in the current folder", resumable=True, path=True
    )
    dry_run: bool = setting(False, "print plan, images, steps and a memory estimate, then exit", resumable=True)
    checkpoint_minutes: float = setting(
        10.0, "minutes between checkpoints within an epoch; 0 = only at the end of epochs", at_least=0, resumable=True
    )
    keep_checkpoints: int = setting(
        2, "number of newest checkpoints to keep, in addition to the best", at_least=1, resumable=True
    )
    on_bad: Literal["skip", "stop", "rewind"] = setting(
        "skip",
        "on a non-finite loss or gradient: skip that update, or also stop, or rewind to the last checkpoint and continue with "
        "the batches after it",
        resumable=True,
    )
    input_timeout: float = setting(300.0, "seconds without a batch before input counts as stuck", above=0, resumable=True)


@group
class Modules(Settings):
    """Additions by the user's own modules (settings/modules.py)."""

    title = "run"

    modules: str | None = setting(
        None,
        "Python modules to import first, comma-separated: they may add methods, objectives, recipes, spaces and candidates",
        resumable=True,
    )


@group
class Then(Settings):
    """What follows a search."""

    title = "run"

    then: str | None = setting(
        None,
        'command to run on the found cell, with its flags: "retrain" or "retrain --epochs 100"; its run folder is in this one, '
        "and the same command continues whichever was interrupted",
        resumable=True,
    )


@group
class Watching(Settings):
    """Progress output of a run."""

    title = "watching"

    log_every: int = setting(20, "steps between progress lines", at_least=1, resumable=True)
    tensorboard: bool = setting(False, "write losses, rates and alpha for TensorBoard into the run folder", resumable=True)
    profile: str | None = setting(
        None, "A:B = trace steps A to B, counted from 1, into trace-A-B.json in the run folder", resumable=True
    )
