"""MAE-NAS' objective against the formulas of tests/support/naive.py: masks, decoder, loss, baseline and every gradient."""

import pytest
import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.objectives import IMAGENET_MEAN, IMAGENET_STD, MaskedReconstruction, MultiScaleDecoder
from fastdarts.ops.masked_loss import masked_loss, upsampled_sum
from fastdarts.ops.philox import Stream
from fastdarts.spaces import KINDS, S0
from fastdarts.supernet import CellWeights, Supernet
from tests.support import naive
from tests.support.backends import by_darts_names
from tests.support.naive import assert_all_close, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

SEED = 2**40 + 17  # more than a word
COLOURS = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def batch(side: int, count: int = 3, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randint(0, 256, (count, side, side, 3), generator=g, dtype=torch.uint8),
        torch.zeros(count, dtype=torch.int64),
        torch.tensor([5, 1_000_003, 42, 7, 8, 9])[:count],
        torch.tensor([True, False, True, False, False, True])[:count],
    )


def mixing(edges: bool = True, seed: int = 0) -> dict[str, CellWeights]:
    g = torch.Generator().manual_seed(seed)
    ops = {kind: torch.rand(14, 8, generator=g, dtype=torch.float64) / 4 for kind in KINDS}
    beta = {kind: torch.rand(14, generator=g, dtype=torch.float64) for kind in KINDS}
    for t in [*ops.values(), *beta.values()]:
        t.requires_grad_()
    return {kind: CellWeights(ops[kind], beta[kind] if edges else None) for kind in KINDS}


def make(stem: str = "cifar", k: int = 2, **kwargs) -> tuple[naive.Net, Supernet, MaskedReconstruction]:
    torch.manual_seed(3)
    net = naive.Net(C=4, layers=3, k=k, stem=stem)
    supernet = Supernet(S0, C=4, layers=3, stem=stem, partial_channels=k).double()
    supernet.load_state_dict(naive.flat_checkpoint(*naive.random_checkpoint(net, None, 5)))
    objective = MaskedReconstruction(supernet.tap_channels, seed=SEED, **kwargs).double()
    if kwargs.get("mask_token") == "learned":
        with torch.no_grad():
            objective.mask_token.copy_(torch.tensor([0.3, -1.2, 0.7]))
    return net, supernet, objective


def reconstruction(
    net: naive.Net,
    theta: dict[str, Tensor],
    run: naive.Run,
    weights: dict[str, CellWeights],
    b: Batch,
    mask: Tensor,
    patch: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """By the formulas: prediction and target (N, 3, S, S), and the masked pixels. theta: the objective's weights."""
    pixels = naive.pixel_mask(mask, patch)
    target = naive.normalised(b.images, IMAGENET_MEAN, IMAGENET_STD, b.flip.tolist())
    token = theta.get("mask_token", torch.zeros(3, dtype=torch.float64)).reshape(1, 3, 1, 1)
    x = torch.where(pixels[:, None], token, target)
    betas = None if weights["normal"].edges is None else {kind: weights[kind].edges for kind in KINDS}
    taps = run.taps(net, x, {kind: weights[kind].ops for kind in KINDS}, betas)
    aligns = [(theta[f"decoder.align.{i}.weight"], theta[f"decoder.align.{i}.bias"]) for i in range(3)]
    linear = theta["decoder.linear.weight"], theta["decoder.linear.bias"]
    return naive.decoder(taps, aligns, linear, x.shape[2]), target, pixels


@pytest.mark.parametrize(
    ("stem", "side", "patch", "ratio", "token", "norm"),
    [
        ("cifar", 16, 4, 0.5, "zero", "l1"),
        ("cifar", 16, 2, 0.3, "learned", "l2"),
        ("imagenet", 64, 8, 0.5, "learned", "l1"),
        ("imagenet", 32, 16, 0.6, "zero", "l2"),
    ],
)
@pytest.mark.parametrize("stream", [Stream.TRAIN, Stream.VAL])
def test_loss_and_gradients_match_reference(
    stem: str, side: int, patch: int, ratio: float, token: str, norm: str, stream: Stream
) -> None:
    """From uint8 pixels to the loss, masks included, nothing of the library on the other side."""
    net, supernet, objective = make(stem, mask_ratio=ratio, patch_size=patch, mask_token=token, norm=norm)
    weights, b = mixing(), batch(side)
    theta = naive.leaves(dict(objective.named_parameters()))
    network, stats = naive.split(supernet.state_dict())
    network = naive.leaves(network)
    mask = naive.masked_patches(SEED, stream, 12, b.index.tolist(), side // patch, ratio)
    run = naive.Run(network, stats)
    want = naive.masked_loss(*reconstruction(net, theta, run, weights, b, mask, patch), {"l1": 1, "l2": 2}[norm])
    got = objective(supernet, weights, b, torch.tensor([12]), stream)
    assert_close(got, want, "loss")
    mix = {f"{kind} {i}": w[i] for kind, w in weights.items() for i in (0, 1)}
    mine = dict(supernet.named_parameters()) | dict(objective.named_parameters()) | mix
    theirs = network | theta | mix
    assert ("mask_token" in mine) == (token == "learned")
    assert_all_close(
        by_darts_names(supernet, dict(zip(mine, torch.autograd.grad(got, list(mine.values())), strict=True))),
        dict(zip(theirs, torch.autograd.grad(want, list(theirs.values())), strict=True)),
    )


@pytest.mark.parametrize("factors", [(1, 2, 4), (8, 16, 32)], ids=["cifar", "imagenet"])
def test_decoder_follows_equation_3(factors: tuple[int, ...]) -> None:
    """Eq. 3 literally: each feature to D channels, upsampled by S / h_l, summed, one linear layer."""
    torch.manual_seed(1)
    side, channels = 64, (3, 5, 2)
    decoder = MultiScaleDecoder(channels, width=7).double()
    features = [
        torch.randn(2, c, side // f, side // f, dtype=torch.float64, requires_grad=True)
        for c, f in zip(channels, factors, strict=True)
    ]
    aligns = [(conv.weight, conv.bias) for conv in decoder.align]
    want = naive.decoder(features, aligns, (decoder.linear.weight, decoder.linear.bias), side)
    got = upsampled_sum(*decoder(features), (side, side))
    assert got.shape == (2, 3, side, side)
    assert_close(got, want, "prediction")
    wanted = dict(decoder.named_parameters()) | {f"F{i}": f for i, f in enumerate(features)}
    cotangent = torch.randn_like(got)
    grads = [dict(zip(wanted, torch.autograd.grad(y, list(wanted.values()), cotangent), strict=True)) for y in (got, want)]
    assert_all_close(*grads)


def test_decoder_widths() -> None:
    """1x1 convolutions to 64 channels, one linear layer to RGB, all with bias."""
    decoder = MultiScaleDecoder((16, 32, 64))
    shapes = {n: tuple(p.shape) for n, p in decoder.named_parameters()}
    assert shapes == {
        **{f"align.{i}.weight": (64, c, 1, 1) for i, c in enumerate((16, 32, 64))},
        **{f"align.{i}.bias": (64,) for i in range(3)},
        "linear.weight": (3, 64),
        "linear.bias": (3,),
    }


def test_upsampling_matches_hand_computation() -> None:
    """Two pixels to four: a quarter of the way from each side, the border held."""
    level = torch.tensor([[0.0, 4.0], [8.0, 12.0]], dtype=torch.float64).expand(1, 3, 2, 2)
    got = upsampled_sum([level], torch.tensor([0.0, 100.0, -1.0], dtype=torch.float64), (4, 4))
    want = torch.tensor([[0, 1, 3, 4], [2, 3, 5, 6], [6, 7, 9, 10], [8, 9, 11, 12]], dtype=torch.float64)
    assert_close(got[0], torch.stack([want, want + 100, want - 1]))


# --------------------------------------------------------------------------------------------------------- loss


def hand_mask() -> Tensor:
    """Two images of 4 x 4 pixels in patches of 2: one patch of the first is masked, three of the second."""
    return torch.tensor([[[False, True], [False, False]], [[True, False], [True, True]]])


@pytest.mark.parametrize(("norm", "power"), [("l1", 1), ("l2", 2)])
def test_loss_is_mean_over_masked_pixels_and_colours(norm: str, power: int) -> None:
    """Of the whole batch: an image with more masked pixels weighs more."""
    g = torch.Generator().manual_seed(2)
    b = batch(4, count=2)
    levels = [torch.randn(2, 3, s, s, generator=g, dtype=torch.float64) for s in (4, 2, 1)]
    bias = torch.randn(3, generator=g, dtype=torch.float64)
    prediction = sum(naive.upsample(t, 4 // t.shape[2]) for t in levels) + bias.reshape(1, 3, 1, 1)
    target = naive.normalised(b.images, IMAGENET_MEAN, IMAGENET_STD, b.flip.tolist())
    pixels = naive.pixel_mask(hand_mask(), 2)
    assert int(pixels.sum()) == 4 + 12
    want = naive.masked_loss(prediction, target, pixels, power)
    assert_close(masked_loss(levels, bias, b.images, b.flip, hand_mask(), norm=norm, **COLOURS), want)


def test_loss_matches_hand_computation() -> None:
    """Black pixels with mean 0 and std 1 are 0, predictions 3 and -2 on four masked pixels each."""
    images = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    level = torch.full((1, 3, 4, 4), 1000.0, dtype=torch.float64)
    level[:, :, :2, 2:], level[:, :, 2:, :2] = 3.0, -2.0
    mask = torch.tensor([[[False, True], [True, False]]])
    args = [level], torch.zeros(3, dtype=torch.float64), images, torch.tensor([False]), mask
    colours = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    assert masked_loss(*args, norm="l1", **colours).item() == pytest.approx(2.5, rel=1e-12)
    assert masked_loss(*args, norm="l2", **colours).item() == pytest.approx(6.5, rel=1e-12)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_unmasked_pixels_do_not_affect_loss(norm: str) -> None:
    """Other predictions and other images there: the same loss to the bit, and a gradient of exactly zero."""
    g = torch.Generator().manual_seed(4)
    b = batch(4, count=2, seed=1)
    level = torch.randn(2, 3, 4, 4, generator=g, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64)
    pixels = naive.pixel_mask(hand_mask(), 2)

    def loss(level: Tensor, images: Tensor) -> Tensor:
        return masked_loss([level], bias, images, b.flip, hand_mask(), norm=norm, **COLOURS)

    plain = loss(level, b.images)
    plain.backward()
    hidden = pixels[:, None].expand(2, 3, 4, 4)
    assert level.grad[~hidden].count_nonzero() == 0
    assert level.grad[hidden].count_nonzero() == 3 * 16

    in_files = torch.stack([m.flip(1) if f else m for m, f in zip(pixels, b.flip, strict=True)])  # before the mirror
    for where, same in ((False, True), (True, False)):
        other_level = torch.where(hidden == where, level + 1e3, level)
        other_images = torch.where((in_files == where)[..., None], 255 - b.images, b.images)
        assert torch.equal(loss(other_level, b.images), plain) == same
        assert torch.equal(loss(level, other_images), plain) == same


# -------------------------------------------------------------------------------------------------------- masks


class Watch:
    """The network's input at each forward; masked pixels have the token's colour, which no other pixel has."""

    def __init__(self, supernet: Supernet, objective: MaskedReconstruction, patch: int) -> None:
        self.patch = patch
        with torch.no_grad():
            objective.mask_token.fill_(123.0)
        supernet.register_forward_pre_hook(self.see)

    def see(self, _: torch.nn.Module, args: tuple) -> None:
        hidden = args[0] == 123.0
        patches = hidden.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        self.mask = patches.any(5).any(3).any(1)
        assert torch.equal(self.mask, patches.all(5).all(3).all(1))  # whole patches, all three colours


@pytest.mark.parametrize(
    ("ratio", "patch", "masked"),
    [
        *[(0.5, 4, 8), (0.3, 4, 5), (0.65625, 4, 11), (0.59375, 4, 10), (0.99, 8, 4), (0.4, 8, 2), (0.1, 4, 2)],
        *[(0.75, 2, 48), (0.1, 2, 6)],
    ],
)
def test_number_of_masked_patches_is_rounded(ratio: float, patch: int, masked: int) -> None:
    """floor(ratio * P + 1/2) of each image, P = (16 / patch)^2; halves (10.5, 9.5) round up."""
    _, supernet, objective = make(mask_ratio=ratio, patch_size=patch, mask_token="learned")
    watch = Watch(supernet, objective, patch)
    b = batch(16, count=6)
    for step in range(2):
        objective(supernet, mixing(), b, torch.tensor([step]), Stream.TRAIN)
        assert watch.mask.sum((1, 2)).tolist() == [masked] * 6


def test_masks_depend_only_on_step_stream_and_image() -> None:
    _, supernet, objective = make(patch_size=2, mask_token="learned")
    watch = Watch(supernet, objective, 2)
    b = batch(16, count=6)

    def mask(step: int, stream: int, rows: list[int]) -> Tensor:
        part = Batch(*(t[rows] for t in b))
        objective(supernet, mixing(), part, torch.tensor([step]), stream)
        return watch.mask

    everyone = list(range(6))
    first = mask(0, Stream.TRAIN, everyone)
    assert torch.equal(mask(0, Stream.TRAIN, everyone), first)
    assert torch.equal(mask(0, Stream.TRAIN, [4, 1]), first[[4, 1]])  # whoever else is in the batch
    others = [mask(1, Stream.TRAIN, everyone), mask(0, Stream.VAL, everyone), mask(0, Stream.EVAL, everyone)]
    several = [first, *others]
    distinct = {tuple(m.flatten().tolist()) for masks in several for m in masks}
    assert len(distinct) == 4 * 6
    often = torch.stack([mask(s, Stream.TRAIN, everyone) for s in range(20)]).double().mean((0, 1))
    assert float((often - 0.5).abs().max()) < 0.2  # every patch has its turn: 120 draws of 1/2


def test_masks_depend_on_seed() -> None:
    masks = []
    for seed in (0, 1):
        _, supernet, _ = make()
        objective = MaskedReconstruction(supernet.tap_channels, patch_size=2, mask_token="learned", seed=seed).double()
        watch = Watch(supernet, objective, 2)
        objective(supernet, mixing(), batch(16), torch.tensor([0]), Stream.TRAIN)
        masks.append(watch.mask)
    assert not torch.equal(*masks)


def test_only_learned_token_is_trained() -> None:
    for token, learned in (("learned", True), ("zero", False)):
        _, supernet, objective = make(patch_size=4, mask_token=token)
        objective(supernet, mixing(), batch(16), torch.tensor([0]), Stream.TRAIN).backward()
        assert ("mask_token" in dict(objective.named_parameters())) == learned
        assert ("mask_token" in objective.state_dict()) == learned
        if learned:
            assert objective.mask_token.grad.count_nonzero() == 3
        else:
            assert objective.mask_token.count_nonzero() == 0


def test_patch_size_must_divide_image() -> None:
    _, supernet, objective = make(patch_size=5)
    with pytest.raises(ValueError, match=r"5.*16"):
        objective(supernet, mixing(), batch(16), torch.tensor([0]), Stream.TRAIN)


# --------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize(("norm", "power"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("train", [True, False])
def test_evaluate_matches_reference(norm: str, power: int, train: bool) -> None:
    """Loss by the formulas; baseline image by image, pixel by pixel: the mean visible colour of the (mirrored) image."""
    net, supernet, objective = make(patch_size=4, mask_ratio=0.6, norm=norm, mask_token="learned")
    supernet.train(train)
    weights, b = mixing(), batch(16, count=4)
    network, stats = naive.split(supernet.state_dict())
    theta = dict(objective.named_parameters())
    mask = naive.masked_patches(SEED, naive.EVAL, 0, b.index.tolist(), 4, 0.6)
    run = naive.Run(network, stats, train=train)
    want = reconstruction(net, theta, run, weights, b, mask, 4)
    got = objective.evaluate(supernet, weights, b)
    assert set(got) == {"loss", "baseline"}
    assert_close(got["loss"], naive.masked_loss(*want, power), "loss")

    _, target, pixels = want
    total, count = 0.0, 0
    for image, hidden in zip(target, pixels, strict=True):
        for colour in image:
            visible = [float(v) for v, h in zip(colour.flatten(), hidden.flatten(), strict=True) if not h]
            mean = sum(visible) / len(visible)
            errors = [abs(float(v) - mean) for v, h in zip(colour.flatten(), hidden.flatten(), strict=True) if h]
            total += sum(e**power for e in errors)
            count += len(errors)
    assert count == 4 * 10 * 16 * 3
    assert got["baseline"].item() == pytest.approx(total / count, rel=1e-9)


def test_evaluate_is_deterministic() -> None:
    _, supernet, objective = make(patch_size=4)
    supernet.eval()
    b, weights = batch(16), mixing()
    first = objective.evaluate(supernet, weights, b)
    objective(supernet, weights, b, torch.tensor([3]), Stream.TRAIN)
    again = objective.evaluate(supernet, weights, b)
    assert all(torch.equal(first[n], again[n]) for n in first)


def test_reconstruct_keeps_visible_pixels() -> None:
    """Masked, reconstructed, original images in [0, 1]; the prediction replaces masked patches."""
    net, supernet, objective = make(patch_size=4)
    supernet.eval()
    b, weights = batch(16), mixing()
    with torch.no_grad():
        masked, reconstructed, original = objective.reconstruct(supernet, weights, b)
    mask = naive.masked_patches(SEED, naive.EVAL, 0, b.index.tolist(), 4, 0.5)
    run = naive.Run(*naive.split(supernet.state_dict()), train=False)
    prediction, _, pixels = reconstruction(net, dict(objective.named_parameters()), run, weights, b, mask, 4)
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    plain = naive.normalised(b.images, (0, 0, 0), (1, 1, 1), b.flip.tolist())
    assert_close(original, plain, "original")
    assert_close(masked, torch.where(pixels[:, None], mean, plain), "masked")
    assert_close(reconstructed, torch.where(pixels[:, None], prediction * std + mean, plain), "reconstructed")
