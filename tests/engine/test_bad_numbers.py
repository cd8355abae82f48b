"""Which of the recent steps went bad, and on which images."""

import math

import torch

from fastdarts.engine import RecentSteps
from fastdarts.protocols import StepReport
from fastdarts.search.search import PARTS

FILES = [f"train/a/{n}.JPEG" for n in range(20)]


def note(recent, step, skipped, train=1.0, val=1.0, epoch=1, images=2):
    index = torch.arange(images) + step
    losses = torch.tensor(train), None if val is None else torch.tensor(val)
    count = torch.tensor(skipped)
    report = StepReport(epoch, step, 10, 8, losses, count, (index, None if val is None else index + 10))
    recent.note(report, f"after {step}")
    count += 7  # the counter goes on


def test_finite_steps_are_not_reported():
    recent = RecentSteps(PARTS)
    assert recent.look() == []
    note(recent, 1, [0, 0], val=None)
    note(recent, 2, [0, 0])
    assert recent.look() == []


def test_skipped_updates_and_losses_are_reported_with_images():
    recent = RecentSteps(PARTS)
    note(recent, 1, [0, 0])
    note(recent, 2, [1, 0], images=6)
    note(recent, 3, [1, 1], val=math.inf)
    note(recent, 4, [1, 1])
    second, third = recent.look()
    assert (second.epoch, second.step, second.positions) == (1, 2, "after 2")
    assert second.images == {"the weights": [2, 3, 4, 5, 6, 7], "alpha": [12, 13, 14, 15, 16, 17]}
    assert second.message(FILES) == (
        "step 2 of epoch 1: the update of the weights was skipped; images of the weights: train/a/2.JPEG, train/a/3.JPEG, "
        "train/a/4.JPEG, train/a/5.JPEG and 2 more; alpha: train/a/12.JPEG, train/a/13.JPEG, train/a/14.JPEG, "
        "train/a/15.JPEG and 2 more"
    )
    assert third.what == "the loss of alpha is inf, the update of alpha was skipped"
    assert recent.look() == []


def test_counters_continue_between_looks_and_restart_per_epoch():
    recent = RecentSteps(PARTS)
    recent.forget(1, [3, 0])  # of a run that is continued
    note(recent, 1, [3, 0])
    assert recent.look() == []
    note(recent, 2, [4, 0])
    assert [bad.step for bad in recent.look()] == [2]
    note(recent, 3, [4, 0])
    note(recent, 4, [1, 0], epoch=2)
    note(recent, 5, [1, 0], epoch=2)
    assert [bad.step for bad in recent.look()] == [4]


def test_only_losses_count_while_seeking_loss_scale():
    recent = RecentSteps(PARTS)
    note(recent, 1, [1, 0])
    note(recent, 2, [2, 0], train=math.nan)
    (bad,) = recent.look(seeking=True)
    assert (bad.step, bad.what) == (2, "the loss of the weights is nan")


def test_full_record_requests_look():
    recent = RecentSteps(PARTS)
    for step in range(1, 1025):
        assert not recent.full
        note(recent, step, [0, 0])
    assert recent.full
    recent.look()
    assert not recent.full
