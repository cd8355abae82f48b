"""RMSprop as TensorFlow computes it, by hand, and what a skipped update leaves behind."""

import torch

from fastdarts.optim.rmsprop import RMSpropTF
from fastdarts.optim.updates import step_if_finite


def test_two_steps_match_hand_computation() -> None:
    """Averages begin at 1, epsilon is inside the root, the rate inside the momentum, decay in the gradient."""
    w = torch.tensor([2.0, -1.0], dtype=torch.float64)
    optimizer = RMSpropTF([w], 0.1, alpha=0.9, eps=1e-3, momentum=0.5, weight_decay=0.01)
    expected, s, b = w.clone(), torch.ones(2).double(), torch.zeros(2).double()
    for rate, gradient in ((0.1, [3.0, 0.5]), (0.05, [-1.0, 0.25])):
        w.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = rate
        g = w.grad + 0.01 * expected
        s = 0.9 * s + 0.1 * g**2
        b = 0.5 * b + rate * g / (s + 1e-3).sqrt()
        expected = expected - b
        optimizer.step()
        assert torch.allclose(w, expected, rtol=1e-14, atol=0)


def test_tensor_rate_equals_number() -> None:
    ws = [torch.tensor([2.0, -1.0]) for _ in range(2)]
    for w, rate in zip(ws, (0.1, torch.tensor(0.1)), strict=True):
        w.grad = torch.tensor([1.0, -3.0])
        RMSpropTF([w], rate).step()
    assert torch.equal(*ws)


def test_skipped_update_changes_no_state() -> None:
    """Parameters, averages and momentum keep their values, also in the first step."""
    w = torch.tensor([2.0, -1.0])
    optimizer = RMSpropTF([{"params": [w]}, {"params": [torch.ones(1)], "weight_decay": 0.0}], 0.1)
    w.grad = torch.tensor([float("nan"), 1.0])
    step_if_finite(torch.ones(()), optimizer)
    assert w.tolist() == [2.0, -1.0]
    state = optimizer.state[w]
    assert state["square_avg"].tolist() == [1.0, 1.0] and state["momentum_buffer"].tolist() == [0.0, 0.0]
