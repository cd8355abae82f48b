"""Learning rates, against numbers worked out by hand."""

import math

import pytest

from fastdarts.optim import learning_rate


def test_cosine_of_darts() -> None:
    """0.025 -> 0.001 in 50 epochs; the first epoch has the whole rate, the last is one epoch before the minimum."""
    assert learning_rate(0, 50, 0.025, 0.001, 0) == pytest.approx(0.025, rel=1e-12)
    assert learning_rate(25, 50, 0.025, 0.001, 0) == pytest.approx(0.013, rel=1e-12)
    assert learning_rate(49, 50, 0.025, 0.001, 0) == pytest.approx(0.001 + 0.024 * (1 - math.cos(math.pi / 50)) / 2)


@pytest.mark.parametrize(
    ("epoch", "cosine"),
    [(10, (5 + math.sqrt(5)) / 8), (20, (3 + math.sqrt(5)) / 8), (30, (5 - math.sqrt(5)) / 8), (40, (3 - math.sqrt(5)) / 8)],
)
def test_cosine_at_fifths(epoch: int, cosine: float) -> None:
    """(1 + cos 36 degrees) / 2 and so on, in roots."""
    assert learning_rate(epoch, 50, 0.1, 0.0, 0) == pytest.approx(0.1 * cosine, rel=1e-12)


def test_warm_up_replaces_first_epochs_of_cosine() -> None:
    """0.5 * (epoch + 1) / 5 for five epochs; then the cosine where it would stand without warm-up."""
    assert [learning_rate(e, 50, 0.5, 0.0, 5) for e in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    for epoch in range(5, 50):
        assert learning_rate(epoch, 50, 0.5, 0.0, 5) == learning_rate(epoch, 50, 0.5, 0.0, 0)
    assert learning_rate(5, 50, 0.5, 0.0, 5) == pytest.approx(0.5 * (1 + math.cos(math.pi / 10)) / 2, rel=1e-12)


def test_rate_decreases_after_warm_up() -> None:
    rates = [learning_rate(e, 20, 0.3, 0.01, 3) for e in range(2, 20)]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == len(rates)
    assert min(rates) > 0.01
