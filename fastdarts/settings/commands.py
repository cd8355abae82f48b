"""The settings of each command: some of the groups, and the defaults that are its own. They are saved flat."""

from fastdarts.settings.fields import composed
from fastdarts.settings.groups import (
    ArchitectureStep,
    Device,
    EarlyStop,
    ImageArrays,
    ImageFiles,
    Method,
    Network,
    Objective,
    Optimisation,
    Progressive,
    Ranks,
    Run,
    SearchSpace,
    Splits,
    Watching,
)


@composed()
class SearchSettings(Progressive, EarlyStop, ArchitectureStep, Optimisation):
    """How weights and alpha move: what `fastdarts.search.Search` reads."""


@composed()
class RunSettings(Watching, Ranks, Device, Run, SearchSettings, Network, Objective, SearchSpace, Method, Splits):
    """What all search commands share; each adds where its images come from."""


@composed()
class SearchImagenetSettings(RunSettings, ImageFiles):
    """Flags of `python -m fastdarts.search_imagenet`; the defaults are MAE-NAS on ImageNet."""


@composed(
    before={"method": "darts-1st"},
    method="darts-1st",
    train_fraction=0.5,
    val_fraction=0.5,
    patch_size=4,
    partial_channels=1,
    edge_normalization=False,
    batch_size=64,
    learning_rate=0.025,
    learning_rate_min=0.001,
    warmup_epochs=0,
    begin=0,
    arch_learning_rate=3e-4,
    arch_grad_clip=0.0,
)
class SearchCifarSettings(RunSettings, ImageArrays):
    """Flags of `python -m fastdarts.search_cifar`; the defaults are DARTS' search on CIFAR-10, with MAE-NAS' objective."""


AnySearch = SearchImagenetSettings | SearchCifarSettings
