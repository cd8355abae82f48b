"""From settings to the supernet and the objective of a search."""

from fastdarts.config import ConfigError, RunSettings, SearchCifarSettings
from fastdarts.objectives import IMAGENET_MEAN, IMAGENET_STD, Classification, MaskedReconstruction, Objective
from fastdarts.ops.patch_mask import num_masked
from fastdarts.spaces import S0
from fastdarts.supernet import Supernet

CIFAR10_MEAN, CIFAR10_STD = (0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)  # DARTS'
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # P-DARTS'
Colour = tuple[float, float, float]  # RGB, of pixels in [0, 1]


def build(settings: RunSettings, num_classes: int) -> tuple[Supernet, Objective]:
    """The supernet and the objective of a search, on the default device. Raises ConfigError if sizes do not fit."""
    try:
        supernet = _supernet(settings)
        size, multiple = settings.image_size, supernet.multiple
        if size % multiple:
            fits = f"a multiple of {multiple} is needed, as {max(1, size // multiple) * multiple}"
            raise ConfigError(f"--image_size {size} does not fit the stem and two reductions: {fits}")
        return supernet, _objective(settings, supernet, num_classes)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _supernet(settings: RunSettings) -> Supernet:
    return Supernet(
        S0,
        C=settings.init_channels,
        layers=settings.layers,
        stem="cifar" if isinstance(settings, SearchCifarSettings) else "imagenet",
        partial_channels=settings.partial_channels,
        channel_sampling=settings.channel_sampling,
        seed=settings.seed,
        backend=settings.backend,
    )


def _objective(settings: RunSettings, supernet: Supernet, num_classes: int) -> Objective:
    """What is minimised. Raises ValueError for sizes that do not fit."""
    mean, std = normalisation(settings, num_classes)
    if settings.objective == "supervised":
        return Classification(supernet, num_classes, mean=mean, std=std)
    check_patches(settings.image_size, settings.patch_size, settings.mask_ratio)
    return MaskedReconstruction(
        supernet.tap_channels,
        mask_ratio=settings.mask_ratio,
        patch_size=settings.patch_size,
        mask_token=settings.mask_token,
        norm=settings.loss,
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


def check_patches(image_size: int, patch_size: int, ratio: float) -> None:
    """Raise ConfigError unless patches tile the image and some are hidden."""
    if image_size % patch_size:
        raise ConfigError(f"--patch_size {patch_size} does not divide --image_size {image_size}")
    patches = (image_size // patch_size) ** 2
    if not num_masked(ratio, patches):
        raise ConfigError(f"--mask_ratio {ratio} hides none of an image's {patches} patches")
