"""Progress lines and durations."""

import logging

import pytest
import torch

from fastdarts.engine import Progress, duration
from fastdarts.protocols import Extent, StepReport


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (61, "1:01"), (3599.9, "1:00:00"), (36_061, "10:01:01"), (-3, "0:00")],
)
def test_duration_format(seconds, text):
    assert duration(seconds) == text


def test_progress_line_every_n_steps(monkeypatch, caplog):
    clock = iter([0.0, 2.0, 6.0])
    monkeypatch.setattr("fastdarts.engine.progress.perf_counter", lambda: next(clock))
    progress = Progress(2, Extent(3, 20, 23), Extent(0, 0, 3))
    caplog.set_level(logging.INFO, "fastdarts")
    for step in range(1, 5):
        losses = torch.tensor(0.5), None if step < 3 else torch.tensor(0.25)
        report = StepReport(1, step, 20, 8, losses, torch.zeros(2, dtype=torch.int64), (None, None))
        if progress.due(report):
            progress.line(report, {"train": 0.5, "alpha": None if step < 3 else 0.25})
    first, second = caplog.messages
    assert first == "epoch 1/3  step 2/20  train 0.5000  alpha not updated yet  8.0 images/s  0:18 left"
    assert second == "epoch 1/3  step 4/20  train 0.5000  alpha 0.2500  4.0 images/s  0:14 left"
