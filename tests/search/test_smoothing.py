"""SDARTS: radius, projection and attack by hand, and what of a step sees the perturbed weights."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdarts.ops.philox import Stream
from fastdarts.optim.pieces import run_pieces
from fastdarts.search import AdversarialSmoothing, Hooks, RandomSmoothing, smoothing
from fastdarts.search.smoothing import project
from fastdarts.spaces import KINDS, Space
from fastdarts.supernet import CellWeights
from tests.search.test_bilevel import FEW, Pair, at, batch
from tests.search.test_progressive import searched, settings, timeless
from tests.support import naive
from tests.support.naive import assert_all_close, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

RAGGED = Space("ragged", (("skip_connect",), ("skip_connect", "none")), (("skip_connect", "none"),) * 2, nodes=1)


def make(cls: type[RandomSmoothing] = RandomSmoothing, space: Space = FEW, **more: Any) -> RandomSmoothing:
    return cls(space, edge_normalization=False, dtype=torch.float64, **more)


def test_published_radii() -> None:
    relaxation = make()
    radii = []
    for epoch in (0, 10, 25, 49):
        relaxation.epoch_begins(epoch, 50)
        radii.append(float(relaxation.epsilon))
    assert radii == pytest.approx([0.03, 0.084, 0.165, 0.2946])


def test_projection_by_hand() -> None:
    rows = torch.tensor([[0.5, 0.25, -0.25, 0.25], [1.5, 0.5, 0.5, -1.0], [-0.2, -0.1, -0.3, 9.0]])
    padding = torch.tensor([[False] * 4, [False] * 4, [False, False, False, True]])
    want = [[0.5, 0.25, 0.0, 0.25], [0.5, 0.25, 0.25, 0.0], [0.0, 1.0, 0.0, 0.0]]
    assert project(rows, padding).tolist() == want


def test_noise_is_uniform_and_depends_on_step_and_seed() -> None:
    draws = torch.cat([make(seed=7)._noise(at(step))[kind].flatten() for step in range(20) for kind in KINDS])
    count = len(draws)
    assert count == 20 * 2 * 14 * 4 and len(set(draws.tolist())) == count
    assert -1 <= float(draws.min()) < -0.99 and 0.99 < float(draws.max()) < 1
    assert abs(float(draws.mean())) < 4 * (3 * count) ** -0.5 and abs(float(draws.square().mean()) - 1 / 3) < 0.02
    first, again, other = (make(seed=seed)._noise(at(3))["reduce"] for seed in (7, 7, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_only_weight_update_sees_noise() -> None:
    """Its rows are on the simplex, padding stays 0, and alpha gets no gradient."""
    relaxation = make(space=RAGGED)
    relaxation.epsilon.fill_(0.3)
    plain = relaxation.weights(Stream.VAL)
    for stream in Stream:
        assert torch.equal(relaxation.weights(stream)["normal"].ops, plain["normal"].ops)
    bilevel: Any = None
    seen = run_pieces(relaxation.training_weights(bilevel, at(0), batch(0)), None)
    for kind, (ops, _) in seen.items():
        noisy = plain[kind].ops.detach() + 0.3 * relaxation._noise(at(0))[kind]
        noisy = noisy.clamp(0, 1) * ~relaxation.padding[kind]
        assert_close(ops, noisy / noisy.sum(1, keepdim=True))
        assert not ops.requires_grad and ops.sum(1).tolist() == pytest.approx([1.0] * len(ops))
    assert seen["normal"].ops[0].tolist() == [1.0, 0.0]


class Attack(Pair):
    """Its relaxation is the adversarial one, with the same alpha."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind, k=1)
        own = make(AdversarialSmoothing, seed=5)
        own.load_state_dict(self.relaxation.state_dict())
        own.epsilon.fill_(0.1)
        self.relaxation = self.bilevel.relaxation = own

    def evaluated(self, rows: Mapping[str, Tensor]) -> Tensor:
        """The loss with running statistics, by the formulas."""
        b = batch(1)
        x = naive.normalised(b.images, self.objective.mean, self.objective.std, b.flip.tolist())
        run = naive.Run(self.theta, self.stats, train=False)
        features = run.network(self.net, x, rows, None)
        return naive.cross_entropy(
            naive.head(features[-1], self.theta["classifier.weight"], self.theta["classifier.bias"]), b.labels
        )


def test_attack_matches_formulas() -> None:
    """Seven steps of 2/7 of the radius along the sign; the larger loss wins."""
    pair = Attack("supervised")
    before = deepcopy(pair.supernet.state_dict())
    plain = {kind: torch.stack(naive.edge_rows(pair.arch[f"alpha {kind}"], pair.net, kind)) for kind in KINDS}

    def on_simplex(rows: Tensor) -> Tensor:
        rows = rows.clamp(0, 1)
        return rows / rows.sum(1, keepdim=True)

    noise = pair.relaxation._noise(at(0))
    rows = {kind: on_simplex(plain[kind] + 0.1 * noise[kind]) for kind in KINDS}
    for _ in range(7):
        leaves = {kind: r.clone().requires_grad_() for kind, r in rows.items()}
        grads = torch.autograd.grad(pair.evaluated(leaves), list(leaves.values()))
        for kind, g in zip(KINDS, grads, strict=True):
            moved = rows[kind] + 0.2 / 7 * torch.sign(g) - plain[kind]
            rows[kind] = on_simplex(plain[kind] + moved.clamp(-0.1, 0.1))
    assert float(pair.evaluated(rows)) > float(pair.evaluated(plain))
    got = run_pieces(pair.relaxation.training_weights(pair.bilevel, at(0), batch(1)), None)
    assert_all_close({kind: w.ops for kind, w in got.items()}, rows)
    assert all(module.training for module in pair.supernet.modules())
    assert all(torch.equal(t, before[n]) for n, t in pair.supernet.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in pair.parameters())


@pytest.mark.parametrize(("losses", "attacked"), [((2.0, 1.0), False), ((1.0, 2.0), True), ((1.0, 1.0), True)])
def test_attack_without_larger_loss_is_rejected(
    losses: tuple[float, float], attacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    relaxation, values = make(AdversarialSmoothing), iter(losses)

    def probe(*given: Any, gradient: bool = True) -> Any:
        yield from ()
        weights: dict[Any, CellWeights] = given[-1]
        return torch.tensor(0.0 if gradient else next(values)), {kind: torch.ones_like(w.ops) for kind, w in weights.items()}

    monkeypatch.setattr(smoothing, "probe", probe)
    bilevel: Any = None
    got = run_pieces(relaxation.training_weights(bilevel, at(0), batch(0)), None)
    for kind, w in relaxation.weights().items():
        assert torch.equal(got[kind].ops, w.ops) != attacked


@pytest.mark.parametrize("method", ["sdarts-rs", "sdarts-adv"])
def test_resume_within_epoch_is_bitwise_identical(method: str) -> None:
    s = settings(progressive=False, epochs=2, begin=0, smoothing_epsilon=0.5)
    whole, states = searched(method, s), []
    want = timeless(list(whole.epochs(Hooks(lambda report: states.append(deepcopy(whole.state_dict()))))))
    assert float(whole.relaxation.epsilon) == pytest.approx(0.03 + 0.47 / 2)
    again = searched(method, s)
    again.load_state_dict(states[2])
    assert timeless(list(again.epochs())) == want[1:]
    plain = searched("darts-1st", s)
    assert plain.run_epoch()["train_loss"] != want[0]["train_loss"]
