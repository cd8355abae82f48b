"""Checkpoints written during the next steps: the state is copied between two steps, a thread writes the copy."""

import functools
from collections.abc import Callable
from threading import Thread
from typing import Any

import torch
from torch import Tensor


class Copy:
    """A state that later steps do not change: plain values, and tensors on the CPU.

    Of a GPU's tensors only the order to copy them is given, into pinned memory, on the current stream: behind the step that
    was the last, before the next one. `ready` waits for them.
    """

    def __init__(self, state: Any) -> None:
        self._device: torch.device | None = None
        self.state, self._event = self._copied(state), None
        if self._device is not None:
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(self._device))

    def ready(self) -> Any:
        """The state, when all of it is there."""
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
        self._device = tensor.device  # all of a run are on one
        host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        return host.copy_(tensor, non_blocking=True)


class Writer:
    """One write at a time, in a thread. What it raises is raised by the next call here."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: Exception | None = None

    @property
    def busy(self) -> bool:
        """Whether the last write still goes on."""
        return self._thread is not None and self._thread.is_alive()

    def write(self, state: Any, put: Callable[[Any], None]) -> None:
        """Copy `state` now and call put(copy) in the thread; waits for the write before."""
        self.wait()
        copy = Copy(state)
        self._thread = Thread(target=functools.partial(self._put, copy, put), name="fastdarts-checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise what the last write raised, if it has ended."""
        if not self.busy:
            self.wait()

    def wait(self) -> None:
        """Until the last write has ended; raises what it raised."""
        self.close()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Until the last write has ended, however it does."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _put(self, copy: Copy, put: Callable[[Any], None]) -> None:
        try:
            put(copy.ready())
        except Exception as error:  # whatever it is, the next call raises it
            self._error = error
