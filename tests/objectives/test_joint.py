"""MIM-DARTS and its ablations: lambda by hand, both losses and their gradients by the formulas of tests/support/naive.py."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdarts.objectives import Classification, Joint, Masking, Reconstructing
from fastdarts.objectives.joint import balance
from fastdarts.ops.philox import Stream
from fastdarts.supernet import Supernet
from tests.objectives.small import STEP, batch, mixing, net
from tests.support import naive
from tests.support.naive import assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

SEED = 2**40 + 17
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
MASKING = Masking(0.6, 4, SEED, MEAN, STD)  # 10 of 16 patches of a 16 x 16 image


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


# ------------------------------------------------------------------------------------------------------- lambda


def test_lambda_matches_hand_computation() -> None:
    """6 / 1.5 = 4, a number: d(L_cls + 4 L_mse) is 1 and 4, not 1 + L_mse * dlambda and so on."""
    cls, mse = scalar(6.0), scalar(1.5)
    loss = cls + balance(cls, mse) * mse
    assert loss.item() == 12.0
    assert [float(g) for g in torch.autograd.grad(loss, (cls, mse))] == [1.0, 4.0]


@pytest.mark.parametrize("mse", [0.0, 1e-320])
def test_perfect_reconstruction_leaves_classification_loss(mse: float) -> None:
    cls, mse = scalar(6.0), scalar(mse)
    loss = cls + balance(cls, mse) * mse
    loss.backward()
    assert (loss.item(), cls.grad.item(), mse.grad.item()) == (6.0, 1.0, 0.0)


def test_non_finite_loss_stays_non_finite() -> None:
    for cls, mse in ((torch.nan, 1.0), (1.0, torch.nan)):
        loss = scalar(cls) + balance(scalar(cls), scalar(mse)) * scalar(mse)
        assert bool(loss.isnan())


def test_lambda_covers_all_ranks() -> None:
    """Of the losses of all: (6 + 2) / (1.5 + 0.25), not the mean of 6 / 1.5 and 2 / 0.25."""

    class Other:
        rank, size = 0, 2

        def sum(self, flat: Tensor) -> None:
            flat += torch.tensor([2.0, 0.25])

    assert float(balance(scalar(6.0), scalar(1.5), Other())) == pytest.approx(8 / 1.75, rel=1e-12)


# -------------------------------------------------------------------------------------------------- the losses


def parts(supernet: Supernet, objective: Joint, weights: dict, b, stream: int) -> tuple[Tensor, Tensor]:
    """L_cls (0 without a classifier) and L_mse by the formulas, from the supernet's feature and the decoder's image."""
    x = naive.normalised(b.images, MEAN, STD, b.flip.tolist())
    pixels = torch.ones(len(x), 16, 16, dtype=torch.bool)
    if objective.masking is not None:
        step = 0 if stream == naive.EVAL else int(STEP)
        pixels = naive.pixel_mask(naive.masked_patches(SEED, stream, step, b.index.tolist(), 4, 0.6), 4)
        x = torch.where(pixels[:, None], 0.0, x)
    feature = supernet(x, weights, STEP, stream)[-1]
    image = objective.decoder(feature, (16, 16), training=supernet.training)
    target = naive.normalised(b.images, (0.5,) * 3, (0.5,) * 3, b.flip.tolist())
    assert -1 <= float(target.min()) < -0.9
    assert 0.9 < float(target.max()) <= 1
    mse = naive.masked_loss(image, target, pixels, 2)
    if supernet.classifier is None:
        return torch.zeros((), dtype=torch.float64), mse
    logits = naive.head(feature, supernet.classifier.weight, supernet.classifier.bias)
    return naive.cross_entropy(logits, b.labels), mse


def make(classes: int | None, masking: Masking | None, backend: str = "auto") -> tuple[Supernet, Joint]:
    supernet = net(backend=backend)
    return supernet, Joint(supernet, classes, masking=masking, mean=MEAN, std=STD, backend=backend).double()


ROWS = [(3, MASKING), (None, MASKING), (None, None), (3, None)]


@pytest.mark.parametrize(("classes", "masking"), ROWS, ids=["joint", "rec mask", "rec", "cls rec"])
@pytest.mark.parametrize("backend", ["auto", "definition"])
def test_loss_and_gradients_match_reference(classes: int | None, masking: Masking | None, backend: str) -> None:
    masking = masking and masking._replace(backend=backend)
    supernet, objective = make(classes, masking, backend)
    alpha, weights = mixing()
    b = batch()
    wanted = [*supernet.parameters(), *objective.parameters(), *alpha]
    cls, mse = parts(supernet, objective, weights, b, Stream.VAL)
    d_cls = torch.autograd.grad(cls, wanted, retain_graph=True, allow_unused=True, materialize_grads=True) if classes else None
    d_mse = torch.autograd.grad(mse, wanted, retain_graph=True, allow_unused=True, materialize_grads=True)
    got = objective(supernet, weights, b, STEP, Stream.VAL)
    grads = torch.autograd.grad(got, wanted)
    assert all(g.count_nonzero() for g in grads)
    if classes:
        ratio = cls.item() / mse.item()
        assert_close(got, 2 * cls, "loss")
        want = [c + ratio * m for c, m in zip(d_cls, d_mse, strict=True)]
    else:
        assert_close(got, mse, "loss")
        want = d_mse
    for g, w in zip(grads, want, strict=True):
        assert_close(g, w, "gradient")


@pytest.mark.parametrize(("classes", "masking"), ROWS, ids=["joint", "rec mask", "rec", "cls rec"])
@pytest.mark.parametrize("train", [True, False])
def test_evaluate_matches_reference(classes: int | None, masking: Masking | None, train: bool) -> None:
    supernet, objective = make(classes, masking)
    supernet.train(train)
    objective.train(not train)  # the decoder's BatchNorm is in the supernet's mode, whatever its own
    weights, b = mixing()[1], batch()
    with torch.no_grad():
        cls, mse = parts(supernet, objective, weights, b, naive.EVAL)
        before = {n: t.clone() for m in (supernet, objective) for n, t in m.named_buffers()}
        got = objective.evaluate(supernet, weights, b)
        if not train:
            again = objective.evaluate(supernet, weights, b)
            assert all(torch.equal(got[n], again[n]) for n in got)
            assert all(torch.equal(before[n], t) for m in (supernet, objective) for n, t in m.named_buffers())
    if classes:
        assert set(got) == {"loss", "cls_loss", "mse", "lambda", "top1", "top5"}
        assert_close(got["cls_loss"], cls, "cls")
        assert_close(got["mse"], mse, "mse")
        assert_close(got["lambda"], cls / mse, "lambda")
        assert_close(got["loss"], 2 * cls, "loss")
        return
    assert set(got) == ({"loss", "baseline"} if masking else {"loss"})
    assert_close(got["loss"], mse, "loss")
    if masking is None:
        return
    target = naive.normalised(b.images, (0.5,) * 3, (0.5,) * 3, b.flip.tolist())
    pixels = naive.pixel_mask(naive.masked_patches(SEED, naive.EVAL, 0, b.index.tolist(), 4, 0.6), 4)
    colours = torch.stack([torch.stack([c[~p].mean() for c in image]) for image, p in zip(target, pixels, strict=True)])
    guess = colours[:, :, None, None].expand_as(target)
    assert_close(got["baseline"], naive.masked_loss(guess, target, pixels, 2), "baseline")


@pytest.mark.parametrize("masking", [MASKING, None])
def test_reconstruct_returns_input_prediction_and_original(masking: Masking | None) -> None:
    """The input, the painted patches (everything without a mask) among the visible ones, the original; in [0, 1]."""
    supernet, objective = make(None, masking)
    supernet.eval()
    assert isinstance(objective, Reconstructing)
    weights, b = mixing()[1], batch()
    with torch.no_grad():
        seen, painted, original = objective.reconstruct(supernet, weights, b)
        plain = naive.normalised(b.images, (0,) * 3, (1,) * 3, b.flip.tolist())
        pixels = torch.ones(3, 16, 16, dtype=torch.bool)
        shown = plain
        if masking:
            pixels = naive.pixel_mask(naive.masked_patches(SEED, naive.EVAL, 0, b.index.tolist(), 4, 0.6), 4)
            shown = torch.where(pixels[:, None], torch.tensor(MEAN, dtype=torch.float64).view(1, 3, 1, 1), plain)
        x = (shown - torch.tensor(MEAN).double().view(1, 3, 1, 1)) / torch.tensor(STD).double().view(1, 3, 1, 1)
        image = objective.decoder(supernet(x, weights, STEP, 2)[-1], (16, 16), training=False)
    assert_close(original, plain, "original")
    assert_close(seen, shown, "seen", 1e-6)
    assert_close(painted, torch.where(pixels[:, None], (image + 1) / 2, plain), "painted", 1e-6)


def test_masks_depend_on_step_and_seed() -> None:
    supernet, objective = make(3, MASKING)
    supernet.eval()
    weights, b = mixing()[1], batch()

    def loss(step: int, stream: int) -> float:
        with torch.no_grad():
            return float(objective(supernet, weights, b, torch.tensor([step]), stream))

    several = [loss(1, Stream.TRAIN), loss(2, Stream.TRAIN), loss(1, Stream.VAL)]
    assert len(set(several)) == 3
    assert loss(1, Stream.TRAIN) == several[0]


def test_masked_supervised_is_cross_entropy_of_masked_image() -> None:
    """Cls. with mask: the plain cross entropy of the masked image; no decoder, nothing to draw."""
    supernet = net()
    objective = Classification(supernet, 3, masking=MASKING).double()
    assert not list(objective.parameters())
    assert not isinstance(objective, Reconstructing)
    weights, b = mixing()[1], batch()
    x = naive.normalised(b.images, MEAN, STD, b.flip.tolist())
    pixels = naive.pixel_mask(naive.masked_patches(SEED, Stream.VAL, 12, b.index.tolist(), 4, 0.6), 4)
    feature = supernet(torch.where(pixels[:, None], 0.0, x), weights)[-1]
    want = F.cross_entropy(supernet.classifier(feature.mean((2, 3))), b.labels)
    assert_close(objective(supernet, weights, b, STEP, Stream.VAL), want, "loss")
    assert set(objective.evaluate(supernet, weights, b)) == {"loss", "top1", "top5"}
