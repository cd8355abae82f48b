"""The grid of images: positions, clamping, invalid input."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastdarts.report import picture_grid


def test_pixels_are_placed_correctly(tmp_path):
    masked, drawn = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 2.0, dtype=torch.bfloat16)
    original = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    original[1, 0] = 255
    drawn[0, 1] = float("nan")
    picture_grid(masked, drawn, original, tmp_path / "grid.png")
    page = np.asarray(Image.open(tmp_path / "grid.png"))
    assert page.shape == (30 + 2 * 200, 3 * 192 + 4 * 8, 3)
    assert not page[30:222, 8:200].any()
    assert (page[30:222, 208:400] == [255, 0, 255]).all()  # clamped, NaN is black
    assert (page[30:222, 408:600] == 51).all()
    assert (page[230:422, 408:600] == [255, 51, 51]).all()


def test_large_images_keep_size(tmp_path):
    picture_grid(*torch.rand(3, 1, 3, 224, 224), tmp_path / "grid.png", captions=("a", "b", "c"))
    assert Image.open(tmp_path / "grid.png").size == (3 * 224 + 4 * 8, 30 + 224 + 8)


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (0, 3, 4, 4), (3, 4, 4)])
def test_invalid_shapes_are_rejected(tmp_path, shape):
    with pytest.raises(ValueError, match="three tensors of one shape"):
        picture_grid(*torch.zeros(3, *shape), tmp_path / "grid.png")


def test_invalid_dtype_and_captions_are_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"not torch\.int64"):
        picture_grid(*torch.zeros(3, 1, 3, 4, 4, dtype=torch.int64), tmp_path / "grid.png")
    with pytest.raises(ValueError, match="three captions"):
        picture_grid(*torch.zeros(3, 1, 3, 4, 4), tmp_path / "grid.png", captions=("one",))
