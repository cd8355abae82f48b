"""DrNAS' relaxation: law, gradient and penalty against torch's and by hand, and a search that is continued."""

from copy import deepcopy

import pytest
import torch
from torch.distributions import Dirichlet
from torch.nn.functional import elu

from fastdarts.ops.philox import Stream
from fastdarts.search import DirichletRelaxation, Hooks
from fastdarts.spaces import Space
from tests.search.test_progressive import SPACE, searched, settings, timeless
from tests.support.naive import assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

THREE = "none", "skip_connect", "sep_conv_3x3"
RAGGED = Space("ragged", (THREE[1:], THREE), (THREE[:2],) * 2, nodes=1)


def make(space: Space = SPACE, **more: float) -> DirichletRelaxation:
    relaxation = DirichletRelaxation(space, dtype=torch.float64, **more)
    with torch.no_grad():
        for alpha in relaxation.alpha.values():
            alpha.mul_(1000)
    return relaxation


def test_sample_and_gradient_are_those_of_torch() -> None:
    relaxation = make()
    alpha = relaxation.alpha["normal"].detach().clone().requires_grad_()
    torch.manual_seed(3)
    ops = relaxation.weights(Stream.VAL)["normal"].ops
    torch.manual_seed(3)
    want = Dirichlet(elu(alpha) + 1).rsample()
    assert torch.equal(ops, want)
    factors = torch.randn(ops.shape, dtype=torch.float64)
    (got,) = torch.autograd.grad((ops * factors).sum(), relaxation.alpha["normal"])
    (grad,) = torch.autograd.grad((want * factors).sum(), alpha)
    assert torch.equal(got, grad) and grad.count_nonzero() == grad.numel()


def test_mean_is_share_of_concentration() -> None:
    """Beta / sum(beta), by hand: alpha = ln(1/2), 0, 2 gives 1/2, 1, 3. Of an edge with a shorter list, of its own alone."""
    relaxation = make(RAGGED)
    with torch.no_grad():
        relaxation.alpha["normal"].copy_(torch.tensor([[0.5, 1.0, 9.0], [0.5, 1.0, 1.0]]).log())
        relaxation.alpha["normal"][1, 2] = 2.0
    drawn = torch.stack([relaxation.weights(Stream.TRAIN)["normal"].ops.detach() for _ in range(3000)])
    assert drawn[:, 0, 2].count_nonzero() == 0
    assert drawn.mean(0).flatten().tolist() == pytest.approx([1 / 3, 2 / 3, 0, 1 / 9, 2 / 9, 6 / 9], abs=0.02)
    variance = 1 / 3 * 2 / 3 / 2.5  # a_i (a_0 - a_i) / (a_0^2 (a_0 + 1)), a_0 = 3/2
    assert drawn[:, 0, 0].var().item() == pytest.approx(variance, abs=0.01)
    (grad,) = torch.autograd.grad(relaxation.weights(Stream.VAL)["normal"].ops.square().sum(), relaxation.alpha["normal"])
    assert grad[0, 2] == 0


def test_evaluation_reads_softmax() -> None:
    relaxation = make()
    for _ in range(2):
        assert torch.equal(relaxation.weights()["reduce"].ops, relaxation.alpha["reduce"].softmax(-1))
    first, second = (relaxation.weights(Stream.TRAIN)["reduce"].ops for _ in range(2))
    assert not torch.equal(first, second)


def test_penalty_by_hand() -> None:
    """KL(Dir(2, 1) || Dir(1, 1)) = ln Gamma(3) + psi(2) - psi(3) = ln 2 - 1/2, for two edges of either kind."""
    space = Space("two", (("skip_connect", "sep_conv_3x3"),) * 2, (("skip_connect", "sep_conv_3x3"),) * 2, 1)
    relaxation = make(space, kl=0.5)
    with torch.no_grad():
        for alpha in relaxation.alpha.values():
            alpha.copy_(torch.tensor([[1.0, 0.0]] * 2))
    penalty = relaxation.penalty()
    assert penalty is not None and make(space).penalty() is None
    assert_close(penalty.detach(), 0.5 * 4 * (torch.tensor(2.0, dtype=torch.float64).log() - 0.5))


def test_resume_is_bitwise_identical() -> None:
    """With torch's generator, which a checkpoint holds too."""
    s = settings(progressive=False, epochs=2, begin=0, dirichlet_kl=1e-3)
    whole, states = searched("drnas", s), []
    hooks = Hooks(lambda report: states.append((deepcopy(whole.state_dict()), torch.get_rng_state())))
    want = timeless(list(whole.epochs(hooks)))
    again, (state, drawn) = searched("drnas", s), states[2]
    again.load_state_dict(state)
    torch.set_rng_state(drawn)
    assert timeless(list(again.epochs())) == want[1:]
