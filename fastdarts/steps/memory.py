"""Estimate the peak memory of a bilevel step by running it on tensors without storage, and the batch size that fits.

Notation: N images of a batch, S pixels a side.
"""

import re
import resource
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fastdarts.batch import Batch
from fastdarts.data import placement
from fastdarts.objectives import Objective
from fastdarts.ops.backend import choose
from fastdarts.ops.philox import Stream
from fastdarts.optim import Precision
from fastdarts.optim.precision import Amp
from fastdarts.search import Bilevel, SoftmaxRelaxation
from fastdarts.search.bilevel import frozen
from fastdarts.steps.memory_counter import Counted
from fastdarts.supernet import Network

# Fixed memory of a process once operators run: measured with one or two images of 8 to 64 pixels, where the rest is
# negligible. 9 MB of the definition's are oneDNN's, which compiles and caches convolutions for each shape; the others occur
# without oneDNN too, and come with its many small operators.
PROCESS, PROCESS_DEFINITION = 2 << 20, 20 << 20
STEP = 8  # batch sizes are tried in multiples of it
STATUS = Path("/proc/self/status")
EXHAUSTED = re.compile(r"can't allocate memory|bad_alloc|out of memory|Cannot allocate memory", re.IGNORECASE)


class NoMemory(RuntimeError):
    """Out of memory; the message gives the figures and a batch size that would fit."""


def meta_batch(batch_size: int, image_size: int) -> Batch:
    """Return a batch of that shape on the meta device."""
    with torch.device("meta"):
        return Batch(
            torch.empty(batch_size, image_size, image_size, 3, dtype=torch.uint8),
            torch.empty(batch_size, dtype=torch.int64),
            torch.empty(batch_size, dtype=torch.int64),
            torch.empty(batch_size, dtype=torch.bool),
        )


def step_bytes(
    supernet: Network,
    objective: Objective,
    relaxation: SoftmaxRelaxation,
    batch: Batch,
    device: torch.device | str,
    *,
    amp: Amp = "off",
    unrolled: bool = False,
    hessian: bool = False,
    prefetched: int = 0,
    averaged: bool = False,
) -> int:
    """Return the peak bytes of bilevel steps on `device`: weights, gradients, optimizer state and intermediates.

    All modules and tensors are on the meta device; nothing is computed or allocated. The backends are those selected for
    `device`. Both updates of a step are run, alpha's and the weights', with batches like `batch`. An evaluation keeps nothing
    for a backward, so it never sets the peak.

    amp         precision of the forward passes. Requires the device to be present
    unrolled    second order, with its copies of the weights
    hessian     also an estimate of the Hessian in alpha: a backward in alpha, in float32 for any amp
    prefetched  batches waiting on the device
    averaged    gradients are averaged over ranks, in one flat tensor

    On a GPU only tensors are counted. Excluded are the rounding of torch's allocator and gaps in its pool, cuDNN's
    workspaces, small sums of the fused kernels, the context (about half a GiB), and memory held by captured steps.
    """
    device, dtype = torch.device(device), next(supernet.parameters()).dtype
    fused = choose("mixed_cell", supernet.backend, device, dtype) != "definition"
    # for definitions plain meta tensors give the same result faster; autocast ignores them
    mode = FakeTensorMode() if fused or amp != "off" else None
    where = torch.device("meta") if mode is None else device
    counter = Counted(device.type == "cpu")

    def placed(tensor: Tensor) -> Tensor:
        made = torch.empty_like(tensor) if mode is None else FakeTensor(mode, tensor.detach(), device)
        counter.add(made)
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(made)
        return made.requires_grad_(tensor.requires_grad)

    tensors = [t for module in (supernet, objective) for t in (*module.parameters(), *module.buffers())]
    supernet, objective = deepcopy((supernet, objective), {id(t): placed(t) for t in tensors})
    objective.register_forward_pre_hook(counter.pass_begins)
    objective.register_forward_hook(counter.pass_ends)
    relaxation = copy(relaxation)
    for name in ("alpha", "beta", "padding"):
        setattr(relaxation, name, {kind: placed(t.detach()) for kind, t in getattr(relaxation, name).items()})
    for t in relaxation.parameters():
        t.requires_grad_()
    train, val, *waiting = (Batch(*map(placed, batch)) for _ in range(2 + prefetched))
    step = placed(torch.empty(1, dtype=torch.int64, device="meta"))
    with mode or nullcontext(), counter:
        optimizers = _optimizers(supernet, objective, relaxation)
        reduce = (lambda flat: None) if averaged else None
        bilevel = _Counting(supernet, objective, relaxation, *optimizers, unrolled=unrolled, reduce=reduce)
        bilevel.precision = Precision(amp, where)
        for _ in range(2 if fused else 1):  # blocks left in the workspace by the first may not fit the second
            bilevel(step, train, val)
        if hessian:
            with frozen(bilevel.weights):
                loss = objective(supernet, relaxation.weights(), train, step, Stream.EVAL)
                torch.autograd.grad(loss, list(relaxation.alpha.values()))
            del loss
    del waiting
    if device.type != "cpu":
        return counter.peak
    return counter.peak + (PROCESS if fused else PROCESS_DEFINITION)


def _optimizers(supernet: Network, objective: Objective, relaxation: SoftmaxRelaxation) -> list[torch.optim.Optimizer]:
    """Return SGD and Adam with the state they hold from their first step on."""
    weights = list(dict.fromkeys([*supernet.parameters(), *objective.parameters()]))
    sgd, adam = torch.optim.SGD(weights, 0.1, momentum=0.9), torch.optim.Adam(relaxation.parameters())
    for w in weights:
        sgd.state[w]["momentum_buffer"] = torch.empty_like(w, requires_grad=False)
    for a in relaxation.parameters():
        adam.state[a] = {name: torch.empty_like(a, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
    return [sgd, adam]


class _Counting(Bilevel):
    """Bilevel whose updates allocate no memory, like fused optimizers'."""

    def _update(self, bad: Tensor, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        optimizer.zero_grad()


def free_bytes(device: torch.device | str) -> int:
    """Return the free bytes of a GPU; on a CPU the bytes left to this process: RAM, control group, address space."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = placement.available_ram()
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return free
    taken = next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmSize"))
    return max(0, min(free, limit - 1024 * taken))


def largest_batch(peak: Callable[[int], int], space: int, most: int, multiple: int = STEP) -> int:
    """Return the largest multiple of `multiple`, at most `most`, with peak(N) <= space; 0 if there is none.

    peak  bytes of a step with N images, approximately affine in N
    """
    top = most // multiple
    if not top or peak(multiple) > space:
        return 0
    low = multiple
    high = min(top, 4) * multiple
    if high == low:
        return low
    first, second = peak(low), peak(high)
    while second <= space:
        if high == top * multiple:
            return high
        each = max((second - first) / (high - low), 1e-6)
        low, first = high, second
        high = min(top, max(int(high + (space - second) / each) // multiple, high // multiple + 1)) * multiple
        second = peak(high)
    while high - low > multiple:  # low fits, high does not
        each = (second - first) / (high - low)
        guess = int(low + (space - first) / each) // multiple * multiple
        guess = min(max(guess, low + multiple), high - multiple)
        bytes_ = peak(guess)
        if bytes_ <= space:
            low, first = guess, bytes_
        else:
            high, second = guess, bytes_
    return low


def exhausted(error: BaseException) -> bool:
    """Return whether an error means out of memory, on a GPU or in this process."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and bool(EXHAUSTED.search(str(error))))


@contextmanager
def memory_errors_explained(message: Callable[[], str]) -> Generator[None]:
    """Context manager: raises an out-of-memory error as NoMemory with the text of `message`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not exhausted(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NoMemory(f"out of memory ({reason}); {message()}") from error
