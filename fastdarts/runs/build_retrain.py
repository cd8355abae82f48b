"""Build the network of a retraining and its update from the settings."""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdarts.inputs.source import DataSet, statistics_of
from fastdarts.inputs.statistics import Statistics
from fastdarts.networks import DiscreteNetwork, NetworkShape, build, count
from fastdarts.optim import Precision
from fastdarts.optim.optimizers import on_device, parameter_groups, weight_optimizer
from fastdarts.optim.rmsprop import RMSpropTF
from fastdarts.optim.schedules import Schedule
from fastdarts.protocols import Reduce
from fastdarts.runs.resolved import ResolvedRetrain
from fastdarts.settings import ConfigError, RetrainSettings
from fastdarts.spaces import Architecture
from fastdarts.spaces.genotype import Genotype
from fastdarts.training.augment import Prepare
from fastdarts.training.moving_average import MovingAverage
from fastdarts.training.update import WeightUpdate

Kind = TypeVar("Kind", bound=WeightUpdate)
NASBENCH201 = {10: "nasbench201-cifar10", 100: "nasbench201-cifar100", 120: "nasbench201-imagenet16"}  # by classes
SIDES = {"cifar": 32, "imagenet": 224}  # of images, in pixels, before they are known


def network_of(resolved: ResolvedRetrain, num_classes: int) -> DiscreteNetwork:
    """Build the network on the default device. Raises ConfigError if architecture and sizes do not fit."""
    s = resolved.settings
    try:
        shape = NetworkShape(
            s.network,
            s.init_channels,
            s.layers,
            num_classes,
            s.auxiliary and s.network != "nasbench201",
            auxiliary_pool=s.auxiliary_pool,
            image_size=s.image_size,
        )
        network = build(resolved.architecture, shape)
        network.check_size(s.image_size, s.image_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = s.bn_momentum
    network.drop_path = s.drop_path > 0
    network.set_backend(s.backend)
    if s.dropout:
        network.classifier.register_forward_pre_hook(_Dropout(s.dropout))
    return network


class _Dropout:
    """Forward pre-hook of a classifier: dropout on its input."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, module: nn.Module, args: tuple[Tensor]) -> Tensor:
        return F.dropout(args[0], self.rate, module.training)


def check_buildable(resolved: ResolvedRetrain) -> None:
    """Raise ConfigError if `network_of` would for any images; assumes that image-dependent sizes fit."""
    side = resolved.settings.image_size or SIDES[resolved.settings.dataset]
    with torch.device("meta"):
        network_of(resolved.replaced(image_size=side), 10)


def update_of(kind: type[Kind], resolved: ResolvedRetrain, network: DiscreteNetwork, reduce: Reduce | None = None) -> Kind:
    """Return the update, of class `kind`, of a network on its device."""
    s = resolved.settings
    mean, std = pixel_statistics(s.statistics, s.network, resolved.dataset, network.shape.num_classes)
    hue = s.jitter_hue
    return kind(
        network,
        optimizer_of(s, network),
        Prepare(mean, std, s.cutout, (s.jitter, s.jitter, s.jitter, hue), s.seed),
        auxiliary_weight=s.auxiliary_weight,
        label_smoothing=s.label_smoothing,
        grad_clip=s.grad_clip,
        precision=Precision(s.amp, next(network.parameters()).device),
        moving=MovingAverage(network, s.ema_decay, s.ema_warmup) if s.ema_decay else None,
        reduce=reduce,
    )


def pixel_statistics(name: str, network: str, dataset: DataSet, num_classes: int) -> Statistics:
    """Return mean and standard deviation of the pixels; "auto": the benchmark's own for its network, else the data set's."""
    if name == "auto" and network == "nasbench201":
        name = NASBENCH201.get(num_classes, "auto")
    return statistics_of(name, dataset, num_classes)


def figures_of(architecture: Genotype | Architecture, network: DiscreteNetwork) -> dict[str, int]:
    """Return `params` and `macs` without the auxiliary head, and `params_auxiliary`; no `macs` with a custom candidate."""
    try:
        counts = count(architecture, network.shape)
    except ValueError:  # of a custom candidate the multiply-adds are not known
        auxiliary = sum(p.numel() for name, p in network.named_parameters() if name.startswith("auxiliary_head."))
        return {"params": sum(p.numel() for p in network.parameters()) - auxiliary, "params_auxiliary": auxiliary}
    return {name: counts[name] for name in ("params", "params_auxiliary", "macs")}


def optimizer_of(s: RetrainSettings, network: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of a network's weights; biases and BatchNorm's parameters are a second group without decay."""
    weights: list[Tensor] = list(network.parameters())
    flat = [w for w in weights if w.dim() < 2] if not s.decay_norm else []
    if s.optimizer == "sgd":
        options = {"momentum": s.momentum, "weight_decay": s.weight_decay, "nesterov": s.nesterov}
        return weight_optimizer(weights, s.learning_rate, **options, backend=s.optimizer_backend, undecayed=flat)
    rate = on_device(s.learning_rate, weights)
    options = {"eps": s.optimizer_eps, "momentum": s.momentum, "weight_decay": s.weight_decay}
    return RMSpropTF(parameter_groups(weights, flat), rate, **options)


def schedule_of(s: RetrainSettings) -> Schedule:
    """Return the learning rate by epoch."""
    return Schedule(
        s.schedule,
        s.learning_rate,
        minimum=s.learning_rate_min,
        warmup=s.warmup_epochs,
        warmup_style=s.warmup_style,
        warmup_rate=s.warmup_rate,
        decay=s.lr_decay,
        decay_epochs=s.lr_decay_epochs,
    )
