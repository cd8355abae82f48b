"""Estimate the peak memory of a training step by running it on tensors without storage, and the batch size that fits.

Notation: N images of a batch, S pixels a side.
"""

import re
import resource
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from fastdarts.batch import Batch
from fastdarts.data import placement
from fastdarts.optim.precision import Amp
from fastdarts.steps.memory_counter import Counted

# Fixed memory of a process once operators run: measured with one or two images of 8 to 64 pixels, where the rest is
# negligible. 9 MB of the definition's are oneDNN's, which compiles and caches convolutions for each shape; the others occur
# without oneDNN too, and come with its many small operators.
PROCESS, PROCESS_DEFINITION = 2 << 20, 20 << 20
STEP = 8  # batch sizes are tried in multiples of it
STATUS = Path("/proc/self/status")
STATE = {  # tensors like each parameter that torch's optimizers hold: their names, and the setting without which there is none
    torch.optim.SGD: {"momentum_buffer": "momentum"},
    torch.optim.Adam: {"exp_avg": None, "exp_avg_sq": None, "max_exp_avg_sq": "amsgrad"},
    torch.optim.RMSprop: {"square_avg": None, "momentum_buffer": "momentum", "grad_avg": "centered"},
}
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
    parts: Sequence[Any],
    make: Callable[..., Sequence[Callable[..., object]]],
    batch: Batch,
    device: torch.device | str,
    *,
    fused: bool,
    amp: Amp = "off",
    batches: int = 1,
    prefetched: int = 0,
) -> int:
    """Return the peak bytes of training steps on `device`: weights, gradients, optimizer state and intermediates.

    All parts are on the meta device; nothing is computed or allocated. An evaluation keeps nothing for a backward, so it
    never sets the peak.

    parts       what the step consists of: modules, a moving average among them, and other objects that hold tensors
    make        make(*copies, counter) -> (step, *others): called with copies of the parts on `device`, for which it allocates
                optimizers (allocate_state) and reports each forward to the counter (Counted.watch, or pass_begins and
                pass_ends). Each of its results is called with the step's number, int64 of one element, and the batches. The
                updates of the step allocate what the real ones do: nothing, where the optimizer is fused. `others` run after
                it, not in each step
    batch       shapes of each batch
    fused       any op of the step runs by another backend than its definition on `device` (ops.backend.choose)
    amp         precision of the forward passes. Requires the device to be present
    batches     batches that a step takes
    prefetched  batches waiting on the device

    On a GPU only tensors are counted. Excluded are the rounding of torch's allocator and gaps in its pool, cuDNN's
    workspaces, small sums of the fused kernels, the context (about half a GiB), and memory held by captured steps.
    """
    device = torch.device(device)
    # for definitions plain meta tensors give the same result faster; autocast ignores them
    mode = FakeTensorMode() if fused or amp != "off" else None
    counter = Counted(device.type == "cpu")

    def placed(tensor: Tensor) -> Tensor:
        made = torch.empty_like(tensor) if mode is None else FakeTensor(mode, tensor.detach(), device)
        counter.add(made)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(made, tensor.requires_grad)
        return made.requires_grad_(tensor.requires_grad)

    copies = deepcopy(tuple(parts), {id(t): placed(t) for part in parts for t in _tensors(part)})
    given = [Batch(*map(placed, batch)) for _ in range(batches + prefetched)]
    number = placed(torch.empty(1, dtype=torch.int64, device="meta"))
    with mode or nullcontext(), counter, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # deepcopy does, in a moving average
        step, *others = make(*copies, counter)
        repeats = 2 if fused else 1  # blocks left in the workspace by the first step may not fit the second
        for work in (*[step] * repeats, *others):
            work(number, *given[:batches])
    if device.type != "cpu":
        return counter.peak
    return counter.peak + (PROCESS if fused else PROCESS_DEFINITION)


def _tensors(part: Any) -> list[Tensor]:
    if isinstance(part, nn.Module):
        return [*part.parameters(), *part.buffers()]
    return [leaf for leaf in tree_leaves(vars(part)) if isinstance(leaf, Tensor)]


def allocate_state(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Allocate the state that the optimizer holds from its first step on, unless it has some; returns it.

    Raises ValueError for an optimizer that begins without state and is none of torch's SGD, Adam, AdamW and RMSprop.
    """
    if optimizer.state:
        return optimizer
    names = next((names for kind, names in STATE.items() if isinstance(optimizer, kind)), None)
    if names is None:
        known = ", ".join(kind.__name__ for kind in STATE)
        raise ValueError(f"the state of {type(optimizer).__name__} is not known: take {known}, or allocate it at the start")
    for group in optimizer.param_groups:
        for p in group["params"]:
            held = [name for name, setting in names.items() if setting is None or group[setting]]
            optimizer.state[p] = {name: torch.empty_like(p, requires_grad=False) for name in held}
    return optimizer


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
