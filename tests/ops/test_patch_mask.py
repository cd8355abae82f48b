"""patch_mask: the definition against a loop over pixels, C++ against the definition bit for bit, gradients, registration."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fastdarts import native
from fastdarts.ops.backend import BackendUnavailable
from fastdarts.ops.patch_mask import definition, normalise, num_masked, patch_mask
from fastdarts.ops.philox import Purpose, random_words
from tests.ops.exactness import threads, uninitialised_memory_is_nan

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
needs_native = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
BACKENDS = ["definition", pytest.param("cpu", marks=needs_native)]
SHAPES = [(1, 1, 1, 1), (3, 4, 6, 2), (2, 15, 35, 5), (5, 7, 7, 7), (4, 32, 16, 4), (2, 9, 3, 1), (0, 8, 8, 4)]


def arguments(n, h, w, patch_size, count, dtype=torch.float32, seed=2**63 + 12345, stream=1):
    """Positional and keyword arguments of patch_mask for n random images."""
    draw = torch.Generator().manual_seed(n + 10 * h + 100 * w)
    images = torch.randint(256, (n, h, w, 3), generator=draw, dtype=torch.uint8)
    index = torch.randint(2**32, (n,), generator=draw)
    flip = torch.rand(n, generator=draw) < 0.5
    fill = torch.tensor([0.25, -1.5, 3.0], dtype=dtype)
    tensors = [images, index, torch.tensor([17]), flip, fill]
    given = {"seed": seed, "stream": stream, "patch_size": patch_size, "num_masked": count, "mean": MEAN, "std": STD}
    return tensors, given | {"dtype": dtype}


def pixel_by_pixel(images, index, step, flip, fill, *, seed, stream, patch_size, num_masked, mean, std, dtype):
    """The contract, read literally; numpy scalars of the compute dtype."""
    number = np.float64 if dtype == torch.float64 else np.float32
    n, h, w, _ = images.shape
    rows, cols = h // patch_size, w // patch_size
    x, mask = torch.full((n, 3, h, w), math.nan, dtype=dtype), torch.zeros(n, rows, cols, dtype=torch.bool)
    words = random_words(seed, stream, step, index, Purpose.MASK, rows * cols).tolist()
    for i in range(n):
        order = sorted((word, patch) for patch, word in enumerate(words[i]))
        for _, patch in order[:num_masked]:
            mask[i, patch // cols, patch % cols] = True
        for row in range(h):
            for col in range(w):
                source = w - 1 - col if flip[i] else col
                for c in range(3):
                    if mask[i, row // patch_size, col // patch_size]:
                        x[i, c, row, col] = fill[c]
                    else:
                        value = number(images[i, row, source, c].item())
                        x[i, c, row, col] = float((value - number(255 * mean[c])) * number(1 / (255 * std[c])))
    return x, mask


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_loop_over_pixels(shape, dtype, backend):
    n, h, w, p = shape
    patches = (h // p) * (w // p)
    tensors, given = arguments(n, h, w, p, (patches + 1) // 2, dtype)
    x, mask = patch_mask(*tensors, **given, backend=backend)
    expected_x, expected_mask = pixel_by_pixel(*tensors, **given)
    assert torch.equal(mask, expected_mask)
    assert torch.equal(x, expected_x)
    assert x.dtype == dtype
    assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_float32(dtype):
    tensors, given = arguments(3, 8, 12, 4, 2, dtype)
    x, mask = patch_mask(*tensors, **given)
    tensors[4] = tensors[4].float()
    exact, same = patch_mask(*tensors, **given | {"dtype": torch.float32})
    assert x.dtype == dtype
    assert torch.equal(mask, same)
    assert torch.equal(x, exact.to(dtype))


@needs_native
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_cpp_is_bitwise_definition(shape, dtype, n_threads, isa):
    n, h, w, p = shape
    patches = (h // p) * (w // p)
    with threads(n_threads), uninitialised_memory_is_nan():
        for count in sorted({0, 1, patches // 2, patches}):
            tensors, given = arguments(n, h, w, p, count, dtype)
            for flip in (tensors[3], torch.zeros(n, dtype=torch.bool), torch.ones(n, dtype=torch.bool)):
                tensors[3] = flip
                x, mask = patch_mask(*tensors, **given, backend="cpu")
                expected_x, expected_mask = patch_mask(*tensors, **given, backend="definition")
                assert torch.equal(x, expected_x)
                assert torch.equal(mask, expected_mask)
                assert x.stride() == expected_x.stride() or x.numel() < 100


@needs_native
def test_cpp_supports_any_strides():
    tensors, given = arguments(4, 8, 12, 4, 3)
    expected = patch_mask(*tensors, **given, backend="definition")
    images, index, step, flip, fill = tensors
    big = torch.zeros(8, 20, 30, 5, dtype=torch.uint8)
    big[::2, 4:12, 2:26:2, 1:4] = images
    for view in (big[::2, 4:12, 2:26:2, 1:4], images.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)):
        assert not view.is_contiguous()
        spread = torch.stack([index, index + 1], 1)[:, 0], step.expand(1), torch.stack([flip, ~flip], 1)[:, 0]
        x, mask = patch_mask(view, *spread, torch.stack([fill, fill + 1], 1)[:, 0], **given, backend="cpu")
        assert torch.equal(x, expected[0])
        assert torch.equal(mask, expected[1])


@needs_native
def test_cpp_is_bitwise_definition_for_all_pixel_values_and_many_masks(isa):
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3).repeat(64, 1, 1, 1)
    tensors, given = arguments(64, 16, 16, 1, 100)
    tensors[0] = images
    for seed in (0, 1, 2**63 - 1, 2**63, 2**64 - 1):
        for stream in (0, 255):
            given |= {"seed": seed, "stream": stream, "mean": (0.1, 1 / 3, 0.9), "std": (1e-3, 1 / 3, 7.0)}
            ours, theirs = (patch_mask(*tensors, **given, backend=b) for b in ("cpu", "definition"))
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_depend_on_image_step_and_seed(backend):
    tensors, given = arguments(6, 32, 32, 4, 20)
    x, mask = patch_mask(*tensors, **given, backend=backend)
    assert (mask.sum((1, 2)) == 20).all()
    for part in (slice(0, 2), slice(2, 6), [4, 1]):  # the same images in other batches
        few = [tensors[0][part], tensors[1][part], tensors[2], tensors[3][part], tensors[4]]
        again = patch_mask(*few, **given, backend=backend)
        assert torch.equal(again[0], x[part])
        assert torch.equal(again[1], mask[part])
    step = tensors[2]
    step += 1  # in place, as a captured graph would see it
    assert not torch.equal(patch_mask(*tensors, **given, backend=backend)[1], mask)
    step -= 1
    assert torch.equal(patch_mask(*tensors, **given, backend=backend)[1], mask)
    for change in ({"seed": 1}, {"stream": 0}):
        assert not torch.equal(patch_mask(*tensors, **given | change, backend=backend)[1], mask)
    tensors[3] = ~tensors[3]  # masks are chosen in the coordinates of the output
    assert torch.equal(patch_mask(*tensors, **given, backend=backend)[1], mask)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [12, 24, 36])
def test_masks_have_exact_count_and_uniform_frequency(count, backend):
    """Over 40,000 (image, step) pairs of 48 patches.

    Chi-square of the patches' frequencies has 47 degrees of freedom, so a mean of 47 and a deviation of 9.7; of pairs of
    neighbouring patches, too, which are drawn without replacement.
    """
    n, patches = 4000, 48
    tensors, given = arguments(n, 6, 8, 1, count)
    tensors[1] = torch.arange(n)
    hidden, both = torch.zeros(patches, dtype=torch.float64), torch.zeros(patches, dtype=torch.float64)
    for step in range(10):
        tensors[2] = torch.tensor([step])
        mask = patch_mask(*tensors, **given, backend=backend)[1].flatten(1)
        assert mask.sum(1).eq(count).all()
        hidden += mask.sum(0)
        both += (mask & mask.roll(1, 1)).sum(0)
    draws, p = 10 * n, count / patches
    chi_square = ((hidden - draws * p).square() / (draws * p * (1 - p))).sum() * (patches - 1) / patches
    assert 20 < chi_square < 90, "four and a half deviations"
    pairs = draws * p * (count - 1) / (patches - 1)
    assert (both - pairs).abs().max() < 5 * math.sqrt(pairs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_do_not_depend_on_batch(backend):
    """Whole, in three uneven parts, dealt out to three ranks, one by one."""
    tensors, given = arguments(12, 8, 8, 2, 7)
    x, mask = patch_mask(*tensors, **given, backend=backend)

    def of(part):
        images, index, step, flip, fill = tensors
        return patch_mask(images[part], index[part], step, flip[part], fill, **given, backend=backend)

    splits = [[slice(0, 5), slice(5, 6), slice(6, 12)], [slice(r, None, 3) for r in range(3)], [[i] for i in range(12)]]
    for split in splits:
        for part in split:
            assert torch.equal(of(part)[0], x[part]) and torch.equal(of(part)[1], mask[part])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_mask_equals_normalise(backend):
    tensors, given = arguments(3, 8, 12, 4, 0)
    x, mask = patch_mask(*tensors, **given, backend=backend)
    assert not mask.any()
    assert torch.equal(x, normalise(tensors[0], tensors[3], mean=MEAN, std=STD))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_fill(backend):
    tensors, given = arguments(3, 8, 12, 4, 2, torch.float64)
    fill = tensors[4].requires_grad_()
    x, mask = patch_mask(*tensors, **given, backend=backend)
    assert not mask.requires_grad
    dense = torch.randn(x.shape, dtype=torch.float64)
    pixels = mask[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    layouts = {
        "contiguous": dense,
        "channels_last": dense.contiguous(memory_format=torch.channels_last),
        "expanded": torch.tensor(0.7, dtype=torch.float64).expand(x.shape),
        "spread": torch.stack([dense, dense], -1)[..., 0],
    }
    for name, grad in layouts.items():
        (ours,) = torch.autograd.grad(x, fill, grad, retain_graph=True)
        assert_close(ours, (grad * pixels).sum((0, 2, 3)), rtol=1e-12, atol=1e-12, msg=name)
    dense[~pixels.expand_as(dense)] = math.nan  # unmasked pixels are ignored
    assert torch.autograd.grad(x, fill, dense)[0].isfinite().all()

    tensors, given = arguments(2, 4, 6, 2, 3, torch.float64)

    def call(fill):
        return patch_mask(*tensors[:4], fill, **given, backend=backend)[0]

    assert torch.autograd.gradcheck(call, (fill,))
    assert torch.autograd.gradgradcheck(call, (fill,))


def flat(tensors, given):
    """The registered op's arguments."""
    seed = given["seed"] - 2**64 if given["seed"] >= 2**63 else given["seed"]
    return (*tensors, seed, given["stream"], given["patch_size"], given["num_masked"], list(MEAN), list(STD))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    args = flat(*arguments(3, 8, 12, 4, 2, dtype))
    torch.library.opcheck(torch.ops.fastdarts.patch_mask.default, args)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_graph_break(backend):
    tensors, given = arguments(3, 8, 12, 4, 2)
    fill = tensors[4].requires_grad_()
    compiled = torch.compile(
        lambda *t: patch_mask(*t, **given, backend=backend), fullgraph=True, backend="aot_eager", dynamic=False
    )
    x, mask = compiled(*tensors)
    expected = patch_mask(*tensors, **given, backend="definition")
    assert torch.equal(x, expected[0])
    assert torch.equal(mask, expected[1])
    grads = [torch.autograd.grad(out.square().sum(), fill)[0] for out in (x, expected[0])]
    assert_close(*grads)


@needs_native
def test_registered_op_checks_bounds():
    tensors, given = arguments(3, 8, 12, 4, 2)
    op = torch.ops.fastdarts.patch_mask
    for i, wrong in ((0, tensors[0][:2]), (0, tensors[0][..., :2]), (1, tensors[1][:2]), (4, tensors[4][:2])):
        with pytest.raises(RuntimeError, match="patch_mask:"):
            op(*flat([*tensors[:i], wrong, *tensors[i + 1 :]], given))
    for change in ({"patch_size": 5}, {"patch_size": 0}, {"num_masked": 7}, {"num_masked": -1}):
        with pytest.raises(RuntimeError, match="patch_mask:"):
            op(*flat(tensors, given | change))
    with pytest.raises(RuntimeError, match="Float"):
        op(*flat([*tensors[:4], tensors[4].half()], given))


@pytest.mark.parametrize(
    ("position", "wrong"),
    [
        (0, torch.zeros(3, 8, 12, 3)),
        (0, torch.zeros(3, 3, 8, 12, dtype=torch.uint8)),
        (1, torch.zeros(3, dtype=torch.int32)),
        (1, torch.zeros(2, dtype=torch.int64)),
        (2, torch.zeros(2, dtype=torch.int64)),
        (2, torch.zeros(1)),
        (3, torch.zeros(3, dtype=torch.uint8)),
        (4, torch.zeros(3, dtype=torch.float64)),
        (4, torch.zeros(1)),
        (1, torch.zeros(3, dtype=torch.int64, device="meta")),
    ],
)
def test_invalid_tensors_are_named(position, wrong):
    tensors, given = arguments(3, 8, 12, 4, 2)
    tensors[position] = wrong
    name = ("images", "index", "step", "flip", "fill")[position]
    with pytest.raises(ValueError, match=f"^{name} "):
        patch_mask(*tensors, **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 5}, "patch_size 5 must divide the images' height 8 and width 12"),
        ({"patch_size": 0}, "patch_size 0 must divide"),
        ({"num_masked": 7}, r"num_masked must be 0\.\.6 .*got 7"),
        ({"num_masked": -1}, "num_masked"),
        ({"seed": -1}, "seed must be within"),
        ({"seed": 2**64}, "seed must be within"),
        ({"stream": 256}, "stream within"),
        ({"mean": (0.5,)}, "mean and std must be three"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"dtype": torch.int32}, "dtype must be"),
        ({"backend": "cuda9"}, "no backend 'cuda9'; it has auto, cpu, triton, definition"),
    ],
)
def test_invalid_settings_are_named(change, message):
    tensors, given = arguments(3, 8, 12, 4, 2)
    with pytest.raises(ValueError, match=message):
        patch_mask(*tensors, **given | change)


def test_explicit_unusable_backend_is_rejected_with_reason():
    tensors, given = arguments(3, 8, 12, 4, 2, torch.bfloat16)
    with pytest.raises(BackendUnavailable, match="compiled for float32 and float64, not for bfloat16"):
        patch_mask(*tensors, **given, backend="cpu")
    assert issubclass(BackendUnavailable, RuntimeError)


def test_seed_is_taken_modulo_2_64():
    tensors, given = arguments(3, 8, 12, 4, 2)
    assert torch.equal(definition(*flat(tensors, given))[1], patch_mask(*tensors, **given, backend="definition")[1])


@pytest.mark.parametrize(
    ("ratio", "patches", "count"), [(0.5, 49, 25), (0.75, 196, 147), (0.6, 49, 29), (0, 7, 0), (1, 7, 7), (0.5, 1, 1)]
)
def test_num_masked(ratio, patches, count):
    assert num_masked(ratio, patches) == count


@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan])
def test_num_masked_rejects_ratios_outside_0_1(ratio):
    with pytest.raises(ValueError, match="between 0 and 1"):
        num_masked(ratio, 10)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gpu_is_bitwise_identical_and_capturable(dtype):
    tensors, given = arguments(4, 32, 16, 4, 9, dtype)
    expected = patch_mask(*tensors, **given, backend="definition")
    on_gpu = [t.cuda() for t in tensors]
    x, mask = patch_mask(*on_gpu, **given)
    assert torch.equal(x.cpu(), expected[0])
    assert torch.equal(mask.cpu(), expected[1])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x, mask = patch_mask(*on_gpu, **given)
    on_gpu[2] += 1
    graph.replay()
    tensors[2] += 1
    assert torch.equal(mask.cpu(), patch_mask(*tensors, **given, backend="definition")[1])
