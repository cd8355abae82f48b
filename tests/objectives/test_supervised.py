"""Classification against the formulas of tests/support/naive.py: loss, accuracies, every gradient."""

import pytest
import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.objectives import IMAGENET_MEAN, IMAGENET_STD, Classification
from fastdarts.ops.philox import Stream
from fastdarts.spaces import KINDS, S0
from fastdarts.supernet import CellWeights, Supernet
from tests.support import naive
from tests.support.backends import by_darts_names
from tests.support.naive import assert_all_close, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")


def make(classes: int, stem: str = "cifar", k: int = 1) -> tuple[naive.Net, Supernet, Classification]:
    net = naive.Net(C=4, layers=3, k=k, stem=stem)
    supernet = Supernet(S0, C=4, layers=3, stem=stem, partial_channels=k)
    objective = Classification(supernet, classes)
    supernet.double().load_state_dict(naive.flat_checkpoint(*naive.random_checkpoint(net, classes, 5)))
    return net, supernet, objective


def batch(side: int, classes: int, count: int = 5) -> Batch:
    g = torch.Generator().manual_seed(1)
    return Batch(
        torch.randint(0, 256, (count, side, side, 3), generator=g, dtype=torch.uint8),
        torch.randint(0, classes, (count,), generator=g),
        torch.arange(count),
        torch.arange(count) % 2 == 0,
    )


def mixing() -> dict[str, CellWeights]:
    g = torch.Generator().manual_seed(0)
    ops = {kind: torch.rand(14, 8, generator=g, dtype=torch.float64, requires_grad=True) for kind in KINDS}
    return {kind: CellWeights(ops[kind]) for kind in KINDS}


def logits(net: naive.Net, run: naive.Run, weights: dict[str, CellWeights], b: Batch) -> Tensor:
    x = naive.normalised(b.images, IMAGENET_MEAN, IMAGENET_STD, b.flip.tolist())
    last = run.network(net, x, {kind: weights[kind].ops for kind in KINDS}, None)[-1]
    return naive.head(last, run.theta["classifier.weight"], run.theta["classifier.bias"])


@pytest.mark.parametrize(("stem", "side", "k"), [("cifar", 8, 1), ("cifar", 8, 2), ("imagenet", 32, 2)])
def test_loss_and_gradients_match_reference(stem: str, side: int, k: int) -> None:
    net, supernet, objective = make(7, stem, k)
    weights, b = mixing(), batch(side, 7)
    theta, stats = naive.split(supernet.state_dict())
    theta = naive.leaves(theta)
    want = naive.cross_entropy(logits(net, naive.Run(theta, stats), weights, b), b.labels)
    got = objective(supernet, weights, b, torch.tensor([0]), Stream.TRAIN)
    assert_close(got, want, "loss")
    mix = {kind: weights[kind].ops for kind in KINDS}
    mine, theirs = dict(supernet.named_parameters()) | mix, theta | mix
    assert "classifier.weight" in mine
    assert not list(objective.parameters())  # its weights live in the supernet, under DARTS' name
    assert_all_close(
        by_darts_names(supernet, dict(zip(mine, torch.autograd.grad(got, list(mine.values())), strict=True))),
        dict(zip(theirs, torch.autograd.grad(want, list(theirs.values())), strict=True)),
    )


@pytest.mark.parametrize("classes", [2, 5, 7, 30])
def test_evaluate_matches_reference(classes: int) -> None:
    net, supernet, objective = make(classes)
    weights, b = mixing(), batch(8, classes, count=24)
    supernet.eval()
    with torch.no_grad():
        supernet.classifier.weight.mul_(1e-4)  # logits of order one
    run = naive.Run(*naive.split(supernet.state_dict()), train=False)
    with torch.no_grad():
        want = logits(net, run, weights, b)
        # labels at every rank, so that the accuracies are no accident: 0, 1, 2, ... from the top
        ranks = want.argsort(1, descending=True)
        b = Batch(b.images, torch.stack([r[i % classes] for i, r in enumerate(ranks)]), b.index, b.flip)
        got = objective.evaluate(supernet, weights, b)
    assert 0.03 < float(want.std()) < 10
    assert set(got) == {"loss", "top1", "top5"}
    assert_close(got["loss"], naive.cross_entropy(want, b.labels), "loss")
    assert got["top1"].item() == pytest.approx(naive.top(want, b.labels, 1) / 24, abs=1e-7)
    assert got["top5"].item() == pytest.approx(naive.top(want, b.labels, 5) / 24, abs=1e-7)
    expected = sum(i % classes < 5 for i in range(24)) / 24
    assert got["top5"].item() == pytest.approx(expected, abs=1e-7)
    assert got["top1"].item() == pytest.approx(sum(i % classes == 0 for i in range(24)) / 24, abs=1e-7)


@pytest.mark.parametrize("classes", [-1, 0, 1])
def test_single_class_is_rejected(classes: int) -> None:
    with pytest.raises(ValueError, match=f"two classes.*{classes}"):
        Classification(Supernet(S0, C=4, layers=3), classes)
