"""The supernet against the formulas of tests/support/naive.py, float64: outputs, every gradient, running statistics."""

import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fastdarts.search import SoftmaxRelaxation
from fastdarts.spaces import KINDS, S0, Space
from fastdarts.supernet import CellWeights, Supernet
from tests.support import naive
from tests.support.backends import BACKENDS, by_darts_names
from tests.support.naive import assert_all_close, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Case:
    """A supernet, the formulas' description of it, and an input: equal weights on both sides."""

    net: naive.Net
    supernet: Supernet
    theta: dict[str, Tensor]
    stats: naive.Stats
    images: Tensor


def make(stem: str, k: int, space: Space = S0, sampling: str = "first", seed: int = 0, backend: str = "definition") -> Case:
    C, side, count = (12 if k == 4 else 4), (8 if stem == "cifar" else 64), (3 if stem == "cifar" else 2)
    net = naive.Net(C=C, layers=3, k=k, stem=stem, candidates=None if space is S0 else both_lists(space))
    theta, stats = naive.random_checkpoint(net, None, seed)
    how = {"channel_sampling": sampling, "seed": 11, "backend": backend}
    supernet = Supernet(space, C=C, layers=3, stem=stem, partial_channels=k, **how)
    supernet.double().load_state_dict(naive.flat_checkpoint(theta, stats))
    g = torch.Generator().manual_seed(seed + 1)
    images = torch.randn(count, 3, side, side, generator=g, dtype=torch.float64)
    return Case(net, supernet, naive.leaves(theta), stats, images.requires_grad_())


def both_lists(space: Space) -> dict[str, tuple[tuple[str, ...], ...]]:
    return {"normal": space.normal, "reduce": space.reduce}


def arbitrary(*shape: int, seed: int) -> Tensor:
    """Weights off the simplex: negative ones, ones above 1, exact zeros and an exact one."""
    g = torch.Generator().manual_seed(seed)
    w = 1.5 * torch.randn(*shape, generator=g, dtype=torch.float64)
    w[torch.rand(*shape, generator=g) < 0.2] = 0.0
    w.view(-1)[seed % w.numel()] = 1.0
    return w.requires_grad_()


def objective(taps: list[Tensor]) -> Tensor:
    """A scalar with a generic gradient at every entry of every tap."""
    g = torch.Generator().manual_seed(99)
    return sum((torch.randn(t.shape, generator=g, dtype=torch.float64) * t).sum() for t in taps)


def gradients(scalar: Tensor, of: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without a default for what the scalar does not reach: every one of them must be reached."""
    return dict(zip(of, torch.autograd.grad(scalar, list(of.values())), strict=True))


def gradients_of(case: Case, scalar: Tensor, mix: dict[str, Tensor]) -> dict[str, Tensor]:
    """In the supernet's weights, by DARTS' names, and in `mix`."""
    return by_darts_names(case.supernet, gradients(scalar, dict(case.supernet.named_parameters()) | mix))


def moved(case: Case, run: naive.Run, train: bool) -> None:
    """The supernet's buffers are the formulas' running statistics after one forward (the old ones in eval mode)."""
    want = run.moved if train else case.stats
    assert set(want) == set(case.stats)
    state = case.supernet.state_dict()
    got = {n: t for n, t in state.items() if ".running_" in n}
    assert_all_close(got, {f"{n}.running_{w}": s for n in want for w, s in zip(("mean", "var"), want[n], strict=True)})
    counts = [int(t) for n, t in state.items() if n.endswith("num_batches_tracked")]
    assert counts == [int(train)] * len(case.stats)


CASES = [(stem, k) for stem in ("cifar", "imagenet") for k in (1, 2, 4)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("train", [True, False], ids=["batch-statistics", "running-statistics"])
@pytest.mark.parametrize(("stem", "k"), CASES)
def test_features_and_gradients_match_reference(stem: str, k: int, train: bool, backend: str) -> None:
    case = make(stem, k, backend=backend)
    ops = {kind: arbitrary(14, 8, seed=i) for i, kind in enumerate(KINDS)}
    edges = {kind: arbitrary(14, seed=5 + i) for i, kind in enumerate(KINDS)}
    run = naive.Run(case.theta, case.stats, train)
    want = run.taps(case.net, case.images, ops, edges)
    case.supernet.train(train)
    got = case.supernet(case.images, {kind: CellWeights(ops[kind], edges[kind]) for kind in KINDS})
    assert len(got) == 3
    for level, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_close(a, b, f"F{level + 1}")

    mix = {"images": case.images, **{f"a {n}": t for n, t in ops.items()}, **{f"b {n}": t for n, t in edges.items()}}
    assert_all_close(
        gradients_of(case, objective(got), mix),
        gradients(objective(want), case.theta | mix),
    )
    moved(case, run, train)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("stem", "k"), CASES)
def test_alpha_and_beta_gradients_match_reference(stem: str, k: int, backend: str) -> None:
    """Through softmax and edge normalisation; alphas far from their start, so that every weight differs."""
    case = make(stem, k, backend=backend)
    relaxation = SoftmaxRelaxation(S0, edge_normalization=k > 1, seed=3, dtype=torch.float64)
    with torch.no_grad():
        for p in relaxation.parameters():
            p.mul_(1e3)
    alpha = naive.leaves(relaxation.alpha)
    beta = naive.leaves(relaxation.beta) if k > 1 else {}
    rows = {kind: naive.edge_rows(alpha[kind], case.net, kind) for kind in KINDS}
    betas = {kind: naive.edge_betas(beta[kind]) for kind in KINDS} if k > 1 else None
    want = naive.Run(case.theta, case.stats).taps(case.net, case.images, rows, betas)
    got = case.supernet(case.images, relaxation.weights())
    for level, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_close(a, b, f"F{level + 1}")
    named = [*(f"alpha {n}" for n in KINDS), *(f"beta {n}" for n in KINDS if k > 1)]
    assert_all_close(
        gradients(objective(got), dict(zip(named, relaxation.parameters(), strict=True))),
        gradients(objective(want), dict(zip(named, [*alpha.values(), *beta.values()], strict=True))),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("k", [1, 2])
def test_candidate_lists_may_differ_by_edge(stem: str, k: int, backend: str) -> None:
    """Of one to eight candidates, in any order; what pads the shorter rows has no part in anything."""
    pick = random.Random(7)

    def lists() -> tuple[tuple[str, ...], ...]:
        out = []
        for e in range(14):
            names = ("none",)
            while names == ("none",):
                names = tuple(pick.sample(naive.S0, 1 + (3 * e + pick.randrange(2)) % 8))
            out.append(names)
        return tuple(out)

    space = Space("ragged", lists(), lists())
    assert {len(names) for names in space.normal} >= {1, 2, 4, 8}
    case = make(stem, k, space, backend=backend)
    relaxation = SoftmaxRelaxation(space, edge_normalization=True, seed=3, dtype=torch.float64)
    with torch.no_grad():
        for p in relaxation.parameters():
            p.mul_(1e3)
    alpha, beta = naive.leaves(relaxation.alpha), naive.leaves(relaxation.beta)
    rows = {kind: naive.edge_rows(alpha[kind], case.net, kind) for kind in KINDS}
    betas = {kind: naive.edge_betas(beta[kind]) for kind in KINDS}
    run = naive.Run(case.theta, case.stats)
    want = run.taps(case.net, case.images, rows, betas)
    got = case.supernet(case.images, relaxation.weights())
    for level, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_close(a, b, f"F{level + 1}")
    named = [f"{w} {n}" for w in ("alpha", "beta") for n in KINDS]
    got_grads = gradients_of(case, objective(got), dict(zip(named, relaxation.parameters(), strict=True)))
    want_grads = gradients(objective(want), case.theta | dict(zip(named, [*alpha.values(), *beta.values()], strict=True)))
    assert_all_close(got_grads, want_grads)
    moved(case, run, True)
    for kind in KINDS:
        for e, names in enumerate(space.candidates(kind)):
            assert got_grads[f"alpha {kind}"][e, len(names) :].count_nonzero() == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("stem", "k"), [("cifar", 2), ("cifar", 4), ("imagenet", 2)])
def test_random_channels_match_reference(stem: str, k: int, backend: str) -> None:
    """Eq. 2 of PC-DARTS, in place, on channels that are the smallest words of Philox (written out in naive.py)."""
    case = make(stem, k, sampling="random", backend=backend)
    ops = {kind: arbitrary(14, 8, seed=i) for i, kind in enumerate(KINDS)}
    edges = {kind: arbitrary(14, seed=5 + i) for i, kind in enumerate(KINDS)}
    weights = {kind: CellWeights(ops[kind], edges[kind]) for kind in KINDS}
    mix = {"images": case.images, **{f"a {n}": t for n, t in ops.items()}, **{f"b {n}": t for n, t in edges.items()}}
    run = naive.Run(case.theta, case.stats)
    channels = naive.random_channels(case.net, 11, naive.VAL, 6)
    want = run.taps(case.net, case.images, ops, edges, channels)
    got = case.supernet(case.images, weights, torch.tensor([6]), naive.VAL)
    for level, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_close(a, b, f"F{level + 1}")
    assert_all_close(
        gradients_of(case, objective(got), mix),
        gradients(objective(want), case.theta | mix),
    )
    moved(case, run, True)


def test_random_channels_depend_on_step_and_stream() -> None:
    case = make("cifar", 4, sampling="random")
    weights = {kind: CellWeights(torch.rand(14, 8, dtype=torch.float64)) for kind in KINDS}
    seen: list[Tensor] = []
    for cell in case.supernet.cells:
        cell._ops.register_forward_pre_hook(lambda _, args: seen.extend(args[3]))

    def channels(step: int, stream: int) -> list[tuple[int, ...]]:
        seen.clear()
        case.supernet(case.images, weights, torch.tensor([step]), stream)
        return [tuple(t.tolist()) for t in seen]

    first = channels(0, naive.TRAIN)
    widths = [case.net.width(i) for i in range(3) for _ in range(14)]
    assert len(first) == 3 * 14
    for chosen, width in zip(first, widths, strict=True):
        assert len(set(chosen)) == len(chosen) == width // 4
        assert all(0 <= c < width for c in chosen)
    assert channels(0, naive.TRAIN) == first
    assert len(set(first)) > 14  # of 28 and 120 and more possible choices: edges draw for themselves
    assert first[14:28] != first[28:]
    for other in (channels(1, naive.TRAIN), channels(0, naive.VAL)):
        assert sum(a != b for a, b in zip(other, first, strict=True)) > 30
    used = {c for step in range(40) for c in channels(step, naive.TRAIN)[0]}
    assert used == set(range(12))


def test_random_channels_need_step() -> None:
    case = make("cifar", 2, sampling="random")
    weights = {kind: CellWeights(torch.rand(14, 8, dtype=torch.float64)) for kind in KINDS}
    with pytest.raises(ValueError, match="step"):
        case.supernet(case.images, weights)


@pytest.mark.parametrize(("stem", "k"), [("cifar", 2), ("imagenet", 1)])
def test_reference_gradients_match_finite_differences(stem: str, k: int) -> None:
    """The reference's own autograd against central differences, along random directions of each kind of variable."""
    case = make(stem, k)
    ops = {kind: arbitrary(14, 8, seed=i) for i, kind in enumerate(KINDS)}
    edges = {kind: arbitrary(14, seed=5 + i) for i, kind in enumerate(KINDS)}

    def value(theta: dict[str, Tensor], ops: dict[str, Tensor], edges: dict[str, Tensor]) -> Tensor:
        return objective(naive.Run(theta, case.stats).taps(case.net, case.images, ops, edges))

    groups = (case.theta, ops, edges)
    at = value(*groups)
    for number, group in enumerate(groups):
        g = torch.Generator().manual_seed(number)
        way = {n: torch.randn(t.shape, generator=g, dtype=torch.float64) for n, t in group.items()}
        grads = gradients_kept(at, group)
        slope = sum(float((grads[n] * way[n]).sum()) for n in group)
        sides = []
        for h in (1e-7, -1e-7):
            there = list(groups)
            there[number] = {n: t + h * way[n] for n, t in group.items()}
            with torch.no_grad():
                sides.append(float(value(*there)))
        assert abs((sides[0] - sides[1]) / 2e-7 - slope) <= 1e-6 * abs(slope)


def gradients_kept(scalar: Tensor, of: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(zip(of, torch.autograd.grad(scalar, list(of.values()), retain_graph=True), strict=True))


@pytest.mark.parametrize(("stem", "side", "multiple"), [("cifar", 10, 4), ("imagenet", 48, 32)])
def test_indivisible_image_side_is_rejected(stem: str, side: int, multiple: int) -> None:
    supernet = Supernet(S0, C=4, layers=3, stem=stem)
    weights = {kind: CellWeights(torch.rand(14, 8)) for kind in KINDS}
    assert supernet.multiple == multiple
    with pytest.raises(ValueError, match=f"{side}x{side}.*{stem}.*{multiple}"):
        supernet(torch.zeros(2, 3, side, side), weights)


@pytest.mark.parametrize(
    "wrong", [{"layers": 2}, {"C": 6, "partial_channels": 4}, {"C": 5, "stem": "imagenet"}, {"partial_channels": 0}]
)
def test_invalid_sizes_are_rejected(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"layers|C/k|even number"):
        Supernet(S0, **wrong)
