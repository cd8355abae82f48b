"""Colour bins of colourisation: the ab plane of CIE Lab in steps of 10.

Source: Zhang et al., "Colorful Image Colorization", ECCV 2016, section 2.1.

Notation: N images, S pixels a side.
"""

import torch
from torch import Tensor

STEP = 10  # of a and b between neighbouring bins

# The 313 published bins: for each a, the lowest and the highest b. They are the corners of the 10 x 10 squares that sRGB's
# gamut touches, and four points just outside.
ROWS = {
    **{-90: (50, 90), -80: (20, 90), -70: (0, 90), -60: (-20, 90), -50: (-30, 100), -40: (-40, 100), -30: (-50, 100)},
    **{-20: (-50, 100), -10: (-60, 100), 0: (-70, 100), 10: (-80, 90), 20: (-80, 90), 30: (-90, 90), 40: (-100, 90)},
    **{50: (-100, 80), 60: (-110, 80), 70: (-110, 80), 80: (-110, 70), 90: (-110, 70), 100: (-90, 0)},
}
BINS = [(a, b) for a, (low, high) in ROWS.items() for b in range(low, high + STEP, STEP)]
FIRST_A, FIRST_B = min(ROWS), min(low for low, _ in ROWS.values())

RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)  # D65


def lab(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Convert sRGB in [0, 1], (N, 3, S, S), to L in [0, 100], a and b, each (N, S, S) (CIE 1976, white D65)."""
    linear = torch.where(pixels > 0.04045, ((pixels + 0.055) / 1.055) ** 2.4, pixels / 12.92).unbind(1)
    fx, fy, fz = (
        _f((row[0] * linear[0] + row[1] * linear[1] + row[2] * linear[2]) / w) for row, w in zip(RGB_TO_XYZ, WHITE, strict=True)
    )
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def _f(t: Tensor) -> Tensor:
    edge = 6 / 29
    return torch.where(t > edge**3, t.clamp(min=edge**3) ** (1 / 3), t / (3 * edge**2) + 4 / 29)


def bin_table() -> Tensor:
    """Return int64 (A, B): the bin's number at ((a - FIRST_A) / 10, (b - FIRST_B) / 10), -1 for none."""
    shape = (max(ROWS) - FIRST_A) // STEP + 1, (max(high for _, high in ROWS.values()) - FIRST_B) // STEP + 1
    rows = [[-1] * shape[1] for _ in range(shape[0])]
    for number, (a, b) in enumerate(BINS):
        rows[(a - FIRST_A) // STEP][(b - FIRST_B) // STEP] = number
    return torch.tensor(rows)


def nearest_bin(a: Tensor, b: Tensor, table: Tensor) -> Tensor:
    """Return the number of each pixel's nearest bin, int64 of a's shape.

    The bins form a regular grid with every corner of each square that a colour can be in, so rounding finds the nearest.
    """
    return table[((a - FIRST_A) / STEP).round().long(), ((b - FIRST_B) / STEP).round().long()]
