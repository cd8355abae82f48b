"""Random masking of an objective's input images.

Notation: N images, S pixels a side, p pixels a patch's side, P = (S/p)**2 patches an image.
"""

from typing import NamedTuple

from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.objectives.base import IMAGENET_MEAN, IMAGENET_STD, Colour
from fastdarts.ops.patch_mask import num_masked, patch_mask


class Masking(NamedTuple):
    """Hide random patches, uniformly without replacement, drawn for each image, step and stream.

    ratio       in (0, 1); floor(ratio * P + 0.5) patches of each image are hidden
    patch_size  p; must divide S
    seed        of the masks
    mean, std   of pixels in [0, 1], to normalise the input
    backend     of ops.patch_mask
    """

    ratio: float
    patch_size: int
    seed: int = 0
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD
    backend: str = "auto"

    def hidden(self, height: int, width: int) -> int:
        """Return the number of hidden patches in such an image. Raises ValueError if patches do not tile it, or for none."""
        p = self.patch_size
        if p < 1 or height % p or width % p:
            raise ValueError(f"patch_size {p} must divide the images' height {height} and width {width}")
        patches = (height // p) * (width // p)
        if not (hidden := num_masked(self.ratio, patches)):
            raise ValueError(f"mask_ratio {self.ratio} hides none of an image's {patches} patches")
        return hidden

    def __call__(self, batch: Batch, step: Tensor, stream: int, fill: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised, mirrored and masked images, of fill's dtype (N, 3, S, S), and the mask, bool (N, S/p, S/p).

        fill: (3,), the colour of hidden pixels in normalised units; differentiable. See ops.patch_mask.
        """
        return patch_mask(
            batch.images,
            batch.index,
            step,
            batch.flip,
            fill,
            seed=self.seed,
            stream=stream,
            patch_size=self.patch_size,
            num_masked=self.hidden(*batch.images.shape[1:3]),
            mean=self.mean,
            std=self.std,
            dtype=fill.dtype,
            backend=self.backend,
        )


def visible_colour(x: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean colour of each image's visible pixels, (N, 3, 1, 1); 0 if nothing is visible.

    x (N, 3, S, S); hidden bool (N, 1, S, S).
    """
    visible = ~hidden
    return (x * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True).clamp(min=1)
