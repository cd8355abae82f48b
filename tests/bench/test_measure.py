"""Measuring and reporting times."""

import pytest
import torch

from bench.measure import alternate, quantiles, timed
from bench.records import milliseconds


def test_quantiles_are_interpolated():
    assert quantiles([5.0, 1.0, 4.0, 2.0, 3.0, 6.0]) == pytest.approx({"median": 3.5, "q20": 2.0, "q80": 5.0})
    assert quantiles([7.0]) == {"median": 7.0, "q20": 7.0, "q80": 7.0}


def test_seconds_are_reported_in_milliseconds():
    assert milliseconds([0.25, 0.25]) == {"median": 250.0, "q20": 250.0, "q80": 250.0}


def test_sides_alternate_after_warm_up():
    calls = []

    def side(name):
        def run():
            calls.append(name)
            return torch.tensor(1.0)

        return run

    times = alternate({"ours": side("ours"), "eager": side("eager")}, "cpu", rounds=3, warm_up=2)
    assert {name: len(values) for name, values in times.items()} == {"ours": 3, "eager": 3}
    assert len(calls) == 10
    assert [set(calls[i : i + 2]) for i in range(0, 10, 2)] == [{"ours", "eager"}] * 5
    assert calls[4:6] == calls[7:5:-1] == calls[8:10]  # each round the other way about than the last


def test_nan_loss_raises():
    with pytest.raises(ArithmeticError, match="ours: the loss is not finite"):
        alternate({"ours": lambda: torch.tensor(float("nan"))}, "cpu", rounds=1, warm_up=0)


def test_timed_returns_seconds_and_result():
    seconds, result = timed(lambda: "done", "cpu")
    assert 0 <= seconds < 1
    assert result == "done"
