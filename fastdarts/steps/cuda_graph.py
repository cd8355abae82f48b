"""Capture training steps as CUDA graphs: one graph for each update (of the weights, of alpha), in one memory pool.

A graph replays kernels on fixed addresses. So a step's batches and number are copied into static buffers, and learning rates
are device tensors. Gradients are clipped and updates skipped on the device too (optim.updates). Random masks and channels
are functions of the step number there, and losses stay there until read. The graphs exchange no data through their pool, so
each is captured at its update's first step: alpha's perhaps epochs later. They are replayed in step order, on one stream.

With several ranks, an update is split at the averaging of its gradients: a graph of the forward and backward pass, the
average as an ordinary operator, a graph that clips and steps (second order adds two more). Tensors passed between the pieces
stay in the pool as long as the pieces.

Capture does not affect the run: after three warm-up steps, parameters, optimizer state, buffers and random number generators
are restored exactly.
"""

import logging
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.optim.pieces import run_pieces
from fastdarts.optim.updates import capturable
from fastdarts.protocols import Pieces, Update, Updates

Mode = Literal["auto", "on", "off"]
WARM_UP = 3  # steps; the last one is checked for host synchronisation
log = logging.getLogger("fastdarts")


class CaptureError(RuntimeError):
    """Steps cannot be captured although requested; the message gives the reason."""


class Recording(NamedTuple):
    """Result of a capture: `replay` repeats the work and writes its result to `result`, a static tensor."""

    replay: Callable[[], None]
    result: Tensor


class Recorder:
    """Capture work on a GPU, on a side stream and in one memory pool for all recordings."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device, priority=-1)  # another pool than the loaders' streams, which torch reuses

    def warm_up(self, work: Callable[[], Tensor]) -> str | None:
        """Run `work` WARM_UP times. Returns None, or a sentence why it cannot be captured: it synchronises with the device."""
        with torch.cuda.device(self.device):
            here, mode = torch.cuda.current_stream(), torch.cuda.get_sync_debug_mode()
            self.stream.wait_stream(here)
            try:
                with torch.cuda.stream(self.stream):
                    for _ in range(WARM_UP - 1):
                        work()
                    torch.cuda.set_sync_debug_mode("error")
                    work()
            except RuntimeError as error:
                if "synchronizing CUDA operation" not in str(error):
                    raise
                return "something in the step waits for the device (.item(), a copy to the host, nonzero)"
            finally:
                torch.cuda.set_sync_debug_mode(mode)
                here.wait_stream(self.stream)
        return None

    def capture(self, work: Callable[[], Tensor]) -> Recording:
        """Capture `work` without running it. Raises RuntimeError if part of it cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            here = torch.cuda.current_stream()
            try:
                with torch.cuda.graph(graph, pool=self.pool, **self._how()):
                    result = work()
            except Exception:
                self._abandon()
                raise
            finally:
                torch.cuda.set_stream(here)  # a failed capture leaves its own stream current
        return Recording(graph.replay, result)

    def _abandon(self) -> None:
        """Finish the clean-up that torch omits after a capture that could not be ended.

        Its allocator would remain in capture mode: this capture's memory stays allocated, empty_cache() and the next capture
        fail. So would its random generator, until a capture succeeds: here one of a single kernel.
        """
        try:
            torch._C._cuda_endAllocateToPool(self.device.index, self.pool)
        except RuntimeError:  # already ended
            return
        torch._C._cuda_releasePool(self.device.index, self.pool)
        with torch.cuda.graph(torch.cuda.CUDAGraph(), **self._how()):
            torch.zeros((), device=self.device)

    def _how(self) -> dict[str, Any]:
        return {"stream": self.stream, "capture_error_mode": "thread_local"}  # the loader's pinning thread keeps running


class CapturedSteps:
    """Drop-in replacement of a step that replays its updates as CUDA graphs if they can be captured.

    updates  the uncaptured step, search.Bilevel for one
    mode     "auto": if capture fails, the reason is logged once and steps run eagerly.
             "on": a failed capture raises CaptureError. "off": no capture

    A batch whose sizes differ from the first one's runs uncaptured. Learning rates become device tensors; they may be filled
    in place or replaced by numbers at any time. The step's other settings (clipping, second order) and its modules' training
    mode are fixed at capture. Losses are new tensors, numerically equal to the uncaptured step's.
    """

    def __init__(self, updates: Updates, mode: Mode = "auto") -> None:
        self.updates, self.mode = updates, mode
        self.reason: str | None = "switched off" if mode == "off" else None  # reason why steps run uncaptured
        self._graphs: dict[Update, list[Recording]] = {}  # pieces by update
        self._optimizers = tuple(updates.optimizers.values())
        self._rates: list[Tensor] = []
        self._begun = False
        self._recorder: Recorder  # this and the next two: made by _begin
        self._step: Tensor
        self._train: Batch
        self._val: Any = None  # a Batch, once one was given
        self._said_shapes = False

    @property
    def captured(self) -> bool:
        """Return whether steps have been captured."""
        return bool(self._graphs)

    def __call__(self, step: Tensor, train: Batch, val: Batch | None) -> tuple[Tensor, Tensor | None]:
        """Run one step; see protocols.Updates.__call__. Raises CaptureError."""
        if self.reason is None and not self._begun:
            self._begin(step, train)
        if self.reason is not None or not self._fits(train, val):
            return self.updates(step, train, val)
        self._copy(step, train, val)
        losses = {update: self._take(update) for update in self.updates.order(val is not None)}
        return losses["weights"], losses.get("alpha")

    def _begin(self, step: Tensor, train: Batch) -> None:
        """Allocate the graphs' input buffers, unless capture is already known to be impossible."""
        if why := refusal(self.updates):
            self._give_up(why)
            return
        self._recorder, self._begun = Recorder(self.updates.device), True
        self._step, self._train = torch.empty_like(step), Batch(*map(torch.empty_like, train))
        self._rates = [_rate(group["lr"], self.updates.device) for o in self._optimizers for group in o.param_groups]

    def _give_up(self, why: str) -> None:
        if self.mode == "on":
            raise CaptureError(f"the step cannot be captured in a CUDA graph: {why}")
        log.info(f"steps are not captured in CUDA graphs: {why}")
        self.reason = why
        self._graphs.clear()

    def _fits(self, train: Batch, val: Batch | None) -> bool:
        if val is not None and self._val is None:
            self._val = Batch(*map(torch.empty_like, val))
        fits = _alike(train, self._train) and (val is None or _alike(val, self._val))
        if not fits and not self._said_shapes:
            log.info(f"a batch of {len(train.index)} images does not have the captured size: its step runs uncaptured")
            self._said_shapes = True
        return fits

    def _copy(self, step: Tensor, train: Batch, val: Batch | None) -> None:
        """Copy a step's inputs into the graphs' input buffers."""
        self._step.copy_(step)
        for buffers, batch in ((self._train, train), (self._val, val)):
            if batch is not None:
                for to, tensor in zip(buffers, batch, strict=True):
                    to.copy_(tensor, non_blocking=True)
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        for rate, group in zip(self._rates, groups, strict=True):
            if group["lr"] is not rate:
                rate.fill_(group["lr"])
                group["lr"] = rate

    def _take(self, update: Update) -> Tensor:
        """Replay an update, captured at its first call; returns its loss."""
        with self.updates.stage(update):
            for each in (*self.updates.captured_before(update), update):
                if self.reason is None and each not in self._graphs:
                    self._record(each)
            if self.reason is not None:
                return self._work(update)
            *first, last = self._graphs[update]
            for piece in first:
                piece.replay()
                if self.updates.reduce is not None:  # without it there is but one piece
                    self.updates.reduce(piece.result)
            last.replay()
            return last.result.clone()

    def _work(self, update: Update) -> Tensor:
        return run_pieces(self._pieces(update), self.updates.reduce)

    def _pieces(self, update: Update) -> Pieces[Tensor]:
        return self.updates.pieces(update, self._step, self._train, self._val)

    def _record(self, update: Update) -> None:
        state = State(self.updates)
        try:
            # results are discarded, so averages do not matter
            why = self._recorder.warm_up(lambda: run_pieces(self._pieces(update), None))
        except torch.OutOfMemoryError:
            if not self._graphs:
                raise  # the step itself does not fit into memory
            why = f"not enough memory for the update of {update} in addition to the other update's graph"
        finally:
            state.put_back()
        if why is None:
            why = self._capture(update, state)
        if why is not None:
            self._give_up(why)
            return
        graphs = "a CUDA graph" if len(self._graphs[update]) == 1 else f"{len(self._graphs[update])} CUDA graphs"
        log.info(f"the update of {update} is captured in {graphs}")

    def _capture(self, update: Update, state: "State") -> str | None:
        """Capture an update. Returns None, or why it failed; the update's pieces are then discarded and `state` is restored."""
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups if "capturable" in group]
        before = [group["capturable"] for group in groups]
        try:
            for group in groups:  # a fused Adam is; torch requires the flag, and warns if it then runs uncaptured
                group["capturable"] = True
            self._graphs[update] = self._capture_pieces(update)
        except RuntimeError as error:
            state.put_back()
            while isinstance(error.__context__, RuntimeError):  # the last error ended the capture, the first one broke it
                error = error.__context__
            return f"capturing the update of {update} failed: {str(error).splitlines()[0]}"
        finally:
            for group, capturable in zip(groups, before, strict=True):
                group["capturable"] = capturable
            for optimizer in self._optimizers:
                optimizer.zero_grad()
        return None

    def _capture_pieces(self, update: Update) -> list[Recording]:
        if self.updates.reduce is None:
            return [self._recorder.capture(lambda: self._work(update))]
        pieces, recordings, ended = self._pieces(update), [], False

        def following() -> Tensor:
            nonlocal ended
            try:
                return next(pieces)
            except StopIteration as end:
                ended = True
                return end.value

        try:
            while not ended:
                recordings.append(self._recorder.capture(following))
        finally:
            pieces.close()  # after a failed capture
        return recordings


def refusal(updates: Updates) -> str | None:
    """Return None, or a sentence why these steps cannot be captured, as far as known in advance."""
    if why := no_gpu(updates.device) or updates.obstacle():
        return why
    for update, optimizer in updates.optimizers.items():
        if not capturable(optimizer):
            what = "the weights" if update == "weights" else update
            name = f"{type(optimizer).__module__.partition('.')[0]}'s {type(optimizer).__name__}"
            return f"the optimizer of {what} ({name}) is not torch's fused SGD or Adam, the only ones known to be capturable"
    return None


def no_gpu(device: torch.device) -> str | None:
    """Return None on a GPU, else a sentence."""
    return None if device.type == "cuda" else f"CUDA graphs need a GPU, this runs on {device}"


class State:
    """Snapshot of everything a step changes, to be restored exactly and in place."""

    def __init__(self, updates: Updates) -> None:
        self.device, self._optimizers = updates.device, tuple(updates.optimizers.values())
        self._saved = {id(t): (t, t.detach().clone()) for t in (*updates.tensors(), *self._moments())}
        self._host_rng = torch.get_rng_state()
        self._device_rng = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    def _moments(self) -> list[Tensor]:
        return [t for o in self._optimizers for state in o.state.values() for t in state.values() if isinstance(t, Tensor)]

    @torch.no_grad()
    def put_back(self) -> None:
        """Restore the snapshot. Optimizer state created since becomes 0, the initial value of torch's SGD and Adam."""
        for tensor, value in self._saved.values():
            tensor.copy_(value)
        for tensor in self._moments():
            if id(tensor) not in self._saved:
                tensor.zero_()
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        torch.set_rng_state(self._host_rng)
        if self._device_rng is not None:
            torch.cuda.set_rng_state(self._device_rng, self.device)


def _rate(lr: float | Tensor, device: torch.device) -> Tensor:
    """Return a float32 tensor of one element on the device: `lr` itself if it already is one."""
    if isinstance(lr, Tensor) and (lr.device, lr.dtype, lr.dim()) == (device, torch.float32, 0):
        return lr
    return torch.tensor(float(lr), dtype=torch.float32, device=device)


def _alike(a: Batch, b: Batch) -> bool:
    return all((s.shape, s.dtype) == (t.shape, t.dtype) for s, t in zip(a, b, strict=True))
