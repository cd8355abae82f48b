"""How much memory a bilevel step takes at most, found by taking one on tensors without storage; and what fits.

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
from fastdarts.search import Bilevel, Precision, SoftmaxRelaxation
from fastdarts.search.bilevel import held
from fastdarts.search.precision import Amp
from fastdarts.steps.memory_counter import Counted
from fastdarts.supernet import Network

# What a process takes once operators run, whatever their sizes: measured with one or two images of 8 to 64 pixels, where the
# rest is next to nothing. 9 MB of the definition's are oneDNN's, which compiles its convolutions for each shape and keeps
# them; the others are there without oneDNN, too, and come with its many small operators.
PROCESS, PROCESS_DEFINITION = 2 << 20, 20 << 20
STEP = 8  # batches that are tried are multiples of it
STATUS = Path("/proc/self/status")
EXHAUSTED = re.compile(r"can't allocate memory|bad_alloc|out of memory|Cannot allocate memory", re.IGNORECASE)


class NoMemory(RuntimeError):
    """Memory gave out; the message has the figures and the batch that would fit."""


def meta_batch(batch_size: int, image_size: int) -> Batch:
    """A batch of that shape on the meta device."""
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
    ahead: int = 0,
    averaged: bool = False,
) -> int:
    """Bytes that bilevel steps on `device` take at most: weights, gradients, optimizers' state, everything in between.

    All modules and tensors are given on the meta device, and none is computed or allocated; the backends are those that would
    serve on `device`. Both halves of a step are taken, alpha's and the weights', with batches like `batch`. An evaluation
    keeps nothing for a backward, so it is never what takes most.

    amp       precision of the forwards. Needs the device to be there
    unrolled  second order, with its copies of the weights
    hessian   an estimate of the Hessian in alpha too: a backward in alpha, in float32 whatever amp is
    ahead     batches that wait on the device for their steps
    averaged  gradients are averaged over ranks, in one flat tensor

    On a GPU these are the bytes of tensors. What is not in them: the rounding of torch's allocator and gaps in its pool,
    workspaces of cuDNN, small sums of the fused kernels, the context (about half a GiB), and what captured steps keep.
    """
    device, dtype = torch.device(device), next(supernet.parameters()).dtype
    fused = choose("mixed_cell", supernet.backend, device, dtype) != "definition"
    # of definitions plain meta tensors tell the same, and sooner; autocast does not see those
    mode = FakeTensorMode() if fused or amp != "off" else None
    where = torch.device("meta") if mode is None else device
    counted = Counted(device.type == "cpu")

    def placed(tensor: Tensor) -> Tensor:
        made = torch.empty_like(tensor) if mode is None else FakeTensor(mode, tensor.detach(), device)
        counted.add(made)
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(made)
        return made.requires_grad_(tensor.requires_grad)

    mine = [t for module in (supernet, objective) for t in (*module.parameters(), *module.buffers())]
    supernet, objective = deepcopy((supernet, objective), {id(t): placed(t) for t in mine})
    objective.register_forward_pre_hook(counted.pass_begins)
    objective.register_forward_hook(counted.pass_ends)
    relaxation = copy(relaxation)
    for name in ("alpha", "beta", "padding"):
        setattr(relaxation, name, {kind: placed(t.detach()) for kind, t in getattr(relaxation, name).items()})
    for t in relaxation.parameters():
        t.requires_grad_()
    train, val, *waiting = (Batch(*map(placed, batch)) for _ in range(2 + ahead))
    step = placed(torch.empty(1, dtype=torch.int64, device="meta"))
    with mode or nullcontext(), counted:
        optimizers = _optimizers(supernet, objective, relaxation)
        reduce = (lambda flat: None) if averaged else None
        bilevel = _Counting(supernet, objective, relaxation, *optimizers, unrolled=unrolled, reduce=reduce)
        bilevel.precision = Precision(amp, where)
        for _ in range(2 if fused else 1):  # what the first leaves in the workspace may not fit the second
            bilevel(step, train, val)
        if hessian:
            with held(bilevel.weights):
                loss = objective(supernet, relaxation.weights(), train, step, Stream.EVAL)
                torch.autograd.grad(loss, list(relaxation.alpha.values()))
            del loss
    del waiting
    if device.type != "cpu":
        return counted.peak
    return counted.peak + (PROCESS if fused else PROCESS_DEFINITION)


def _optimizers(supernet: Network, objective: Objective, relaxation: SoftmaxRelaxation) -> list[torch.optim.Optimizer]:
    """SGD and Adam with the state that they have from their first step on."""
    weights = list(dict.fromkeys([*supernet.parameters(), *objective.parameters()]))
    sgd, adam = torch.optim.SGD(weights, 0.1, momentum=0.9), torch.optim.Adam(relaxation.parameters())
    for w in weights:
        sgd.state[w]["momentum_buffer"] = torch.empty_like(w, requires_grad=False)
    for a in relaxation.parameters():
        adam.state[a] = {name: torch.empty_like(a, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
    return [sgd, adam]


class _Counting(Bilevel):
    """A Bilevel whose updates take no memory of their own, as those of fused optimizers."""

    def _update(self, bad: Tensor, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        optimizer.zero_grad()


def free_bytes(device: torch.device | str) -> int:
    """What is free on a GPU; on a CPU what this process may still take: of memory, its control group, its address space."""
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
    """The largest multiple of `multiple`, at most `most`, with peak(N) <= space; 0 where none is.

    peak  bytes of a step with N images, growing about in proportion to what N adds
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
    """Whether an error says that memory gave out, on a GPU or in this process."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and bool(EXHAUSTED.search(str(error))))


@contextmanager
def memory_told(tell: Callable[[], str]) -> Generator[None]:
    """Inside, memory that gives out is raised as NoMemory with what `tell` says."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not exhausted(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NoMemory(f"out of memory ({reason}); {tell()}") from error
