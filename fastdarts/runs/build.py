"""From settings to the supernet and the objective of a search."""

from dataclasses import replace
from math import lcm

import torch

from fastdarts.settings import ConfigError, RunSettings, SearchCifarSettings
from fastdarts.data.arrays import SIDE as SAMPLE_SIDE
from fastdarts.objectives import IMAGENET_MEAN, IMAGENET_STD, Objective, make_objective
from fastdarts.objectives.base import Colour
from fastdarts.search import Stage, stages_of
from fastdarts.spaces import Space, SpaceError, named, nats
from fastdarts.spaces.lookup import Lookup, TableError
from fastdarts.supernet import NASBench201Supernet, Network, Supernet

CIFAR10_MEAN, CIFAR10_STD = (0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)  # DARTS'
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # P-DARTS'


def space_of(settings: RunSettings) -> Space:
    """Where the search looks. Raises ConfigError."""
    try:
        return named(settings.space)
    except SpaceError as error:
        raise ConfigError(f"--space: {error}") from error


def benchmark_of(settings: RunSettings, space: Space) -> Lookup | None:
    """The table to look the found cell up in. Raises ConfigError for one that cannot be read, or is of another space."""
    if settings.benchmark is None:
        return None
    if space.skeleton != "nasbench201":
        raise ConfigError(f"--benchmark: the cells of space {space.name} are in no table, those of nasbench201 are")
    try:
        return nats.read(settings.benchmark)
    except (TableError, OSError) as error:
        raise ConfigError(f"--benchmark {settings.benchmark}: {error}") from error


def build(settings: RunSettings, space: Space, num_classes: int, stage: Stage | None = None) -> tuple[Network, Objective]:
    """The supernet and the objective of a search, on the default device. Raises ConfigError if sizes do not fit.

    stage  of a search in stages, with its `space`; None: settings.layers cells without dropout
    """
    try:
        supernet = _supernet(settings, space, stage or Stage(settings.epochs, settings.begin))
        size, multiple = settings.image_size, supernet.multiple
        if size % multiple:
            fits = f"a multiple of {multiple} is needed, as {max(1, size // multiple) * multiple}"
            raise ConfigError(f"--image_size {size} does not fit the stem and two reductions: {fits}")
        return supernet, _objective(settings, supernet, num_classes)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_buildable(settings: RunSettings, space: Space) -> None:
    """Raise ConfigError where `build` would in any stage of the search, whatever the images are: what depends on them fits."""
    sample = isinstance(settings, SearchCifarSettings) and settings.data is None
    side = SAMPLE_SIDE if sample else 16 * lcm(SAMPLE_SIDE, settings.patch_size or 1)  # of images of whatever size
    settings = replace(settings, image_size=settings.image_size or side)
    with torch.device("meta"):
        for stage in stages_of(settings, settings.layers, space):
            build(settings, space, 10, stage)


def _supernet(settings: RunSettings, space: Space, stage: Stage) -> Network:
    """Raises ValueError for sizes that do not fit, ConfigError for a setting that the network does not have."""
    if space.skeleton == "nasbench201":
        if not isinstance(settings, SearchCifarSettings):
            raise ConfigError(f"space {space.name}: NAS-Bench-201's network is for small images, take fastdarts.search_cifar")
        if settings.partial_channels != 1 or settings.edge_normalization:
            raise ConfigError(
                f"space {space.name}: partial channels and weights of edges are of DARTS' cells only: take --method darts-1st "
                "or darts-2nd, without --partial_channels and --edge_normalization"
            )
        return NASBench201Supernet(
            space,
            C=settings.init_channels,
            cells_per_stage=settings.stage_cells,
            batch_norm=settings.cell_norm,
            seed=settings.seed,
            backend=settings.backend,
        )
    return Supernet(
        space,
        C=settings.init_channels,
        layers=stage.layers or settings.layers,
        stem="cifar" if isinstance(settings, SearchCifarSettings) else "imagenet",
        partial_channels=settings.partial_channels,
        channel_sampling=settings.channel_sampling,
        seed=settings.seed,
        backend=settings.backend,
        skip_dropout=stage.dropout > 0,
    )


def _objective(settings: RunSettings, supernet: Network, num_classes: int) -> Objective:
    """What is minimised. Raises ValueError for sizes that do not fit."""
    mean, std = normalisation(settings, num_classes)
    return make_objective(
        settings.objective,
        supernet,
        num_classes=num_classes,
        image_size=settings.image_size,
        mask_ratio=settings.mask_ratio,
        patch_size=settings.patch_size,
        mask_token=settings.mask_token,
        loss=settings.loss,
        decoder=settings.decoder,
        seed=settings.seed,
        mean=mean,
        std=std,
        backend=settings.backend,
    )


def normalisation(settings: RunSettings, num_classes: int) -> tuple[Colour, Colour]:
    """Mean and standard deviation that pixels are normalised with: ImageNet's, or those customary for CIFAR.

    CIFAR-100's with 100 classes, else CIFAR-10's, also for images of one's own and for the generated sample.
    """
    if not isinstance(settings, SearchCifarSettings):
        return IMAGENET_MEAN, IMAGENET_STD
    return (CIFAR100_MEAN, CIFAR100_STD) if num_classes == 100 else (CIFAR10_MEAN, CIFAR10_STD)
