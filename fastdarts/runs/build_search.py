"""Build the supernet and the objective of a search from its settings."""

from math import lcm

import torch

from fastdarts.data.arrays import SIDE as SAMPLE_SIDE
from fastdarts.inputs.source import statistics_of
from fastdarts.objectives import Objective, make_objective
from fastdarts.runs.resolved import Resolved
from fastdarts.search import Stage
from fastdarts.settings import ConfigError
from fastdarts.spaces import Space, nats
from fastdarts.spaces.lookup import Lookup, TableError
from fastdarts.supernet import NASBench201Supernet, Network, Supernet


def benchmark_of(resolved: Resolved) -> Lookup | None:
    """Return the benchmark for the found cell. Raises ConfigError if it cannot be read or belongs to another space."""
    path, space = resolved.settings.benchmark, resolved.space
    if path is None:
        return None
    if space.skeleton != "nasbench201":
        raise ConfigError(f"--benchmark: no table contains the cells of space {space.name}, only those of nasbench201")
    try:
        return nats.read(path)
    except (TableError, OSError) as error:
        raise ConfigError(f"--benchmark {path}: {error}") from error


def build(
    resolved: Resolved, num_classes: int, stage: Stage | None = None, space: Space | None = None
) -> tuple[Network, Objective]:
    """Build the supernet and the objective of a search, on the default device. Raises ConfigError if sizes do not fit.

    stage  None: the first one
    space  remaining space in the stage; None: all
    """
    size, stage = resolved.settings.image_size, stage or resolved.stages[0]
    try:
        supernet = _supernet(resolved, stage, space or resolved.space)
        if size % supernet.multiple:
            fits = f"a multiple of {supernet.multiple} is needed, as {max(1, size // supernet.multiple) * supernet.multiple}"
            raise ConfigError(f"--image_size {size} does not fit the stem and two reductions: {fits}")
        return supernet, _objective(resolved, supernet, num_classes)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_buildable(resolved: Resolved) -> None:
    """Raise ConfigError if `build` would in any stage for any images; assumes that image-dependent sizes fit."""
    s = resolved.settings
    side = SAMPLE_SIDE if s.data is None else 16 * lcm(SAMPLE_SIDE, s.patch_size)  # a size that fits any image
    resolved = resolved.replaced(image_size=s.image_size or side)
    with torch.device("meta"):
        for stage in resolved.stages:
            build(resolved, 10, stage)


def _supernet(resolved: Resolved, stage: Stage, space: Space) -> Network:
    """Build the network. Raises ValueError if sizes do not fit, ConfigError for a setting the network lacks."""
    s, stem = resolved.settings, resolved.dataset.stem
    if space.skeleton == "nasbench201":
        if stem != "cifar":
            raise ConfigError(f"space {space.name}: NAS-Bench-201's network is for small images, use fastdarts.search_cifar")
        if s.edge_normalization:
            raise ConfigError(
                f"space {space.name}: weights of edges are of DARTS' cells only: take another --method than pc-darts, or "
                "--no-edge_normalization"
            )
        if s.edge_drop_path:
            raise ConfigError(f"--edge_drop_path: of DARTS' cells only, not of space {space.name}")
        return NASBench201Supernet(
            space,
            C=s.init_channels,
            cells_per_stage=s.stage_cells,
            batch_norm=s.cell_norm,
            partial_channels=stage.partial_channels or s.partial_channels,
            channel_sampling=s.channel_sampling,
            seed=s.seed,
            backend=s.backend,
        )
    return Supernet(
        space,
        C=s.init_channels,
        layers=stage.layers or s.layers,
        stem=stem,
        partial_channels=stage.partial_channels or s.partial_channels,
        channel_sampling=s.channel_sampling,
        seed=s.seed,
        backend=s.backend,
        skip_dropout=stage.dropout > 0,
        drop_path=s.edge_drop_path > 0,
    )


def _objective(resolved: Resolved, supernet: Network, num_classes: int) -> Objective:
    """Build the objective. Raises ValueError if sizes do not fit."""
    s = resolved.settings
    mean, std = statistics_of(s.statistics, resolved.dataset, num_classes)
    return make_objective(
        s.objective,
        supernet,
        num_classes=num_classes,
        image_size=s.image_size,
        mask_ratio=s.mask_ratio,
        patch_size=s.patch_size,
        mask_token=s.mask_token,
        loss=s.loss,
        decoder=s.decoder,
        seed=s.seed,
        mean=mean,
        std=std,
        backend=s.backend,
    )
