"""The thread that writes checkpoints: it gets a copy, and its errors reach the search."""

import threading

import pytest
import torch

from fastdarts.engine import Writer


def test_later_steps_do_not_change_written_state():
    go, written = threading.Event(), []

    def put(state):
        go.wait(10)
        written.append(state)

    state = {"w": torch.zeros(3), "nested": [{"t": (torch.ones(1), 2)}], "epoch": 3}
    writer = Writer()
    writer.write(state, put)
    assert writer.busy
    state["w"] += 1
    state["nested"][0]["t"][0].fill_(9.0)
    writer.check()  # does not wait
    assert not written
    go.set()
    writer.wait()
    (copy,) = written
    assert copy["w"].tolist() == [0, 0, 0] and copy["nested"][0]["t"][0].item() == 1.0 and copy["epoch"] == 3
    assert not writer.busy


def test_write_waits_for_previous_one():
    order = []
    writer = Writer()
    for number in range(3):
        writer.write(number, order.append)
    writer.wait()
    assert order == [0, 1, 2]


@pytest.mark.parametrize("call", ["check", "wait", "write"])
def test_write_error_is_raised_once_by_next_call(call):
    def fail(_):
        raise OSError(28, "No space left on device")

    writer = Writer()
    writer.write({}, fail)
    while writer.busy:
        pass
    with pytest.raises(OSError, match="No space left"):
        writer.write({}, lambda _: None) if call == "write" else getattr(writer, call)()
    writer.wait()


def test_close_waits_without_raising():
    done = []
    writer = Writer()
    writer.write(1, done.append)
    writer.close()
    assert done == [1]
    writer.write(1, lambda _: 1 / 0)
    writer.close()
