"""Augmentation on the device: each change against torchvision's for one image, cutout's square, and what keys the draws."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional as F

from fastdarts.batch import Batch
from fastdarts.ops.cutout import cutout_mask
from fastdarts.ops.patch_mask import normalise
from fastdarts.training import augment
from fastdarts.training.augment import Prepare, jitter

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
STEP = torch.tensor([3])


def batch(n: int = 4, size: int = 8, first: int = 0) -> Batch:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (16, size, size, 3), dtype=torch.uint8, generator=g)
    index = torch.arange(first, first + n)
    return Batch(images[index], index % 3, index, index % 2 == 0)


@pytest.mark.parametrize(
    ("name", "factor"),
    [(name, factor) for name in ("brightness", "contrast", "saturation") for factor in (0.0, 0.45, 1.0, 1.6)]
    + [("hue", shift) for shift in (-0.3, 0.0, 0.45)],
)
def test_colour_changes_equal_torchvision(name: str, factor: float) -> None:
    """Grey and black images included; hue within torchvision's own float32 rounding."""
    pixels = torch.rand(5, 3, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pixels[0, :, :4], pixels[1] = 0.3, 0.0
    ours = getattr(augment, name)(pixels, torch.full((5, 1, 1, 1), factor, dtype=torch.float64))
    theirs = getattr(F, f"adjust_{name}")(pixels, factor)
    assert torch.allclose(ours, theirs, rtol=0, atol=2e-6 if name == "hue" else 1e-15)


def test_jitter_applies_each_change_once_in_the_drawn_order() -> None:
    """Words say factor and order; computed one image at a time with torchvision."""
    strength = (0.4, 0.3, 0.2, 0.1)
    g = torch.Generator().manual_seed(2)
    words = torch.randint(2**32, (6, 8), generator=g)
    pixels = torch.rand(6, 3, 5, 5, dtype=torch.float64, generator=g)
    ours = jitter(pixels, words, strength)
    changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for n in range(6):
        one = pixels[n]
        uniform = [int(w) / 2**32 for w in words[n, :4]]
        factors = [1 - s + 2 * s * u for s, u in zip(strength[:3], uniform, strict=False)] + [-0.1 + 0.2 * uniform[3]]
        for which in words[n, 4:].argsort().tolist():
            one = changes[which](one, factors[which])
        assert torch.allclose(ours[n], one, rtol=0, atol=5e-6)


@pytest.mark.parametrize(("centre", "rows", "columns"), [((0, 7), (0, 2), (5, 8)), ((4, 4), (2, 6), (2, 6))])
def test_cutout_is_clipped_at_the_border(centre: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    """DARTS': from centre - side // 2 to centre + side // 2, inside the image; an odd side loses a pixel."""
    words = torch.tensor([[centre[0] * 2**32 // 8 + 1, centre[1] * 2**32 // 8 + 1]])
    expected = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    expected[0, 0, rows[0] : rows[1], columns[0] : columns[1]] = True
    assert torch.equal(cutout_mask(words, 8, 4), expected)
    assert torch.equal(cutout_mask(words, 8, 5), expected)


def test_cutout_hides_after_normalisation() -> None:
    """Hidden pixels have the mean colour, 0; the others are the normalised, flipped image."""
    prepare, images = Prepare(MEAN, STD, cutout=4), batch()
    x = prepare.train(images, STEP, torch.float32)
    plain = normalise(images.images, images.flip, mean=MEAN, std=STD)
    assert torch.equal(plain, prepare.evaluate(images, torch.float32))
    hidden = (x == 0).all(1)
    assert ((hidden.sum((1, 2)) >= 4) & (hidden.sum((1, 2)) <= 16)).all()
    assert torch.equal(x.permute(0, 2, 3, 1)[~hidden], plain.permute(0, 2, 3, 1)[~hidden])


def test_draws_depend_on_seed_step_and_image_only() -> None:
    """The same image gets the same augmentation in another batch, another one at another step or with another seed."""
    prepare = Prepare(MEAN, STD, cutout=4, jitter=(0.4, 0.4, 0.4, 0.2))
    whole, part = prepare.train(batch(6), STEP, torch.float32), prepare.train(batch(2, first=3), STEP, torch.float32)
    assert torch.equal(whole[3:5], part)
    assert not torch.equal(whole, prepare.train(batch(6), STEP + 1, torch.float32))
    assert not torch.equal(whole, prepare._replace(seed=1).train(batch(6), STEP, torch.float32))


def test_centres_are_uniform() -> None:
    """Of 4,000 images each row and column is the centre of 250 to 750 (expected 500), and float64 stays float64."""
    prepare = Prepare(MEAN, STD, cutout=2)
    index = torch.arange(4000)
    images = torch.full((4000, 8, 8, 3), 255, dtype=torch.uint8)
    x = prepare.train(Batch(images, index % 2, index, index < 0), STEP, torch.float64)
    assert x.dtype == torch.float64
    hidden = (x == 0).all(1)
    last = hidden.flatten(1).int().cumsum(1).argmax(1)  # bottom right pixel of the square = its centre
    for counts in (last.div(8, rounding_mode="floor").bincount(minlength=8), (last % 8).bincount(minlength=8)):
        assert counts.min() > 250 and counts.max() < 750


class Copies(TorchDispatchMode):
    """Fails at operators that make a tensor of numbers on the host, which a GPU would wait for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten.lift_fresh.default, torch.ops.aten._local_scalar_dense.default), func
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_or_copied_from_the_host() -> None:
    """So that a step with all augmentation can be captured in a CUDA graph."""
    prepare, images = Prepare(MEAN, STD, cutout=4, jitter=(0.4, 0.4, 0.4, 0.2)), batch()
    with Copies():
        prepare.train(images, STEP, torch.float32)
