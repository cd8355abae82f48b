"""Rotation, colourisation and jigsaw against index formulas and published numbers; alone and with classification."""

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.objectives import Colourisation, Jigsaw, Pretext, Rotation
from fastdarts.objectives.colour import BINS, bin_table, lab, nearest_bin
from fastdarts.objectives.pretext import PERMUTATIONS, Task
from fastdarts.ops.philox import Purpose, Stream
from tests.objectives.small import STEP, batch, mixing, net
from tests.support import naive
from tests.support.naive import assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

SEED = 2**40 + 17
COLOURS = MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
TASKS = {"rotation": Rotation, "colourisation": Colourisation, "jigsaw": Jigsaw}


def task(name: str, channels: int = 8) -> Task:
    keys = {"seed": SEED} if name == "jigsaw" else {}
    return TASKS[name](channels, *COLOURS, **keys).double()


# ----------------------------------------------------------------------------------------------------- rotation


def test_rotation_matches_hand_computation() -> None:
    """1 2 / 3 4 turned counterclockwise: 2 4 / 1 3, 4 3 / 2 1, 3 1 / 4 2; the mirror comes first."""
    images = torch.tensor([[[1, 2], [3, 4]], [[2, 1], [4, 3]]], dtype=torch.uint8)[..., None].expand(2, 2, 2, 3)
    b = Batch(images, torch.zeros(2).long(), torch.arange(2), torch.tensor([False, True]))
    rotation = Rotation(3, (0.0,) * 3, (1 / 255,) * 3).double()
    x, target = rotation.pose(b, STEP, Stream.TRAIN)
    assert target.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    want = [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
    for c in range(3):
        assert x[:, c].round().long().tolist() == want * 2
    assert_close(x, x.round(), "whole numbers")


# ----------------------------------------------------------------------------------------------- colourisation


@pytest.mark.parametrize(
    ("rgb", "L", "a", "b"),
    [
        ((255, 255, 255), 100.0, 0.0, 0.0),
        ((0, 0, 0), 0.0, 0.0, 0.0),
        ((255, 0, 0), 53.24, 80.09, 67.20),
        ((0, 255, 0), 87.74, -86.18, 83.18),
        ((0, 0, 255), 32.30, 79.19, -107.86),
        ((255, 255, 0), 97.14, -21.55, 94.48),
        ((128, 128, 128), 53.59, 0.0, 0.0),
    ],
)
def test_lab_of_known_colours(rgb: tuple[int, int, int], L: float, a: float, b: float) -> None:
    pixels = torch.tensor(rgb, dtype=torch.float64).view(1, 3, 1, 1) / 255
    assert [t.item() for t in lab(pixels)] == pytest.approx([L, a, b], abs=0.02)


def test_bins_cover_srgb_gamut() -> None:
    """313 of them: the 309 corners, and the four published ones just outside."""
    grid = torch.linspace(0, 1, 256, dtype=torch.float64)
    one, other = torch.cartesian_prod(grid, grid).unbind(1)
    corners = set()
    for face in (0.0, 1.0):  # the cube's surface encloses all colours, and bounds their squares
        for channel in range(3):
            planes = [one, other]
            planes.insert(channel, torch.full_like(one, face))
            _, a, b = lab(torch.stack(planes)[None, :, :, None])
            squares = torch.stack([(a / 10).floor(), (b / 10).floor()], -1).flatten(0, -2).long().unique(dim=0)
            corners |= {(10 * (p + i), 10 * (q + j)) for p, q in squares.tolist() for i in (0, 1) for j in (0, 1)}
    rows = {a: [b for c, b in corners if c == a] for a, _ in corners}
    filled = {(a, b) for a, bs in rows.items() for b in range(min(bs), max(bs) + 1, 10)}
    assert len(BINS) == len(set(BINS)) == 313
    assert set(BINS) - filled == {(40, 90), (100, -90), (100, -10), (100, 0)}
    assert filled <= set(BINS)


def test_nearest_bin_is_nearest_of_all() -> None:
    g = torch.Generator().manual_seed(0)
    corners = torch.tensor([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], dtype=torch.float64)
    pixels = torch.cat([torch.rand(500, 3, generator=g, dtype=torch.float64), corners])
    _, a, b = lab(pixels.T[None, :, :, None])
    got = nearest_bin(a, b, bin_table()).flatten().tolist()
    for (x, y), number in zip(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True), got, strict=True):
        assert number == min(range(313), key=lambda i: math.dist((x, y), BINS[i]))


def test_colourisation_matches_hand_computation() -> None:
    """Red, white / black, blue: their lightness thrice, their bins; mirrored, the other way round."""
    image = torch.tensor([[[255, 0, 0], [255, 255, 255]], [[0, 0, 0], [0, 0, 255]]], dtype=torch.uint8)
    b = Batch(torch.stack([image, image]), torch.zeros(2).long(), torch.arange(2), torch.tensor([False, True]))
    x, target = task("colourisation").pose(b, STEP, Stream.TRAIN)
    assert x.shape == (2, 3, 2, 2)
    assert torch.equal(x[:, 0], x[:, 1])
    assert torch.equal(x[:, 0], x[:, 2])
    light = [[53.24, 100.0], [0.0, 32.30]]
    want = [[(v / 100 - 0.5) / 0.25 for v in row] for row in light]  # the mean of MEAN and of STD
    assert x[0, 0].flatten().tolist() == pytest.approx(want[0] + want[1], abs=1e-3)
    assert x[1, 0].flatten().tolist() == pytest.approx(want[0][::-1] + want[1][::-1], abs=1e-3)
    bins = [(80, 70), (0, 0), (0, 0), (80, -110)]
    assert [BINS[i] for i in target.tolist()] == [*bins, bins[1], bins[0], bins[3], bins[2]]


def test_colourisation_predicts_each_pixel() -> None:
    """A 1x1 convolution, upsampled to the image, pixels row by row."""
    asked = task("colourisation", 2)
    feature = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    weight, bias = asked.head.weight[:, :, 0, 0], asked.head.bias
    logits = torch.einsum("nchw,oc->nohw", feature, weight) + bias[:, None, None]
    want = naive.upsample(logits, 4)
    got = asked.answer(feature, (12, 12))
    assert got.shape == (2 * 144, 313)
    assert_close(got.view(2, 12, 12, 313).permute(0, 3, 1, 2), want, "logits")


def test_colourisation_in_chunks_is_identical(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images at a time: the same answers and gradients."""
    asked, feature = task("colourisation", 2), torch.randn(5, 2, 3, 3, dtype=torch.float64)
    whole = asked.answer(feature, (12, 12))
    want = torch.autograd.grad(whole.square().sum(), list(asked.parameters()))
    calls, plain = [], torch.nn.functional.interpolate
    monkeypatch.setattr("fastdarts.objectives.pretext.MOST_NUMBERS", 2 * 313 * 144 + 1)
    monkeypatch.setattr("torch.nn.functional.interpolate", lambda x, **how: calls.append(len(x)) or plain(x, **how))
    parts = asked.answer(feature, (12, 12))
    assert torch.equal(parts, whole) and calls == [2, 2, 1]
    for got, grad in zip(torch.autograd.grad(parts.square().sum(), list(asked.parameters())), want, strict=True):
        assert_close(got, grad, "gradient")


# ------------------------------------------------------------------------------------------------------- jigsaw


def number_of(index: int, step: int, stream: int) -> int:
    """floor(24 * word / 2**32) of the image's first random word."""
    return naive.philox(SEED, (0, index, step, Purpose.JIGSAW + 256 * stream))[0] * 24 // 2**32


def test_permutations_are_all_orders_of_four_tiles() -> None:
    assert len(PERMUTATIONS) == math.factorial(4)
    assert set(PERMUTATIONS) == set(permutations(range(4)))
    assert PERMUTATIONS[0] == (0, 1, 2, 3)
    assert PERMUTATIONS[1] == (0, 1, 3, 2)
    assert PERMUTATIONS[23] == (3, 2, 1, 0)


@pytest.mark.parametrize("stream", [Stream.TRAIN, Stream.VAL])
def test_jigsaw_tiles_follow_permutation(stream: Stream) -> None:
    """At each place the tile that the permutation names, of the mirrored image, with mean 0 and deviation 1."""
    b = batch(8, count=6)
    x, target = task("jigsaw").pose(b, STEP, stream)
    assert x.shape == (24, 3, 4, 4)
    assert target.tolist() == [number_of(int(i), 12, stream) for i in b.index]
    plain = naive.normalised(b.images, MEAN, STD, b.flip.tolist())
    for n in range(6):
        for place in range(4):
            row, column = divmod(PERMUTATIONS[int(target[n])][place], 2)
            tile = plain[n, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            tile = tile - tile.sum() / 48
            assert_close(x[4 * n + place], tile / (tile.square().sum() / 48).sqrt(), "tile")


def test_constant_tile_is_finite() -> None:
    b = batch(8)._replace(images=torch.full((3, 8, 8, 3), 7, dtype=torch.uint8))
    x, _ = Jigsaw(8, (0.5,) * 3, (0.5,) * 3).pose(b, STEP, Stream.TRAIN)
    assert bool(x.isfinite().all())
    assert float(x.abs().max()) < 0.1


def test_orders_depend_only_on_seed_step_and_image() -> None:
    asked, b = task("jigsaw"), batch(8, count=6)

    def numbers(step: int, stream: int, rows: list[int]) -> list[int]:
        return asked.pose(Batch(*(t[rows] for t in b)), torch.tensor([step]), stream)[1].tolist()

    everyone = list(range(6))
    first = numbers(0, Stream.TRAIN, everyone)
    assert numbers(0, Stream.TRAIN, everyone) == first
    assert numbers(0, Stream.TRAIN, [4, 1]) == [first[4], first[1]]  # whoever else is in the batch
    others = [numbers(1, Stream.TRAIN, everyone), numbers(0, Stream.VAL, everyone), numbers(0, Stream.EVAL, everyone)]
    assert len({tuple(n) for n in [first, *others]}) == 4
    seen = [n for step in range(60) for n in numbers(step, Stream.TRAIN, everyone)]
    assert set(seen) == set(range(24))  # each has its turn: 360 draws of 1/24


def test_jigsaw_concatenates_tile_features() -> None:
    asked = task("jigsaw", 2)
    feature = torch.randn(8, 2, 3, 3, dtype=torch.float64)
    pooled = feature.sum((2, 3)) / 9
    want = torch.stack([torch.cat([pooled[4 * n + place] for place in range(4)]) for n in range(2)])
    assert_close(asked.answer(feature, (24, 24)), want @ asked.head.weight.T + asked.head.bias, "logits")


# ------------------------------------------------------------------------------------------------- the objective


def classified(name: str, pooled: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Features classified next to the task: each rotation, the image, or the mean of its four tiles."""
    if name == "rotation":
        return pooled, torch.stack([labels[n // 4] for n in range(len(pooled))])
    if name == "jigsaw":
        return torch.stack([sum(pooled[4 * n + i] for i in range(4)) / 4 for n in range(len(labels))]), labels
    return pooled, labels


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("classes", "backend"), [(None, "auto"), (3, "auto"), (3, "definition")])
def test_loss_and_gradients_match_reference(name: str, classes: int | None, backend: str) -> None:
    """L_task, or L_cls + L_task from the same encoding; gradients reach alpha, the supernet and both heads."""
    supernet = net(backend=backend)
    objective = Pretext(supernet, task(name, supernet.tap_channels[-1]), classes)
    alpha, weights = mixing()
    b = batch()
    wanted = [*supernet.parameters(), *objective.parameters(), *alpha]
    x, target = objective.task.pose(b, STEP, Stream.VAL)
    feature = supernet(x, weights)[-1]
    want = naive.cross_entropy(objective.task.answer(feature, (16, 16)), target)
    if classes:
        pooled, labels = classified(name, feature.sum((2, 3)) / feature[0, 0].numel(), b.labels)
        want = want + naive.cross_entropy(pooled @ supernet.classifier.weight.T + supernet.classifier.bias, labels)
    d_want = torch.autograd.grad(want, wanted, retain_graph=True)  # alpha's softmax is in both
    got = objective(supernet, weights, b, STEP, Stream.VAL)
    assert_close(got, want, "loss")
    for g, w in zip(torch.autograd.grad(got, wanted), d_want, strict=True):
        assert w.count_nonzero()
        assert_close(g, w, "gradient")


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("classes", [None, 3])
def test_evaluate_matches_reference(name: str, classes: int | None) -> None:
    supernet = net().eval()
    objective = Pretext(supernet, task(name, supernet.tap_channels[-1]), classes)
    weights, b = mixing()[1], batch(count=6)
    with torch.no_grad():
        got = objective.evaluate(supernet, weights, b)
        objective(supernet, weights, b, STEP, Stream.TRAIN)
        again = objective.evaluate(supernet, weights, b)
        assert all(torch.equal(got[n], again[n]) for n in got)
        x, target = objective.task.pose(b, torch.tensor([0]), Stream.EVAL)
        feature = supernet(x, weights)[-1]
        logits = objective.task.answer(feature, (16, 16))
        loss, top1 = naive.cross_entropy(logits, target), naive.top(logits.tolist(), target, 1) / len(target)
        if classes is None:
            assert set(got) == {"loss", "top1"}
            assert_close(got["loss"], loss, "loss")
            assert got["top1"].item() == pytest.approx(top1, abs=1e-7)
            return
        pooled, labels = classified(name, feature.mean((2, 3)), b.labels)
        logits = supernet.classifier(pooled)
    assert set(got) == {"loss", "top1", "top5", "task_loss", "task_top1"}
    assert_close(got["task_loss"], loss, "task loss")
    assert_close(got["loss"], loss + naive.cross_entropy(logits, labels), "loss")
    assert got["task_top1"].item() == pytest.approx(top1, abs=1e-7)
    assert got["top1"].item() == pytest.approx(naive.top(logits, labels, 1) / len(labels), abs=1e-7)
