"""Settings of each command: some of the groups, with command-specific defaults. Saved flat."""

from fastdarts.settings.fields import composed
from fastdarts.settings.groups import (
    ArchitectureStep,
    Capture,
    Communication,
    Device,
    EarlyStop,
    FusedOps,
    ImageArrays,
    ImageFiles,
    Method,
    Modules,
    Network,
    Objective,
    Optimisation,
    Pixels,
    Progressive,
    Ranks,
    Regularisation,
    Run,
    SearchSpace,
    Selection,
    Splits,
    Then,
    Watching,
)
from fastdarts.settings.retrain import (
    AnyImages,
    Augmentation,
    DiscreteNetwork,
    EvaluatedImages,
    Source,
    Training,
    TrainingSplits,
    Weights,
)


@composed()
class SearchSettings(Selection, Progressive, EarlyStop, Regularisation, ArchitectureStep, Optimisation):
    """Settings of the training of weights and alpha, read by `fastdarts.search.Search`."""


@composed()
class RunSettings(
    Watching,
    Then,
    Modules,
    Communication,
    Ranks,
    FusedOps,
    Capture,
    Device,
    Run,
    SearchSettings,
    Network,
    Objective,
    SearchSpace,
    Method,
    Splits,
    Pixels,
):
    """Settings common to all search commands; each adds its image source."""


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


@composed(epochs=600, batch_size=96, learning_rate=0.025, warmup_epochs=0)
class RetrainSettings(
    Watching,
    Modules,
    Communication,
    Ranks,
    FusedOps,
    Capture,
    Device,
    Run,
    Augmentation,
    Training,
    Optimisation,
    DiscreteNetwork,
    TrainingSplits,
    Pixels,
    AnyImages,
    ImageArrays,
    ImageFiles,
    Source,
):
    """Flags of `python -m fastdarts.retrain`; the defaults are DARTS' training on CIFAR-10."""


@composed(batch_size=256)
class EvaluateSettings(Modules, Communication, FusedOps, Device, EvaluatedImages, AnyImages, ImageArrays, ImageFiles, Weights):
    """Flags of `python -m fastdarts.evaluate`."""


AnySearch = SearchImagenetSettings | SearchCifarSettings
