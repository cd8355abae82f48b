"""Synthetic images of ten classes that differ in texture and shape, not in colour.

A pattern maps two coordinates, in units of its period, to [0, 1]. An image uses it to blend two slanted colour ramps,
under slanted light, with noise. Everything varies smoothly over many pixels, so that masked patches can be predicted from
visible ones. Notation: H, W the size of the image.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

Array = np.ndarray
SIDES = (96, 161)  # range of the sides, end exclusive
GRAY_SHARE = 0.08  # share of grayscale files


def texture(name: str, number: int) -> Image.Image:
    """Draw image `number` of class `name`, a key of PATTERNS: RGB or L, W and H from SIDES. Deterministic."""
    rng = np.random.Generator(np.random.Philox(key=[list(PATTERNS).index(name), number]))
    width, height = rng.integers(*SIDES, size=2)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / 128
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.0)
    u = (np.cos(angle) * x + np.sin(angle) * y) / period + rng.uniform(0, 1)
    v = (np.cos(angle) * y - np.sin(angle) * x) / period + rng.uniform(0, 1)
    blend = PATTERNS[name](u, v)[..., None]
    back, front = (_ramp(x, y, rng) @ rng.uniform(0, 1, (2, 3)) for _ in range(2))
    light = _ramp(x, y, rng) @ rng.uniform((0.2, 0.8), (0.6, 1.3))
    pixels = 255 * (back + (front - back) * blend) * light[..., None] + rng.normal(0, 3, (height, width, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image.convert("L") if rng.uniform() < GRAY_SHARE else image


def _ramp(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Return the weights of a ramp's two ends along a random direction, (H, W, 2), summing to 1 at each pixel."""
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * (x - x.mean()) + np.sin(angle) * (y - y.mean())
    share = (slope - slope.min()) / np.ptp(slope)
    return np.stack((share, 1 - share), -1)


def _edge(value: Array) -> Array:
    """Return a step function at 0 with a soft edge."""
    return (0.5 + 6 * value).clip(0, 1)


def _cell(u: Array, v: Array) -> tuple[Array, Array]:
    """Return the distance from, and the angle around, the nearest point of the unit grid."""
    du, dv = u - np.round(u), v - np.round(v)
    return np.hypot(du, dv), np.arctan2(dv, du)


def _wave(u: Array) -> Array:
    return np.sin(2 * np.pi * u)


def _stars(u: Array, v: Array) -> Array:
    radius, angle = _cell(u, v)
    return _edge(0.32 + 0.12 * np.cos(5 * angle) - radius)


def _triangles(u: Array, v: Array) -> Array:
    a, b = (u + 0.5 * v) % 1, v % 1
    return _edge(np.minimum(np.minimum(a, b), 1 - a - b) - 0.08)


PATTERNS: dict[str, Callable[[Array, Array], Array]] = {
    "blobs": lambda u, v: _edge(_wave(0.7 * u + 0.4 * v) + _wave(0.9 * v - 0.3 * u) + _wave(0.5 * u - 0.6 * v)),
    "checkers": lambda u, v: _edge(_wave(0.7 * u) * _wave(0.7 * v)),
    "dots": lambda u, v: _edge(0.33 - _cell(u, v)[0]),
    "gradients": lambda u, v: 0.5 + 0.5 * _wave(0.4 * u),
    "plaid": lambda u, v: 0.6 * _edge(_wave(u)) + 0.4 * _edge(_wave(v)),
    "rings": lambda u, v: _edge(_wave(np.hypot(u, v))),
    "stars": _stars,
    "stripes": lambda u, v: _edge(_wave(u)),
    "triangles": _triangles,
    "waves": lambda u, v: _edge(_wave(u + 0.2 * _wave(v))),
}
