"""The bilevel step against DARTS' formulas (tests/support/naive.py): gradients, steps, updated and unchanged state."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdarts.batch import Batch
from fastdarts.objectives import IMAGENET_MEAN, IMAGENET_STD, Classification, MaskedReconstruction, Objective
from fastdarts.ops.philox import Stream
from fastdarts.search import Bilevel, SoftmaxRelaxation
from fastdarts.spaces import KINDS, S0, Space
from fastdarts.supernet import Supernet
from tests.support import naive
from tests.support.backends import BACKENDS, by_darts_names
from tests.support.naive import assert_all_close, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

FEW = Space.uniform("few", ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3"))
CLASSES, SEED = 5, 9
LR, MOMENTUM, DECAY = 0.1, 0.9, 3e-3  # a larger decay than anybody's, so that it shows
ARCH_LR, ARCH_DECAY = 6e-3, 1e-2


def batch(seed: int, count: int = 3, side: int = 8) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randint(0, 256, (count, side, side, 3), generator=g, dtype=torch.uint8),
        torch.randint(0, CLASSES, (count,), generator=g),
        torch.randint(0, 10**6, (count,), generator=g),
        torch.rand(count, generator=g) < 0.5,
    )


class Pair:
    """A Bilevel, and its state as plain tensors that only the formulas update.

    Names: supernet weights by name, the decoder's under `objective.`; alpha and beta as `alpha normal` and so on.
    """

    def __init__(
        self, kind: str = "supervised", space: Space = FEW, k: int = 2, backend: str = "definition", **settings: Any
    ) -> None:
        torch.manual_seed(SEED)
        lists = {"normal": space.normal, "reduce": space.reduce}
        self.net = naive.Net(C=4, layers=3, k=k, candidates=lists)
        self.supernet = Supernet(space, C=4, layers=3, partial_channels=k, backend=backend).double()
        self.objective: Objective = (
            Classification(self.supernet, CLASSES)
            if kind == "supervised"
            else MaskedReconstruction(self.supernet.tap_channels, patch_size=2, mask_token="learned", seed=SEED)
        ).double()
        self.supernet.double()
        stats = naive.flat_checkpoint({}, naive.random_checkpoint(self.net, None, 4)[1])  # no fresh statistics
        self.supernet.load_state_dict(stats, strict=False)
        self.relaxation = SoftmaxRelaxation(space, edge_normalization=k > 1, seed=SEED, dtype=torch.float64)
        with torch.no_grad():
            for p in self.relaxation.parameters():
                p.mul_(500)  # as in the middle of a search
        self.bilevel = Bilevel(
            self.supernet,
            self.objective,
            self.relaxation,
            torch.optim.SGD(self.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY),
            torch.optim.Adam(self.relaxation.parameters(), ARCH_LR, betas=(0.5, 0.999), weight_decay=ARCH_DECAY),
            **settings,
        )
        self.theta, self.arch = copied(self.modules()), copied(self.architecture())
        self.stats = naive.split(self.supernet.state_dict())[1]
        self.buffers: dict[str, Tensor] | None = None
        self.adam: Any = None
        self.moves: list[naive.Stats] = []  # updates of running statistics by each forward
        self.step = 0
        self.lr = LR

    def parameters(self) -> list[Tensor]:
        return [*self.supernet.parameters(), *self.objective.parameters()]

    def modules(self) -> dict[str, Tensor]:
        """All weights by name, those of cells taken apart."""
        mine = {f"objective.{n}": p for n, p in self.objective.named_parameters()}
        return by_darts_names(self.supernet, dict(self.supernet.named_parameters())) | mine

    def architecture(self) -> dict[str, Tensor]:
        alpha = {f"alpha {n}": t for n, t in self.relaxation.alpha.items()}
        return alpha | {f"beta {n}": t for n, t in self.relaxation.beta.items()}

    def named(self, grads: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.architecture(), grads, strict=True))

    # ------------------------------------------------------------------------------------------- by the formulas

    def loss(self, theta: dict[str, Tensor], arch: dict[str, Tensor], on: tuple[Batch, int]) -> Tensor:
        b, stream = on
        zeros = {n: (torch.zeros_like(m), torch.zeros_like(v)) for n, (m, v) in self.stats.items()}
        run = naive.Run(theta, zeros)
        rows = {kind: naive.edge_rows(arch[f"alpha {kind}"], self.net, kind) for kind in KINDS}
        betas = {kind: naive.edge_betas(arch[f"beta {kind}"]) for kind in KINDS} if "beta normal" in arch else None
        x = target = naive.normalised(b.images, IMAGENET_MEAN, IMAGENET_STD, b.flip.tolist())
        masked = isinstance(self.objective, MaskedReconstruction)
        if masked:
            patches = naive.masked_patches(SEED, stream, self.step, b.index.tolist(), x.shape[2] // 2, 0.5)
            pixels = naive.pixel_mask(patches, 2)
            x = torch.where(pixels[:, None], theta["objective.mask_token"].reshape(1, 3, 1, 1), target)
        taps = run.taps(self.net, x, rows, betas)
        self.moves.append(run.moved)
        if not masked:
            return naive.cross_entropy(naive.head(taps[2], theta["classifier.weight"], theta["classifier.bias"]), b.labels)
        w = {n.removeprefix("objective.decoder."): t for n, t in theta.items() if n.startswith("objective.decoder.")}
        aligns = [(w[f"align.{i}.weight"], w[f"align.{i}.bias"]) for i in range(3)]
        prediction = naive.decoder(taps, aligns, (w["linear.weight"], w["linear.bias"]), x.shape[2])
        return naive.masked_loss(prediction, target, pixels, 1)

    def gradient(self, train: Batch, val: Batch, unrolled: bool) -> dict[str, Tensor]:
        """Of alpha; the running statistics move with every forward but the one at the virtual weights."""
        self.moves.clear()
        on = (train, naive.TRAIN), (val, naive.VAL)
        if unrolled:
            grads = naive.second_order(
                self.loss,
                self.theta,
                self.arch,
                *on,
                eta=self.lr,
                momentum=MOMENTUM,
                weight_decay=DECAY,
                buffers=self.buffers,
            )
            assert len(self.moves) == 4
            del self.moves[1]
        else:
            grads = naive.first_order(self.loss, self.theta, self.arch, on[1])
        self.move_statistics()
        return grads

    def move_statistics(self) -> None:
        for move in self.moves:
            for name, old in self.stats.items():
                self.stats[name] = tuple(0.9 * o + m for o, m in zip(old, move[name], strict=True))
        self.moves.clear()

    def arch_step(self, train: Batch, val: Batch, unrolled: bool, clip: float) -> None:
        grads = self.gradient(train, val, unrolled)
        self.arch_norm = norm_of(grads)
        grads = naive.clipped(grads, clip) if clip else grads
        self.arch, self.adam = naive.adam(self.arch, grads, self.adam, lr=ARCH_LR, weight_decay=ARCH_DECAY)

    def weight_step(self, train: Batch, clip: float) -> None:
        self.moves.clear()
        theta = naive.leaves(self.theta)
        grads = naive.gradients(self.loss(theta, self.arch, (train, naive.TRAIN)), theta)
        self.move_statistics()
        self.norm = norm_of(grads)
        grads = naive.clipped(grads, clip) if clip else grads
        self.theta, self.buffers = naive.sgd(self.theta, grads, self.buffers, lr=self.lr, momentum=MOMENTUM, weight_decay=DECAY)

    # ---------------------------------------------------------------------------------------------------- both

    def agree(self, forwards: int) -> None:
        """Weights, alpha, running statistics of both sides; batch norm has counted so many forwards."""
        assert_all_close(copied(self.modules()), self.theta)
        assert_all_close(copied(self.architecture()), self.arch)
        state = self.supernet.state_dict()
        mean, var = ({n: s[i] for n, s in self.stats.items()} for i in (0, 1))
        # the mean of an average over all pixels of normalised pixels is a zero with rounding: a scale of one
        for n in mean:
            assert float((state[f"{n}.running_mean"] - mean[n]).abs().max()) <= 1e-9 * max(1, float(mean[n].abs().max()))
        assert_all_close({n: state[f"{n}.running_var"] for n in var}, var)
        assert {int(t) for n, t in state.items() if n.endswith("num_batches_tracked")} == {forwards}


def norm_of(grads: dict[str, Tensor]) -> float:
    return float(torch.cat([g.flatten() for g in grads.values()]).norm())


def copied(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in named.items()}


def at(step: int) -> Tensor:
    return torch.tensor([step])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kind", "space", "k"),
    [("supervised", S0, 1), ("supervised", FEW, 2), ("masked", FEW, 1), ("masked", S0, 2)],
    ids=["darts", "few-2", "mae-1", "mae-pc"],
)
def test_first_order_gradient_matches_formulas(kind: str, space: Space, k: int, backend: str) -> None:
    pair = Pair(kind, space, k, backend)
    train, val = batch(1), batch(2)
    want = pair.gradient(train, val, unrolled=False)
    loss, grads = pair.bilevel.first_order_gradient(at(0), train, val)
    assert_all_close(pair.named(grads), want)
    assert_close(loss, pair.loss(pair.theta, pair.arch, (val, naive.VAL)).detach(), "loss")
    assert all(p.grad is None for p in [*pair.parameters(), *pair.architecture().values()])
    pair.agree(forwards=1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("momentum", [False, True], ids=["no-buffer", "buffer"])
@pytest.mark.parametrize(
    ("kind", "space", "k"),
    [
        pytest.param("supervised", S0, 1, marks=pytest.mark.slow, id="darts"),
        pytest.param("supervised", FEW, 2, id="few-2"),
        pytest.param("masked", S0, 2, marks=pytest.mark.slow, id="mae-pc"),
    ],
)
def test_unrolled_gradient_matches_formulas(kind: str, space: Space, k: int, momentum: bool, backend: str) -> None:
    """Before the first and after some steps of the weights; eta is the rate that the schedule has set by then."""
    pair = Pair(kind, space, k, backend, grad_clip=0)
    train, val = batch(1), batch(2)
    forwards = 3
    if momentum:
        pair.weight_step(batch(3), clip=0)
        pair.bilevel.weight_step(at(0), batch(3))
        forwards += 1
    pair.lr = pair.bilevel.weight_optimizer.param_groups[0]["lr"] = 0.03
    before = copied(pair.modules())
    want = pair.gradient(train, val, unrolled=True)
    first = naive.first_order(pair.loss, pair.theta, pair.arch, (val, naive.VAL))
    loss, grads = pair.bilevel.unrolled_gradient(at(0), train, val)
    assert_all_close(pair.named(grads), want)
    for name in want:  # and it is another gradient
        assert float((want[name] - first[name]).abs().max()) > 1e-3 * float(first[name].abs().max())
    assert torch.isfinite(loss)
    after = pair.modules()
    assert all(torch.equal(before[n], after[n]) for n in before)  # to the bit
    assert all(p.grad is None for p in [*pair.parameters(), *pair.architecture().values()])
    pair.agree(forwards)


def virtual(pair: Pair, train: tuple[Batch, int], arch: dict[str, Tensor], eta: float) -> dict[str, Tensor]:
    """The weights after one step of plain descent."""
    theta = naive.leaves(pair.theta)
    g = naive.gradients(pair.loss(theta, arch, train), theta)
    return {n: (t - eta * (g[n] + DECAY * t)).detach() for n, t in theta.items()}


def test_unrolled_loss_is_at_virtual_weights() -> None:
    pair = Pair()
    train, val = batch(1), batch(2)
    want = pair.loss(virtual(pair, (train, naive.TRAIN), pair.arch, LR), pair.arch, (val, naive.VAL))
    loss, _ = pair.bilevel.unrolled_gradient(at(0), train, val)
    assert_close(loss, want, "loss")


@pytest.mark.parametrize("first", ["alpha-first", "weights-first"])
@pytest.mark.parametrize("unrolled", [False, True], ids=["first-order", "second-order"])
@pytest.mark.parametrize("kind", ["supervised", "masked"])
def test_three_steps_match_formulas(kind: str, unrolled: bool, first: str) -> None:
    """Three of them: clipping, SGD with momentum and decay, Adam with decay, in either order."""
    clip, arch_clip = 0.2, 0.005
    weights_first = first == "weights-first"
    pair = Pair(kind, unrolled=unrolled, grad_clip=clip, arch_grad_clip=arch_clip, weights_first=weights_first)
    forwards = 0
    for step in range(3):
        train, val = batch(10 + step), batch(20 + step)
        pair.step = step
        if weights_first:
            pair.weight_step(train, clip)
        pair.arch_step(train, val, unrolled, arch_clip)
        if not weights_first:
            pair.weight_step(train, clip)
        assert pair.norm > clip and pair.arch_norm > arch_clip  # or clipping would not be seen
        losses = pair.bilevel(at(step), train, val)
        assert all(torch.isfinite(x) and not x.requires_grad and x.ndim == 0 for x in losses)
        forwards += 4 if unrolled else 2
        pair.agree(forwards)
    assert all(p.grad is None for p in [*pair.parameters(), *pair.architecture().values()])


@pytest.mark.parametrize("clip", [0.0, 1e6])
def test_steps_without_clipping_match_formulas(clip: float) -> None:
    pair = Pair(grad_clip=clip, arch_grad_clip=clip)
    for step in range(2):
        pair.arch_step(batch(1), batch(2), False, clip)
        pair.weight_step(batch(1), clip)
        assert 0 < max(pair.norm, pair.arch_norm) < 1e6
        pair.bilevel(at(step), batch(1), batch(2))
    pair.agree(forwards=4)


def test_losses_are_returned_in_order() -> None:
    pair = Pair()
    train, val = batch(1), batch(2)
    with torch.no_grad():
        want_val = pair.loss(pair.theta, pair.arch, (val, naive.VAL))
    pair.arch_step(train, val, False, 0)
    with torch.no_grad():
        want_train = pair.loss(pair.theta, pair.arch, (train, naive.TRAIN))
    got_train, got_val = pair.bilevel(at(0), train, val)
    assert_close(got_val, want_val)
    assert_close(got_train, want_train)


def test_alpha_is_unchanged_without_validation_batch() -> None:
    pair = Pair()
    loss, val_loss = pair.bilevel(at(0), batch(1), None)
    pair.weight_step(batch(1), 5.0)
    assert val_loss is None
    assert torch.isfinite(loss)
    assert all(torch.equal(t, pair.arch[n]) for n, t in pair.architecture().items())
    assert not pair.bilevel.arch_optimizer.state
    pair.agree(forwards=1)


FUSED = ("fastdarts::mixed_cell_backward", "fastdarts::relu_conv_bn_backward")


class Backward(TorchDispatchMode):
    """Counts, among the operators that run, those that compute the gradient of a weight, and those of an input."""

    def __init__(self, shapes: set[tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes, self.weights, self.inputs = shapes, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name()
        if name in FUSED:
            self.inputs += args[-4] if name == FUSED[0] else sum(args[-3])
            self.weights += args[-2]
        elif name == "aten::convolution_backward" or name.endswith("batch_norm_backward"):
            self.inputs += out[0] is not None
            self.weights += out[1] is not None
        elif name == "aten::mm":
            self.weights += tuple(out.shape) in self.shapes or tuple(out.shape[::-1]) in self.shapes
        return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["supervised", "masked"])
def test_alpha_step_computes_no_weight_gradients(kind: str, backend: str) -> None:
    pair = Pair(kind, backend=backend)
    shapes = {tuple(p.shape) for n, p in pair.modules().items() if p.ndim == 2}
    with Backward(shapes) as forward, torch.no_grad():  # which may multiply matrices of that shape itself
        pair.objective(pair.supernet, pair.relaxation.weights(), batch(2), at(0), Stream.VAL)
    with Backward(shapes) as alpha:
        pair.bilevel.arch_step(at(0), batch(1), batch(2))
    with Backward(shapes) as weights:
        pair.bilevel.weight_step(at(0), batch(1))
    assert alpha.weights == forward.weights
    # which shows that the counting counts: candidate by candidate, or the three cells and their preprocess layers
    assert alpha.inputs > 50 if backend == "definition" else alpha.inputs >= 2 + 3  # what only the stem feeds needs none
    assert weights.weights > 100 if backend == "definition" else weights.weights > 3 + 6


def test_finite_differences_compute_no_weight_gradients() -> None:
    pair = Pair(unrolled=True, backend="definition")
    seen: list[list[bool]] = []
    pair.supernet.register_forward_pre_hook(lambda *_: seen.append([p.requires_grad for p in pair.supernet.parameters()]))
    pair.bilevel.arch_step(at(0), batch(1), batch(2))
    assert [set(flags) for flags in seen] == [{True}, {True}, {False}, {False}]
    assert all(p.requires_grad for p in pair.parameters())


@pytest.mark.parametrize("unrolled", [False, True])
def test_weights_are_trainable_after_failed_loss(unrolled: bool) -> None:
    pair = Pair(unrolled=unrolled)
    frozen = pair.supernet.stem[0].weight.requires_grad_(False)

    def failing(*_: Any) -> Tensor:
        raise RuntimeError("out of memory")

    if unrolled:
        frozen.requires_grad_(True)
        calls = iter(range(10))
        plain = pair.objective.forward
        pair.objective.forward = lambda *args: plain(*args) if next(calls) < 2 else failing()
    else:
        pair.objective.forward = failing
    with pytest.raises(RuntimeError, match="out of memory"):
        pair.bilevel.arch_step(at(0), batch(1), batch(2))
    assert [p is frozen and not unrolled for p in pair.parameters()] == [not p.requires_grad for p in pair.parameters()]


def test_weight_step_computes_no_alpha_gradients() -> None:
    pair = Pair()
    seen: list[bool] = []
    pair.supernet.register_forward_pre_hook(
        lambda _, args: seen.extend(t.requires_grad for kind in KINDS for t in args[1][kind])
    )
    pair.bilevel.weight_step(at(0), batch(1))
    assert seen == [False] * 4
    pair.bilevel.first_order_gradient(at(0), batch(1), batch(2))
    assert seen[4:] == [True] * 4


def test_weights_unused_by_loss_are_unchanged() -> None:
    """A classifier under masked reconstruction: no decay, no momentum; and no part in the second order."""
    pair = Pair("masked", unrolled=True)
    linear = pair.supernet.attach_classifier(CLASSES).double()
    before = copied(dict(linear.named_parameters()))
    pair.bilevel.weight_optimizer.param_groups[0]["params"].extend(linear.parameters())
    for step in range(2):
        pair.step = step
        pair.arch_step(batch(1), batch(2), True, 0)
        pair.weight_step(batch(1), 5.0)
        pair.bilevel(at(step), batch(1), batch(2))
    assert all(torch.equal(before[n], p) for n, p in linear.named_parameters())
    assert not any(pair.bilevel.weight_optimizer.state.get(p) for p in linear.parameters())
    pair.supernet.classifier = None
    pair.agree(forwards=8)


def test_weights_are_restored_after_failed_loss() -> None:
    pair = Pair(unrolled=True)
    before, calls = copied(pair.modules()), []
    plain = pair.objective.forward

    def failing(supernet: Supernet, weights: Any, b: Batch, step: Tensor, stream: int) -> Tensor:
        calls.append((stream, copy.deepcopy(supernet.stem[0].weight.detach())))
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return plain(supernet, weights, b, step, stream)

    pair.objective.forward = failing
    with pytest.raises(RuntimeError, match="out of memory"):
        pair.bilevel.unrolled_gradient(at(0), batch(1), batch(2))
    assert [stream for stream, _ in calls] == [Stream.TRAIN, Stream.VAL, Stream.TRAIN]
    stems = [w for _, w in calls]
    assert torch.equal(stems[0], before["stem.0.weight"])
    assert not torch.equal(stems[1], stems[0]) and not torch.equal(stems[2], stems[0])
    assert all(torch.equal(before[n], p) for n, p in pair.modules().items())


def test_reference_second_order_is_slope_of_unrolled_loss() -> None:
    """The reference itself, by differences: d/dalpha L_val(w - eta (dL_train(w, alpha) + decay w), alpha).

    With R = 1e-5 / |v|: DARTS' own R = 1e-2 / |v| is part of the definition, but far from the limit on a net this small.
    """
    pair = Pair()
    train, val = (batch(1), naive.TRAIN), (batch(2), naive.VAL)
    settings = {"eta": LR, "momentum": MOMENTUM, "weight_decay": DECAY, "buffers": None, "difference": 1e-5}
    grads = naive.second_order(pair.loss, pair.theta, pair.arch, train, val, **settings)
    g = torch.Generator().manual_seed(0)
    way = {n: torch.randn(t.shape, generator=g, dtype=torch.float64) for n, t in pair.arch.items()}
    sides = []
    for h in (1e-6, -1e-6):
        arch = {n: t + h * way[n] for n, t in pair.arch.items()}
        sides.append(float(pair.loss(virtual(pair, train, arch, LR), arch, val).detach()))
    slope = (sides[0] - sides[1]) / 2e-6
    assert sum(float((grads[n] * way[n]).sum()) for n in way) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fused_sgd_uses_gradient_strides(layout: torch.memory_format) -> None:
    """Gradients of channels_last images may lie otherwise than their weights, which torch's fused SGD does not look at."""
    torch.manual_seed(0)
    space = Space.uniform("small", ("skip_connect", "sep_conv_3x3"), nodes=1)
    supernet = Supernet(space, C=4, layers=3).double().to(memory_format=layout)
    objective = MaskedReconstruction(supernet.tap_channels, patch_size=4).double()
    relaxation = SoftmaxRelaxation(space, edge_normalization=False, dtype=torch.float64)
    weights = [*supernet.parameters(), *objective.parameters()]
    arch_optimizer = torch.optim.Adam(relaxation.parameters())
    optimizer = torch.optim.SGD(weights, 0.1, fused=True)
    bilevel = Bilevel(supernet, objective, relaxation, optimizer, arch_optimizer, grad_clip=0.0)
    train = batch(1)
    grads = torch.autograd.grad(objective(supernet, relaxation.weights(), train, at(0), Stream.TRAIN), weights)
    expected = [w.detach() - 0.1 * g for w, g in zip(weights, grads, strict=True)]
    bilevel.weight_step(at(0), train)
    for w, e in zip(weights, expected, strict=True):
        assert_close(w.detach(), e)
