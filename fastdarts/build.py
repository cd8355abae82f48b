"""From settings to the supernet and the objective of a search."""

from fastdarts.config import ConfigError, SearchImagenetSettings
from fastdarts.objectives import Classification, MaskedReconstruction, Objective
from fastdarts.ops.patch_mask import num_masked
from fastdarts.search import Stage
from fastdarts.spaces import S0, Space
from fastdarts.supernet import Supernet


def build(
    settings: SearchImagenetSettings, num_classes: int, space: Space = S0, stage: Stage | None = None
) -> tuple[Supernet, Objective]:
    """The supernet and the objective of a search, on the default device. Raises ConfigError if sizes do not fit.

    stage  of a search in stages, with its `space`; None: settings.layers cells without dropout
    """
    layers = settings.layers if stage is None or stage.layers is None else stage.layers
    try:
        supernet = Supernet(
            space,
            C=settings.init_channels,
            layers=layers,
            stem="imagenet",
            partial_channels=settings.partial_channels,
            channel_sampling=settings.channel_sampling,
            seed=settings.seed,
            backend=settings.backend,
            skip_dropout=stage is not None and stage.dropout > 0,
        )
        if settings.objective == "supervised":
            objective: Objective = Classification(supernet, num_classes)
        else:
            objective = MaskedReconstruction(
                supernet.tap_channels,
                mask_ratio=settings.mask_ratio,
                patch_size=settings.patch_size,
                mask_token=settings.mask_token,
                norm=settings.loss,
                seed=settings.seed,
                backend=settings.backend,
            )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if settings.image_size % supernet.multiple:
        fits = f"a multiple of {supernet.multiple} is needed"
        raise ConfigError(f"--image_size {settings.image_size} does not fit the stem and two reductions: {fits}")
    return supernet, objective


def check_patches(image_size: int, patch_size: int, ratio: float) -> None:
    """Raise ConfigError unless patches tile the image and some are hidden."""
    if image_size % patch_size:
        raise ConfigError(f"--patch_size {patch_size} does not divide --image_size {image_size}")
    patches = (image_size // patch_size) ** 2
    if not num_masked(ratio, patches):
        raise ConfigError(f"--mask_ratio {ratio} hides none of an image's {patches} patches")
