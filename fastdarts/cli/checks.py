"""Resolve and check settings that commands share: paths, device, watching."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from fastdarts import engine, steps
from fastdarts.engine import RankInfo
from fastdarts.ops.backend import choose
from fastdarts.optim import OptimizerUnavailable
from fastdarts.optim.optimizers import OptimizerBackend, check_backend
from fastdarts.optim.precision import Amp
from fastdarts.settings import ConfigError, groups
from fastdarts.settings.values import expanded


class Computed(Protocol):
    """Settings that say where and how a run computes."""

    @property
    def device(self) -> str: ...
    @property
    def amp(self) -> Amp: ...
    @property
    def cuda_graph(self) -> str: ...
    @property
    def optimizer_backend(self) -> OptimizerBackend: ...


def absolute(text: str) -> str:
    """Return a canonical text for a path; keeps links, except those before .., which must be resolved."""
    path = Path(expanded(text)).absolute()
    cut = max((i + 1 for i, part in enumerate(path.parts) if part == ".."), default=0)
    return str(Path(*path.parts[:cut]).resolve().joinpath(*path.parts[cut:])) if cut else str(path)


def check_device(settings: Computed) -> None:
    """Raise ConfigError for settings of a training that the device does not support, or not well."""
    device = torch.device(settings.device)
    check_amp(settings.amp, device)
    if settings.cuda_graph == "on" and (why := steps.no_gpu(device)):
        raise ConfigError(f"--cuda_graph on: {why}")
    try:
        check_backend(settings.optimizer_backend, device)
    except OptimizerUnavailable as error:
        raise ConfigError(f"--optimizer_backend {settings.optimizer_backend}: {error}") from error


def check_fused(backend: str, ops: Mapping[str, torch.dtype], device: str) -> None:
    """Raise ConfigError if --backend does not support an op, in its dtype."""
    try:
        for op, dtype in ops.items():
            choose(op, backend, torch.device(device), dtype)
    except ValueError as error:
        raise ConfigError(f"--backend: {error}") from error


def check_cells(backend: str, device: str) -> None:
    """Raise ConfigError if --backend does not support the cells of a discrete network."""
    check_fused(backend, dict.fromkeys(("relu_conv_bn", "mixed_cell"), torch.float32), device)


def check_amp(amp: Amp, device: torch.device) -> None:
    """Raise ConfigError for autocast on a CPU."""
    if amp != "off" and device.type == "cpu":
        raise ConfigError(f"--amp {amp}: on a CPU it is many times slower than float32; leave it off, or use a GPU")


def check_watching(settings: groups.Watching) -> None:
    """Raise ConfigError if requested outputs cannot be written."""
    if settings.tensorboard and (why := engine.no_tensorboard()):
        raise ConfigError(f"--tensorboard: {why}")
    if settings.profile is not None:
        try:
            engine.ProfileRange.parse(settings.profile)
        except ValueError as error:
            raise ConfigError(f"--profile {settings.profile}: {error}") from error


def device_of(name: str, info: RankInfo) -> str:
    """Return the device of `name` on that rank, after trying it. Raises ConfigError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and info.size > 1:
        name = f"cuda:{info.local_rank % max(1, torch.cuda.device_count())}"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    try:
        return str(torch.empty(0, device=name).device)
    except (RuntimeError, AssertionError) as error:  # torch's two errors for a missing device
        raise ConfigError(f"--device {name}: {str(error).splitlines()[0]}") from error
