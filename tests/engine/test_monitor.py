"""What a run says of itself: the status file, stages of a step, the traced window, event files."""

import json
import logging
import os
import time

import pytest
import torch

from fastdarts.engine import ProfileRange, no_tensorboard
from fastdarts.engine import status as status_file
from fastdarts.engine.monitor import of_epoch
from fastdarts.engine.profile import Profiler
from fastdarts.engine.status import Status
from fastdarts.engine.tensorboard import TensorBoardLogger
from fastdarts.runs.search_session import scalars
from fastdarts.spaces import S0
from fastdarts.steps import CapturedSteps
from fastdarts.steps.stage_timer import StageTimer
from tests.support.bilevels import batch, make, number

pytestmark = pytest.mark.usefixtures("one_thread")


def test_status_is_rewritten_at_most_once_a_second(tmp_path, monkeypatch):
    clock = iter([10.0, 10.0, 10.5, 11.0, 11.0])
    monkeypatch.setattr(status_file, "monotonic", lambda: next(clock))
    status = Status(tmp_path / "status")

    def line():
        (text,) = (tmp_path / "status").read_text().splitlines()
        return text.partition("  updated ")[0]

    status.running("step 1/9")
    assert line() == "running  step 1/9"
    status.running("step 2/9")
    assert line() == "running  step 1/9"
    status.running("step 3/9")
    assert line() == "running  step 3/9"
    status.finished("step 9/9")
    assert line() == "finished  step 9/9"
    status.stopped("a disk\nis  full", "step 4/9")
    assert line() == "stopped: a disk is full  step 4/9"
    assert [p.name for p in tmp_path.iterdir()] == ["status"]


@pytest.mark.parametrize("text", ["5", "5:3", "0:3", "a:b", "1:2:3", "-1:3", "", "1:", "1.0:2"])
def test_invalid_profile_ranges_are_rejected(text):
    with pytest.raises(ValueError, match=r"step"):
        ProfileRange.parse(text)


def test_only_profile_range_is_traced(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastdarts")
    profiler = Profiler(ProfileRange.parse("2:3"), tmp_path, torch.device("cpu"))
    for step in range(1, 6):
        with torch.profiler.record_function(f"step {step}"):
            torch.ones(3).sum()
        profiler.after_step(step)
    profiler.close()
    names = {event["name"] for event in json.loads((tmp_path / "trace-2-3.json").read_text())["traceEvents"]}
    assert {"step 2", "step 3"} <= names and not {"step 1", "step 4"} & names
    assert "steps 2 to 3 are traced" in caplog.text


@pytest.mark.parametrize("name", [b"run\xe9", b"run\n"])
def test_folder_of_any_name_gets_trace_and_event_files(name, tmp_path):
    pytest.importorskip("tensorboard")
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    board = TensorBoardLogger(folder)
    board.write(1, {"loss/train": 0.5})
    board.close()
    Profiler(ProfileRange(1, 1), folder, torch.device("cpu")).after_step(1)
    assert json.loads((folder / "trace-1-1.json").read_text())["traceEvents"]
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1 and len(list(folder.iterdir())) == 2
    assert {entry.name for entry in tmp_path.iterdir()} == {folder.name}


def test_profile_range_may_start_at_first_step_or_be_cut_off(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastdarts")
    profiler = Profiler(ProfileRange(1, 2), tmp_path, torch.device("cpu"))
    profiler.after_step(1)
    profiler.close()
    assert "no trace: the run ended before step 2" in caplog.text and not list(tmp_path.iterdir())


def test_nested_stages_are_subtracted(monkeypatch):
    """The optimizer's part is within the updates of weights and alpha; the sum is the steps' time."""
    bilevel = make()
    slow = bilevel._update
    monkeypatch.setattr(bilevel, "_update", lambda *a: (time.sleep(0.05), slow(*a)))
    stages = StageTimer()
    steps = CapturedSteps(stages.follow(bilevel), "off")
    started = time.perf_counter()
    for step in range(3):
        steps(number(step), batch(1), batch(2) if step else None)
    taken = time.perf_counter() - started
    seconds = stages.drain()
    assert set(seconds) == {"weights", "alpha", "optimizer"}
    assert seconds["optimizer"] > 5 * 0.05 and 0.9 * taken < sum(seconds.values()) <= taken
    assert stages.drain() == {}


def test_stage_ends_when_work_raises():
    stages = StageTimer()
    stages.follow(make())

    def fails():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        stages.timed("weights", fails)()
    stages.timed("reduce", time.sleep)(0.01)
    assert stages.drain()["reduce"] > 0.009


@pytest.mark.gpu
def test_gpu_stages_are_timed_by_events():
    stages = StageTimer()
    stages.follow(make(device="cuda"))
    a = torch.randn(4096, 4096, device="cuda")
    work = stages.timed("reduce", lambda: [a @ a for _ in range(20)])
    started = time.perf_counter()
    work()
    asked = time.perf_counter() - started
    torch.cuda.synchronize()
    assert stages.drain()["reduce"] > asked


@pytest.mark.skipif(no_tensorboard() is not None, reason="tensorboard is not installed")
def test_event_files_contain_measurements(tmp_path):
    """A continued run's events take the place of those after its checkpoint."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    columns = len(S0.candidates("normal")[0])
    record = {
        "step": 4,
        "lr": 0.1,
        "train_loss": 0.5,
        "alpha_loss": None,
        "valid": {"loss": 0.25},
        "cells": {kind: {"skips": 2} for kind in ("normal", "reduce")},
        "ops": {kind: [[1 / columns] * columns] * S0.num_edges for kind in ("normal", "reduce")},
        "edges": {"normal": [0.5] * S0.num_edges},
        "hessian": 3.0,
    }
    timing = {"seconds": 2.0, "input_seconds": 0.5, "stages": {"weights": 1.0}}
    board = TensorBoardLogger(tmp_path)
    board.write(2, {"loss/train": 0.75, "loss/alpha": 0.5})
    board.write(4, of_epoch(record, timing) | scalars(record, S0))
    board.write(6, {"loss/train": 9.0, "loss/alpha": None})
    board.close()
    time.sleep(1.1)  # event files are ordered by the second
    again = TensorBoardLogger(tmp_path, done=4)
    again.write(6, {"loss/train": 0.125})
    again.close()
    events = EventAccumulator(str(tmp_path)).Reload()

    def values(tag):
        return [(e.step, e.value) for e in events.Scalars(tag)]

    assert values("loss/train") == [(2, 0.75), (6, 0.125)] and values("loss/alpha") == [(2, 0.5)]
    assert values("hessian/largest_eigenvalue") == [(4, 3.0)] and values("skips/normal") == [(4, 2.0)]
    assert values("speed/waiting_for_input") == [(4, 0.25)] and values("valid/loss") == [(4, 0.25)]
    name = S0.candidates("reduce")[13][1]
    assert values(f"alpha_reduce/edge13_{name}") == [(4, pytest.approx(1 / columns))]
    assert values("beta_normal/edge0") == [(4, 0.5)] and values("seconds/weights") == [(4, 1.0)]
