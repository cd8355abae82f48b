"""random_resized_crop: the definition against a loop over pixels and against Pillow, C++ against it bit for bit, refusals."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdarts import native
from fastdarts.data.crop import WORDS, crop_box
from fastdarts.ops.random_resized_crop import MOST_SIDE, definition, random_resized_crop, weights
from tests.ops.exactness import threads, uninitialised_memory_is_nan

needs_native = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
BACKENDS = ["definition", pytest.param("cpu", marks=needs_native)]
Crops = tuple[Tensor, Tensor, Tensor, Tensor]  # pixels, start, size, boxes
# height and width of the image, then the box: whole images, single pixels and lines, more and fewer pixels than the result
SMALL = [
    (1, 1, (0, 0, 1, 1)),
    (5, 7, (0, 0, 5, 7)),
    (9, 4, (3, 1, 6, 2)),
    (6, 31, (2, 4, 1, 27)),
    (40, 3, (1, 2, 37, 1)),
    (8, 8, (0, 4, 4, 4)),
    (23, 19, (5, 0, 18, 19)),
]


def crops(places: list[tuple[int, int, tuple[int, int, int, int]]], seed: int = 0) -> Crops:
    """A cache of noise with a few bytes between the images, which stand in it from the last to the first."""
    draw = torch.Generator().manual_seed(seed)
    start, place = [], 3
    for height, width, _ in reversed(places):
        start.insert(0, place)
        place += 3 * height * width + len(start)
    pixels = torch.randint(256, (place,), generator=draw, dtype=torch.uint8)
    size = torch.tensor([p[:2] for p in places], dtype=torch.int64).reshape(-1, 2)
    boxes = torch.tensor([p[2] for p in places], dtype=torch.int64).reshape(-1, 4)
    return pixels, torch.tensor(start, dtype=torch.int64), size, boxes


def photographs(n: int, height: int, width: int, seed: int = 0) -> Crops:
    """Smooth images with noise, and boxes as a search draws them."""
    draw = torch.Generator().manual_seed(seed)
    coarse = 255 * torch.rand(n, 3, height // 8 + 2, width // 8 + 2, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    noisy = (smooth + 10 * torch.randn(smooth.shape, generator=draw)).clamp(0, 255).round().byte()
    boxes = [crop_box(torch.randint(2**32, (WORDS,), generator=draw).tolist(), width, height) for _ in range(n)]
    size = torch.tensor([[height, width]], dtype=torch.int32).repeat(n, 1)
    start = 3 * height * width * torch.arange(n)
    return noisy.permute(0, 2, 3, 1).flatten(), start, size, torch.tensor(boxes)


def axis_weights(n: int, S: int) -> list[list[int]]:
    """The docstring's w_ij, read literally in fractions of pixels."""
    found = []
    half = max(Fraction(1), Fraction(n, S))
    for i in range(S):
        centre = Fraction(2 * i + 1, 2) * n / S
        shares = [max(Fraction(0), 1 - abs(j + Fraction(1, 2) - centre) / half) for j in range(n)]
        upto = [floor(2**14 * sum(shares[:j]) / sum(shares) + Fraction(1, 2)) for j in range(n + 1)]
        found.append([upto[j + 1] - upto[j] for j in range(n)])
    return found


def pixel_by_pixel(crops: Crops, S: int) -> Tensor:
    """The contract, one number after the other."""
    pixels, start, size, boxes = (t.tolist() for t in crops)
    out = torch.empty(len(start), S, S, 3, dtype=torch.uint8)
    for n, (first, (_, width), (top, left, h, w)) in enumerate(zip(start, size, boxes, strict=True)):
        down, across = axis_weights(h, S), axis_weights(w, S)
        for c in range(3):
            lines = []
            for row in range(top, top + h):
                line = [pixels[first + 3 * (row * width + left + j) + c] for j in range(w)]
                lines.append([(sum(x * k for x, k in zip(line, across[i], strict=True)) + 2**13) >> 14 for i in range(S)])
            for i in range(S):
                for j in range(S):
                    out[n, i, j, c] = (sum(lines[k][j] * down[i][k] for k in range(h)) + 2**13) >> 14
    return out


def pillow(crops: Crops, S: int) -> Tensor:
    """What torchvision's resized_crop gives of the cached images as PIL images."""
    from PIL import Image

    pixels, start, size, boxes = (t.numpy() for t in crops)
    found = []
    for first, (height, width), (top, left, h, w) in zip(start, size, boxes, strict=True):
        image = Image.fromarray(pixels[first : first + 3 * height * width].reshape(height, width, 3))
        box = image.crop((int(left), int(top), int(left + w), int(top + h)))
        found.append(np.asarray(box.resize((S, S), Image.Resampling.BILINEAR)))
    return torch.from_numpy(np.stack(found))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("S", [1, 2, 5, 8])
def test_equals_loop_over_pixels(S: int, backend: str) -> None:
    given = crops(SMALL)
    out = random_resized_crop(*given, image_size=S, backend=backend)
    assert out.dtype == torch.uint8 and out.is_contiguous()
    assert torch.equal(out, pixel_by_pixel(given, S))


@pytest.mark.parametrize(("n", "S"), [(1, 1), (1, 7), (2, 3), (7, 7), (5, 64), (90, 64), (340, 224), (1000, 3), (6000, 1)])
def test_weights_sum_to_one(n: int, S: int) -> None:
    found = weights(n, S)
    assert found.shape == (S, n) and bool((found >= 0).all())
    assert bool((found.sum(1) == 2**14).all())
    if n * n * S < 10**5:
        assert found.tolist() == axis_weights(n, S)
    if n == S:
        assert torch.equal(found, 2**14 * torch.eye(n, dtype=torch.int64))
    assert found.count_nonzero(1).max() <= min(n, -(-2 * max(n, S) // S))
    mirrored = found.flip(0, 1)  # rounded towards the other end
    assert int((found - mirrored).abs().max()) <= 1


@pytest.mark.parametrize(
    ("height", "width", "S"), [(256, 340, 224), (73, 90, 64), (48, 48, 48), (256, 340, 64), (500, 375, 32), (40, 50, 224)]
)
def test_matches_pillow(height: int, width: int, S: int) -> None:
    pytest.importorskip("PIL")
    given = photographs(32, height, width)
    off = (random_resized_crop(*given, image_size=S).int() - pillow(given, S).int()).abs()
    assert int(off.max()) <= 1
    assert float(off.double().mean()) < 0.1
    # Pillow 13 takes the columns first where a box is higher than S and narrow: another place to round
    wide = given[3][:, 2] <= given[3][:, 3]
    assert wide.any() and float(off[wide].double().mean()) < 0.02


def test_matches_pillow_at_odd_sizes_and_extreme_pixels() -> None:
    pytest.importorskip("PIL")
    given = crops(SMALL)
    given[0][:] = 255 * (given[0] > 127)
    for S in (1, 2, 3, 5, 17):
        assert int((random_resized_crop(*given, image_size=S).int() - pillow(given, S).int()).abs().max()) <= 1


def test_matches_torchvision() -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    from PIL import Image

    given = photographs(16, 60, 80)
    theirs = torch.empty(16, 32, 32, 3, dtype=torch.uint8)
    for n, (top, left, h, w) in enumerate(given[3].tolist()):
        image = Image.fromarray(given[0].view(16, 60, 80, 3)[n].numpy())
        theirs[n] = torch.from_numpy(np.array(functional.resized_crop(image, top, left, h, w, [32, 32])))
    off = (random_resized_crop(*given, image_size=32).int() - theirs.int()).abs()
    assert int(off.max()) <= 1 and float(off.double().mean()) < 0.1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_constant_box_keeps_colour(value: int, backend: str) -> None:
    given = crops([*SMALL, (700, 900, (0, 0, 700, 900))])
    given[0].fill_(value)
    for S in (3, 16):
        assert bool((random_resized_crop(*given, image_size=S, backend=backend) == value).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_outside_box_are_ignored(backend: str) -> None:
    pixels, start, size, boxes = crops(SMALL)
    want = random_resized_crop(pixels, start, size, boxes, image_size=6, backend=backend)
    other = 255 - pixels
    for first, (height, width), (top, left, h, w) in zip(start.tolist(), size.tolist(), boxes.tolist(), strict=True):
        here = slice(first, first + 3 * height * width)
        box = slice(top, top + h), slice(left, left + w)
        other[here].view(height, width, 3)[box] = pixels[here].view(height, width, 3)[box]
    assert torch.equal(random_resized_crop(other, start, size, boxes, image_size=6, backend=backend), want)


@needs_native
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("S", [1, 3, 4, 16, 33, 64, 224])
def test_cpp_is_bitwise_definition(S: int, n_threads: int, isa: str) -> None:
    large = [(300, 500, (7, 11, 280, 480)), (64, 1500, (0, 0, 64, 1500)), (S, S, (0, 0, S, S)), (90, 120, (3, 5, 64, 64))]
    for given in (crops(SMALL + large, S), photographs(5, 73, 90, S)):
        with threads(n_threads), uninitialised_memory_is_nan():
            ours = random_resized_crop(*given, image_size=S, backend="cpu")
        assert torch.equal(ours, definition(*given, S))


@needs_native
def test_cpp_is_bitwise_definition_at_largest_side(isa: str) -> None:
    given = crops([(1, MOST_SIDE, (0, 0, 1, MOST_SIDE)), (MOST_SIDE, 2, (0, 0, MOST_SIDE, 1)), (2, 2, (0, 0, 2, 2))])
    for S in (1, 2, 50):
        assert torch.equal(random_resized_crop(*given, image_size=S, backend="cpu"), definition(*given, S))


@needs_native
def test_cpp_stays_within_box_at_end_of_cache(isa: str) -> None:
    pixels, start, size, boxes = crops([(4, 5, (0, 0, 4, 5))])
    exact = pixels[start[0] : start[0] + 60].clone()  # a buffer that ends with the last pixel
    out = random_resized_crop(exact, torch.zeros(1, dtype=torch.int64), size, boxes, image_size=9, backend="cpu")
    assert torch.equal(out, random_resized_crop(pixels, start, size, boxes, image_size=9, backend="definition"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend: str) -> None:
    given = crops([])
    assert random_resized_crop(*given, image_size=5, backend=backend).shape == (0, 5, 5, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_mapped_cache_and_other_strides(backend: str, tmp_path) -> None:
    pixels, start, size, boxes = crops(SMALL)
    path = tmp_path / "cache"
    pixels.numpy().tofile(path)
    mapped = torch.from_file(str(path), size=pixels.numel(), dtype=torch.uint8)
    spread = [torch.stack([t, t + 1], 1)[:, 0] for t in (start, size.int(), boxes)]
    want = random_resized_crop(pixels, start, size, boxes, image_size=6, backend="definition")
    assert torch.equal(random_resized_crop(mapped, *spread, image_size=6, backend=backend), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_offsets_beyond_2_31_bytes(backend: str, tmp_path) -> None:
    path, far = tmp_path / "cache", 2**32 + 5
    with path.open("wb") as file:
        file.truncate(far + 3 * 40 * 30)  # sparse: no room is taken
    mapped = torch.from_file(str(path), shared=True, size=far + 3 * 40 * 30, dtype=torch.uint8)
    image, _, size, boxes = crops([(40, 30, (5, 6, 31, 22))])
    mapped[far:] = image[3 : 3 + 3600]
    out = random_resized_crop(mapped, torch.tensor([far]), size, boxes, image_size=8, backend=backend)
    assert torch.equal(out, definition(image, torch.tensor([3]), size, boxes, 8))


def test_opcheck_and_compile() -> None:
    given = crops(SMALL)
    torch.library.opcheck(torch.ops.fastdarts.random_resized_crop.default, (*given, 6))
    compiled = torch.compile(lambda *t: random_resized_crop(*t, image_size=6, backend="auto"), fullgraph=True, backend="eager")
    if native.reason() is None:
        assert torch.equal(compiled(*given), definition(*given, 6))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("which", "value", "message"),
    [
        ("start", -1, r"image 2 of 9 x 4 pixels at -1 is not inside the buffer of \d+ bytes"),
        ("start", 2**40, "is not inside the buffer"),
        ("height", 0, "image 2 is 0 x 4 pixels, a side must be 1..16384"),
        ("height", 2**62, "a side must be"),
        ("width", MOST_SIDE + 1, "a side must be"),
        ("top", -1, r"box 2 \(top -1, left 1, 6 x 2\) is not inside its image of 9 x 4 pixels"),
        ("top", 4, "box 2"),
        ("top", 2**63 - 1, "box 2"),
        ("left", 3, "box 2"),
        ("left", -(2**63), "box 2"),
        ("h", 0, "box 2"),
        ("h", 7, "box 2"),
        ("w", 2**62, "box 2"),
    ],
)
def test_out_of_bounds_input_is_named(which: str, value: int, message: str, backend: str) -> None:
    pixels, start, size, boxes = crops(SMALL)
    places = {"start": start[2:3], "height": size[2, :1], "width": size[2, 1:]}
    places |= {name: boxes[2, i : i + 1] for i, name in enumerate(("top", "left", "h", "w"))}
    places[which].fill_(value)
    with pytest.raises(ValueError, match=message):
        random_resized_crop(pixels, start, size, boxes, image_size=4, backend=backend)


@pytest.mark.parametrize(
    ("position", "wrong"),
    [
        (0, torch.zeros(9)),
        (0, torch.zeros(3, 3, dtype=torch.uint8)),
        (0, torch.zeros(9, 2, dtype=torch.uint8)[:, 0]),
        (1, torch.zeros(7, dtype=torch.int32)),
        (2, torch.zeros(7, 2)),
        (2, torch.zeros(6, 2, dtype=torch.int64)),
        (3, torch.zeros(7, 4, dtype=torch.int32)),
        (3, torch.zeros(7, 3, dtype=torch.int64)),
        (3, torch.zeros(7, 4, dtype=torch.int64, device="meta")),
    ],
)
def test_invalid_tensors_are_named(position: int, wrong: Tensor) -> None:
    given = [*crops(SMALL)]
    given[position] = wrong
    with pytest.raises(ValueError, match=f"^{('pixels', 'start', 'size', 'boxes')[position]} "):
        random_resized_crop(*given, image_size=4)


def test_invalid_settings_are_named() -> None:
    for S in (0, -1, MOST_SIDE + 1):
        with pytest.raises(ValueError, match=rf"image_size must be 1\.\.16384, got {S}"):
            random_resized_crop(*crops(SMALL), image_size=S)
    with pytest.raises(ValueError, match="it has auto, cpu, triton, definition"):
        random_resized_crop(*crops(SMALL), image_size=4, backend="cuda9")


@needs_native
def test_registered_op_checks_bounds() -> None:
    pixels, start, size, boxes = crops(SMALL)
    op = torch.ops.fastdarts.random_resized_crop
    wrong = [
        (pixels[::2], start, size, boxes, 4),
        (pixels, start[:3], size, boxes, 4),
        (pixels, start, size[:, :1], boxes, 4),
        (pixels, start, size.double(), boxes, 4),
        (pixels, start, size, boxes[:, :3], 4),
        (pixels, start, size, boxes, 0),
    ]
    for args in wrong:
        with pytest.raises(RuntimeError, match="random_resized_crop:"):
            op(*args)
    with pytest.raises(RuntimeError, match="Long"):
        op(pixels, start, size, boxes.int(), 4)
