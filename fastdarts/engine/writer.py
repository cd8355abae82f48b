"""Asynchronous checkpoint writer: the state is copied between two steps, and a thread writes the copy."""

import functools
from collections.abc import Callable
from threading import Thread
from typing import Any

import torch
from torch import Tensor


class Copy:
    """Snapshot of a state, unaffected by later steps: plain values, and tensors on the CPU.

    Copies of GPU tensors to pinned memory are enqueued on the current stream, between the last step and the next one.
    `ready` waits for them.
    """

    def __init__(self, state: Any) -> None:
        self._device: torch.device | None = None
        self.state, self._event = self._copied(state), None
        if self._device is not None:
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(self._device))

    def ready(self) -> Any:
        """Return the state once all copies are complete."""
        if self._event is not None:
            self._event.synchronize()
        return self.state

    def _copied(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._copied(v) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copied(v) for v in value)
        return self._tensor(value.detach()) if isinstance(value, Tensor) else value

    def _tensor(self, tensor: Tensor) -> Tensor:
        if tensor.device.type != "cuda":
            return tensor.clone()
        self._device = tensor.device  # all tensors of a run share one device
        host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        return host.copy_(tensor, non_blocking=True)


class Writer:
    """Thread with one write at a time. Its exceptions are raised by the next call."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: Exception | None = None

    @property
    def busy(self) -> bool:
        """Return whether the last write is still in progress."""
        return self._thread is not None and self._thread.is_alive()

    def write(self, state: Any, put: Callable[[Any], None]) -> None:
        """Copy `state` now and call put(copy) in the thread; waits for the previous write."""
        self.wait()
        copy = Copy(state)
        self._thread = Thread(target=functools.partial(self._put, copy, put), name="fastdarts-checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise the exception of the last write, if it has ended."""
        if not self.busy:
            self.wait()

    def wait(self) -> None:
        """Wait for the last write; raises its exception."""
        self.close()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait for the last write; ignores its exception."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _put(self, copy: Copy, put: Callable[[Any], None]) -> None:
        try:
            put(copy.ready())
        except Exception as error:  # raised by the next call
            self._error = error
