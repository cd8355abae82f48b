"""masked_loss: definition and C++ against formulas in extended precision, gradients, threads, memory, registration."""

import logging
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdarts.logs import say_once
from fastdarts.ops.backend import BackendUnavailable, refusals
from fastdarts.ops.masked_loss import definition, masked_loss
from fastdarts.ops.patch_mask import normalise
from tests.ops.exactness import threads, uninitialised_memory_is_nan
from tests.support import naive

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMS = ["l1", "l2"]
WHY_NOT = refusals("masked_loss", torch.device("cpu"), torch.float32)["cpu"]
needs_native = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
BACKENDS = ["definition", pytest.param("cpu", marks=needs_native)]

SHAPES = {  # N, H, W, p, sizes of the levels, share of masked patches
    "mae-imagenet": (2, 224, 224, 8, [(28, 28), (14, 14), (7, 7)], 0.5),
    "mae-cifar": (5, 32, 32, 4, [(32, 32), (16, 16), (8, 8)], 0.75),
    "odd ratios": (3, 15, 35, 5, [(4, 9), (7, 34), (14, 1)], 0.5),
    "one level": (1, 6, 9, 3, [(2, 3)], 0.4),
    "smaller": (2, 12, 20, 4, [(13, 27), (40, 21), (24, 40), (12, 20)], 0.5),
    "one pixel": (4, 1, 1, 1, [(1, 1), (3, 5)], 0.6),
    "one column": (2, 33, 3, 3, [(5, 7), (33, 1)], 0.5),
    "sparse": (9, 28, 28, 2, [(7, 7), (4, 4)], 0.02),
    "dense": (2, 16, 48, 16, [(5, 5)], 1.0),
    "many images": (65, 6, 4, 1, [(2, 2), (3, 1)], 0.3),
}


def arguments(shape, dtype=torch.float64, seed=0, offset=0.0):
    """(levels, bias, images, flip, mask) at random; the first level's mean is `offset`."""
    n, h, w, p, sizes, share = shape
    draw = torch.Generator().manual_seed(seed + n + 10 * h + 100 * w)
    levels = [torch.randn(n, 3, *size, generator=draw, dtype=dtype) + offset * (i == 0) for i, size in enumerate(sizes)]
    bias = torch.randn(3, generator=draw, dtype=dtype)
    images = torch.randint(256, (n, h, w, 3), generator=draw, dtype=torch.uint8)
    flip = torch.rand(n, generator=draw) < 0.5
    mask = torch.rand(n, h // p, w // p, generator=draw) < share
    mask[0, 0, 0] = True
    return levels, bias, images, flip, mask


def loss_and_gradients(levels, bias, images, flip, mask, *, norm, **given):
    """The loss, each level's gradient, the bias' gradient."""
    levels, bias = [t.detach().requires_grad_() for t in levels], bias.detach().requires_grad_()
    loss = masked_loss(levels, bias, images, flip, mask, mean=MEAN, std=STD, norm=norm, **given)
    return [loss.detach(), *torch.autograd.grad(loss, [*levels, bias])]


def interpolation(out, size):
    """The (out, size) matrix of bilinear interpolation, from fractions: number i looks at (i + 1/2) * size / out - 1/2."""
    matrix = np.zeros((out, size), dtype=np.longdouble)
    for i in range(out):
        at = max(Fraction(2 * i + 1, 2) * size / out - Fraction(1, 2), Fraction(0))
        low = at.numerator // at.denominator
        share = np.longdouble((at - low).numerator) / (at - low).denominator
        matrix[i, low] += 1 - share
        matrix[i, min(low + 1, size - 1)] += share
    return matrix


def formulas(levels, bias, images, flip, mask, *, norm):
    """The same in extended precision, nothing of the library: matrices for the upsampling and its transpose."""
    h, w = images.shape[1:3]
    target = (images.numpy().astype(np.longdouble) / 255 - np.array(MEAN)) / np.array(STD)
    target = np.stack([image[:, ::-1] if f else image for image, f in zip(target, flip.tolist(), strict=True)])
    p = h // mask.shape[1]
    masked = mask.numpy().repeat(p, 1).repeat(p, 2)[..., None]
    across = [(interpolation(h, t.shape[2]), interpolation(w, t.shape[3])) for t in levels]
    error = bias.numpy().astype(np.longdouble) - target
    for t, (rows, cols) in zip(levels, across, strict=True):
        error = error + np.einsum("yi,ncij,xj->nyxc", rows, t.numpy().astype(np.longdouble), cols, optimize=True)
    terms = 3 * int(masked.sum())
    error = np.where(masked, error, 0)
    loss = (np.abs(error) if norm == "l1" else error**2).sum() / terms
    slope = (np.sign(error) if norm == "l1" else 2 * error) / terms
    grads = [np.einsum("yi,nyxc,xj->ncij", rows, slope, cols, optimize=True) for rows, cols in across]
    return [loss, *grads, slope.sum((0, 1, 2))]


def worst(got, want):
    return float(np.abs(got.numpy().astype(np.longdouble) - want).max())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("norm", NORMS)
def test_definition_follows_formulas(name, norm):
    args = arguments(SHAPES[name])
    for got, want in zip(loss_and_gradients(*args, norm=norm, backend="definition"), formulas(*args, norm=norm), strict=True):
        assert worst(got, want) <= 1e-13 * np.abs(want).max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("norm", "power"), [("l1", 1), ("l2", 2)])
def test_pixels_equal_naive_reference(norm, power, backend):
    levels, bias, images, flip, mask = arguments((3, 12, 12, 4, [(12, 12), (6, 6), (4, 4), (1, 1)], 0.5))
    prediction = sum(naive.upsample(t, 12 // t.shape[2]) for t in levels) + bias.reshape(1, 3, 1, 1)
    target = naive.normalised(images, MEAN, STD, flip.tolist())
    want = naive.masked_loss(prediction, target, naive.pixel_mask(mask, 4), power)
    got = masked_loss(levels, bias, images, flip, mask, mean=MEAN, std=STD, norm=norm, backend=backend)
    naive.assert_close(got, want, tol=1e-13)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", SHAPES)
def test_cpp_is_as_exact_as_eager(name, norm, dtype, isa):
    """max|x - ref| <= 2 max|eager - ref| + 4 eps max|ref|, for the loss and every gradient."""
    for seed, offset in ((0, 0.0), (1, 0.0), (2, 1e3)):
        args = arguments(SHAPES[name], dtype, seed, offset)
        with uninitialised_memory_is_nan():
            ours = loss_and_gradients(*args, norm=norm, backend="cpu")
        eager = loss_and_gradients(*args, norm=norm, backend="definition")
        reference = formulas(*args, norm=norm)
        for part, (x, e, ref) in enumerate(zip(ours, eager, reference, strict=True)):
            bound = 2 * worst(e, ref) + 4 * torch.finfo(dtype).eps * float(np.abs(ref).max())
            assert worst(x, ref) <= bound, f"part {part}: {worst(x, ref):.3e}, allowed {bound:.3e}"
            assert x.dtype == dtype


@needs_native
@pytest.mark.parametrize("norm", NORMS)
def test_cpp_supports_any_strides(norm, isa):
    levels, bias, images, flip, mask = arguments(SHAPES["odd ratios"], torch.float32)
    want = loss_and_gradients(levels, bias, images, flip, mask, norm=norm, backend="cpu")
    big = torch.zeros(6, 20, 60, 5, dtype=torch.uint8)
    big[::2, 4:19, 2:37, 1:4] = images
    layouts = {
        "channels_last": [t.contiguous(memory_format=torch.channels_last) for t in levels],
        "sliced": [torch.stack([t, t + 1], -1)[..., 0] for t in levels],
        "transposed": [t.transpose(2, 3).contiguous().transpose(2, 3) for t in levels],
    }
    for name, same in layouts.items():
        spread = torch.stack([bias, bias], 1)[:, 0], big[::2, 4:19, 2:37, 1:4], torch.stack([flip, ~flip], 1)[:, 0]
        got = loss_and_gradients(same, *spread, mask.permute(2, 1, 0).contiguous().permute(2, 1, 0), norm=norm, backend="cpu")
        assert all(map(torch.equal, got, want)), name
    colour = torch.randn(3, 3, 1, 1)
    expanded, dense = colour.expand(3, 3, 15, 35), colour.repeat(1, 1, 15, 35)
    got, want = (loss_and_gradients([t], bias, images, flip, mask, norm=norm, backend="cpu") for t in (expanded, dense))
    assert all(map(torch.equal, got, want))


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_cpp_is_bitwise_identical_for_any_number_of_threads(norm, dtype, isa):
    args = arguments(SHAPES["many images"], dtype), arguments(SHAPES["odd ratios"], dtype)
    for some in args:
        runs = []
        for n in (1, 1, 2, 4):
            with threads(n):
                runs.append(loss_and_gradients(*some, norm=norm, backend="cpu"))
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
def test_loss_without_gradient_is_identical(norm, backend):
    levels, bias, *rest = arguments(SHAPES["odd ratios"], torch.float32)
    given = {"mean": MEAN, "std": STD, "norm": norm, "backend": backend}
    plain = masked_loss(levels, bias, *rest, **given)
    bias.requires_grad_()
    with torch.no_grad():
        quiet = masked_loss(levels, bias, *rest, **given)
    loss = masked_loss(levels, bias, *rest, **given)
    assert not plain.requires_grad
    assert not quiet.requires_grad
    assert loss.requires_grad
    assert torch.equal(plain, loss)
    assert torch.equal(quiet, loss)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
def test_second_derivatives_use_definition(norm, backend):
    levels, bias, *rest = arguments((2, 8, 12, 4, [(2, 3), (5, 4)], 0.6))
    inputs = [t.requires_grad_() for t in (bias, *levels)]

    def loss(bias, *levels):
        return masked_loss(levels, bias, *rest, mean=MEAN, std=STD, norm=norm, backend=backend)

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


@needs_native
def test_requested_gradients_only_and_through_dependent_levels(caplog):
    levels, bias, *rest = arguments((2, 8, 12, 4, [(2, 3), (2, 3)], 0.6))
    first = levels[0].requires_grad_()
    say_once.cache_clear()
    grads = {}
    for backend in ("cpu", "definition"):

        def loss(backend=backend):
            made = [first, first.square(), first, levels[1]]
            return 3 * masked_loss(made, bias, *rest, mean=MEAN, std=STD, norm="l2", backend=backend)

        with caplog.at_level(logging.INFO, logger="fastdarts"):
            (once,) = torch.autograd.grad(loss(), first, create_graph=True)
            (twice,) = torch.autograd.grad(once.square().sum(), first)
        grads[backend] = [once, twice, *torch.autograd.grad(loss(), first)]
    for got, want in zip(grads["cpu"], grads["definition"], strict=True):
        naive.assert_close(got, want, tol=1e-12)
    said = [r for r in caplog.records if "create_graph=True" in r.message]
    assert len(said) == 1
    assert said[0].levelno == logging.INFO
    assert said[0].message.startswith("masked_loss:")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
def test_unmasked_pixels_are_ignored(norm, backend):
    """Not even where the prediction there is not a number."""
    levels, bias, images, flip, mask = arguments((3, 8, 12, 4, [(8, 12)], 0.5), torch.float32)
    want = loss_and_gradients(levels, bias, images, flip, mask, norm=norm, backend=backend)
    pixels = naive.pixel_mask(mask, 4)[:, None].expand(3, 3, 8, 12)
    levels[0][~pixels] = math.nan
    got = loss_and_gradients(levels, bias, images, flip, mask, norm=norm, backend=backend)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1][pixels], want[1][pixels])
    if backend == "cpu":  # the definition's square has 0 * NaN there
        assert got[1][~pixels].count_nonzero() == 0
        assert torch.equal(got[2], want[2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_perfect_prediction_has_zero_loss_and_gradient(dtype, norm, backend):
    _, bias, images, flip, mask = arguments((3, 8, 12, 4, [], 0.5), dtype)
    level = normalise(images, flip, mean=MEAN, std=STD, dtype=dtype)
    got = loss_and_gradients([level], torch.zeros_like(bias), images, flip, mask, norm=norm, backend=backend)
    assert all(t.count_nonzero() == 0 for t in got)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
def test_no_masked_pixel_gives_nan(norm, backend):
    levels, bias, images, flip, mask = arguments(SHAPES["odd ratios"], torch.float32)
    loss, *grads = loss_and_gradients(levels, bias, images, flip, torch.zeros_like(mask), norm=norm, backend=backend)
    assert loss.isnan()
    assert all(g.count_nonzero() == 0 for g in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch_gives_nan(backend):
    levels, bias, images, flip, mask = arguments(SHAPES["odd ratios"], torch.float32)
    none = [t[:0] for t in levels], bias, images[:0], flip[:0], mask[:0]
    loss, *grads = loss_and_gradients(*none, norm="l1", backend=backend)
    assert loss.isnan()
    assert [g.shape for g in grads] == [t.shape for t in (*none[0], bias)]


def test_half_precision_and_autocast_use_definition():
    levels, bias, *rest = arguments(SHAPES["odd ratios"], torch.float32)
    halves = [t.bfloat16() for t in levels]
    args = halves, bias.bfloat16(), *rest
    given = {"mean": MEAN, "std": STD, "norm": "l1"}
    assert torch.equal(masked_loss(*args, **given), definition(*args, *given.values()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(masked_loss(halves, bias, *rest, **given), definition(halves, bias, *rest, *given.values()))
    with pytest.raises(BackendUnavailable, match="compiled for float32 and float64, not for bfloat16"):
        masked_loss(*args, **given, backend="cpu")


RESIDENT = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_of(run):
    """Bytes by which the resident set grows while `run` runs; the kernel's mark of the peak is set back before."""

    def read(name):
        (line,) = (line for line in RESIDENT[0].read_text().splitlines() if line.startswith(name))
        return 1024 * int(line.split()[1])

    RESIDENT[1].write_text("5")
    before = read("VmRSS")
    run()
    return read("VmHWM") - before


@needs_native
@pytest.mark.skipif(not all(f.exists() for f in RESIDENT), reason="needs Linux' /proc")
def test_training_allocates_nothing_of_image_size():
    shape = (64, 224, 224, 8, [(28, 28), (14, 14), (7, 7)], 0.5)
    args = arguments(shape, torch.float32)
    full = 4 * 3 * 64 * 224 * 224  # 38.5 MB: more than malloc ever keeps for later
    for backend in ("cpu", "definition"):
        loss_and_gradients(*arguments(SHAPES["mae-imagenet"], torch.float32), norm="l1", backend=backend)
    assert peak_of(lambda: loss_and_gradients(*args, norm="l1", backend="definition")) > full
    assert peak_of(lambda: loss_and_gradients(*args, norm="l1", backend="cpu")) < full / 4


@needs_native
@pytest.mark.parametrize("need_grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype, need_grad):
    levels, *rest = arguments(SHAPES["odd ratios"], dtype)
    levels[1] = levels[1].contiguous(memory_format=torch.channels_last)
    levels[2] = levels[2].expand(3, 3, 14, 6)
    args = levels, *rest, list(MEAN), list(STD), "l2", need_grad
    torch.library.opcheck(torch.ops.fastdarts.masked_loss.default, args)
    _, grad_levels, grad_bias = torch.ops.fastdarts.masked_loss(*args)
    assert [g.stride() for g in grad_levels] == [torch.empty_like(t).stride() for t in levels] * need_grad
    assert grad_bias.numel() == 3 * need_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_graph_break(backend):
    levels, bias, *rest = arguments(SHAPES["odd ratios"])
    inputs = [t.requires_grad_() for t in (bias, *levels)]

    def loss(bias, *levels):
        return masked_loss(levels, bias, *rest, mean=MEAN, std=STD, norm="l2", backend=backend) * 2

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)
    got, want = compiled(*inputs), loss(*inputs)
    naive.assert_close(got, want, tol=1e-13)
    for a, b in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        naive.assert_close(a, b, tol=1e-13)
    with torch.no_grad():
        naive.assert_close(compiled(*inputs), want, tol=1e-13)


@needs_native
@pytest.mark.parametrize(
    ("position", "wrong"),
    [
        (0, []),
        (0, [torch.zeros(3, 3, 4, 4), torch.zeros(2, 3, 4, 4)]),
        (0, [torch.zeros(3, 4, 4, 4)]),
        (0, [torch.zeros(3, 3, 0, 4)]),
        (0, [torch.zeros(3, 3, 4, 4, dtype=torch.float64)]),
        (1, torch.zeros(1)),
        (2, torch.zeros(3, 8, 12, 4, dtype=torch.uint8)),
        (2, torch.zeros(3, 8, 16, 3, dtype=torch.uint8)),
        (3, torch.zeros(2, dtype=torch.bool)),
        (4, torch.zeros(3, 4, 3, dtype=torch.bool)),
        (4, torch.zeros(2, 2, 3, dtype=torch.bool)),
        (5, [0.5]),
        (7, "l3"),
    ],
)
def test_registered_op_checks_bounds(position, wrong):
    args = [*arguments((3, 8, 12, 4, [(2, 3)], 0.5), torch.float32), list(MEAN), list(STD), "l1", True]
    torch.ops.fastdarts.masked_loss(*args)
    args[position] = wrong
    with pytest.raises(RuntimeError, match="masked_loss: "):
        torch.ops.fastdarts.masked_loss(*args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": []}, "levels must contain at least one map"),
        ({"levels": [torch.zeros(2, 3, 4, 4)]}, r"levels must be floating point \(3, 3, h, w\), got .*\(2, 3, 4, 4\)"),
        ({"levels": [torch.zeros(3, 4, 4, 4)]}, r"levels must be .*\(3, 4, 4, 4\)"),
        ({"levels": [torch.zeros(3, 3, 4)]}, "levels must be"),
        ({"levels": [torch.zeros(3, 3, 4, 0)]}, "levels must be"),
        ({"levels": [torch.zeros(3, 3, 4, 4, dtype=torch.int64)]}, "levels must be floating point"),
        (
            {"levels": [torch.zeros(3, 3, 4, 4), torch.zeros(3, 3, 4, 4).double()]},
            "levels must be float32 .*got float64",
        ),
        ({"bias": torch.zeros(1)}, r"bias must be \(3,\), got \(1,\)"),
        ({"bias": torch.zeros(3).double()}, "bias must be float32 .*got float64"),
        ({"bias": torch.zeros(3, device="meta")}, "bias must be float32 on cpu.*on meta"),
        ({"images": torch.zeros(3, 8, 12, 3)}, r"images must be uint8 \(N, H, W, 3\), got torch.float32"),
        ({"images": torch.zeros(3, 3, 8, 12, dtype=torch.uint8)}, "images must be"),
        ({"images": torch.zeros(3, 0, 12, 3, dtype=torch.uint8)}, "images must be"),
        ({"images": torch.zeros(3, 8, 12, 3, dtype=torch.uint8, device="meta")}, "images is on meta, the levels are on cpu"),
        ({"mask": torch.zeros(3, 2, 3, dtype=torch.bool, device="meta")}, "mask is on meta"),
        ({"flip": torch.zeros(3)}, r"flip must be torch.bool \(3,\), got torch.float32"),
        ({"flip": torch.zeros(2, dtype=torch.bool)}, "flip must be"),
        ({"mask": torch.zeros(3, 2, 3)}, "mask must be torch.bool .*got torch.float32"),
        ({"mask": torch.zeros(3, 3, 3, dtype=torch.bool)}, r"mask must be .*\(3, 8/p, 12/p\).*\(3, 3, 3\)"),
        ({"mask": torch.zeros(3, 4, 3, dtype=torch.bool)}, "mask must be"),
        ({"mask": torch.zeros(2, 2, 3, dtype=torch.bool)}, "mask must be"),
        ({"mask": torch.zeros(3, 0, 3, dtype=torch.bool)}, "mask must be"),
        ({"mask": torch.zeros(3, 6, dtype=torch.bool)}, "mask must be"),
        ({"mean": (0.5,)}, "mean and std must be three"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"norm": "l3"}, "norm must be l1 or l2, got 'l3'"),
        ({"backend": "cuda9"}, "no backend 'cuda9'; it has auto, cpu, triton, definition"),
    ],
)
def test_invalid_arguments_are_named(change, message):
    names = ("levels", "bias", "images", "flip", "mask")
    good = dict(zip(names, arguments((3, 8, 12, 4, [(2, 3)], 0.5), torch.float32), strict=True))
    with pytest.raises(ValueError, match=message):
        masked_loss(**good | {"mean": MEAN, "std": STD} | change)


@pytest.mark.gpu
@pytest.mark.parametrize("norm", NORMS)
def test_gpu_uses_definition(norm):
    args = arguments(SHAPES["odd ratios"])
    want = loss_and_gradients(*args, norm=norm, backend="definition")
    on_gpu = [t.cuda() for t in args[0]], *(t.cuda() for t in args[1:])
    for a, b in zip(loss_and_gradients(*on_gpu, norm=norm), want, strict=True):
        naive.assert_close(a.cpu(), b, tol=1e-12)
