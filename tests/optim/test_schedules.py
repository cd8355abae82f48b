"""Learning rates, against numbers worked out by hand."""

import math

import pytest

from fastdarts.optim import learning_rate
from fastdarts.optim.schedules import Schedule


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


LINEAR = Schedule("linear", 0.5, warmup=5)
SCALED = Schedule("linear", 0.5, warmup=5, warmup_style="scale")
EXPONENTIAL = Schedule("exponential", 0.1)
MNASNET = Schedule("exponential", 0.064, warmup=5, warmup_style="ramp", warmup_rate=1e-6, decay_epochs=2.4)


@pytest.mark.parametrize(
    ("schedule", "epoch", "rate"),
    [
        (LINEAR, 0, 0.1),
        (LINEAR, 1, 0.2),
        (LINEAR, 4, 0.5),
        (LINEAR, 5, 0.5 * 240 / 245),
        (LINEAR, 244, 0.5 / 245),
        (LINEAR, 245, 0.5 * 5 / (245 * 5)),
        (LINEAR, 249, 0.5 / (245 * 5)),
        (SCALED, 0, 0.1),
        (SCALED, 4, 0.5 * 241 / 245),  # 0.4918
        (SCALED, 5, 0.5 * 240 / 245),
        (EXPONENTIAL, 0, 0.1),
        (EXPONENTIAL, 100, 0.1 * 0.97**100),
        (MNASNET, 0, 1e-6),
        (MNASNET, 1, 1e-6 + (0.064 - 1e-6) / 5),
        (MNASNET, 5, 0.064 * 0.97**2),
        (MNASNET, 7, 0.064 * 0.97**2),
        (MNASNET, 8, 0.064 * 0.97**3),
        (Schedule("constant", 0.3), 17, 0.3),
    ],
)
def test_schedules_of_published_trainings(schedule: Schedule, epoch: int, rate: float) -> None:
    """250 epochs of PC-DARTS, P-DARTS (whose warm-up scales), DARTS and MnasNet on ImageNet."""
    assert schedule(epoch, 250) == pytest.approx(rate, rel=1e-12)


def test_cosine_of_600_epochs() -> None:
    """DARTS' retraining: 0.025 in the first epoch, 1.7e-7 in the last."""
    cosine = Schedule("cosine", 0.025)
    assert cosine(0, 600) == 0.025
    assert cosine(599, 600) == pytest.approx(1.7135e-7, rel=1e-4)
    assert cosine(300, 600) == pytest.approx(0.0125, rel=1e-12)


@pytest.mark.parametrize("epochs", [1, 2, 5, 6])
def test_short_linear_schedule_stays_positive(epochs: int) -> None:
    rates = [Schedule("linear", 0.5)(epoch, epochs) for epoch in range(epochs)]
    assert all(rate > 0 for rate in rates) and rates == sorted(rates, reverse=True)
