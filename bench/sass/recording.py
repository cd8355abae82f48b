"""Record what one step launches on a GPU, by running it on tensors without storage.

The library's ops take their GPU code paths, in which Triton's launcher only records; torch's own operators count as one launch
each. Nothing is computed, and neither a GPU nor a driver is needed.
"""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from math import ceil
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

from bench.network import NetworkWorkload
from bench.sass.started import ARCH, Own, Recorded, started, tensor_bytes
from bench.workload import OURS, Workload, WorkloadError
from fastdarts.batch import Batch
from fastdarts.kernels import launch, mixed_cell, mixed_cell_cuda
from fastdarts.kernels.mixed_cell_launches import Launch
from fastdarts.ops import backend
from fastdarts.optim import updates

# tensors that one launch of torch's multi-tensor kernels takes, by the number of lists (MultiTensorApply.cuh)
MULTI_TENSOR = (110, 64, 48, 36, 30)


def record(workload: Workload | NetworkWorkload) -> Recorded:
    """Return the launches of one step of a workload on an H200, whatever its device. Raises WorkloadError."""
    small = replace(workload, batch=2, device="cpu", backend="auto")
    run = small.build(OURS)
    found, fake = Recorded(), FakeTensorMode()
    with _without_gpu(found):
        step = _without_storage(run, fake, workload.batch)
        with fake, _Operators(found):
            step()  # allocates the optimizers' state
            found.started.clear()
            found.own.clear()
            step()
    return found


def _without_storage(run: Any, fake: FakeTensorMode, batch: int) -> Any:
    """Copy a step (workload.Steps or network's), its tensors without storage and its batches in full size."""

    def copy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
        made: Tensor = FakeTensor(fake, tensor.detach().to("meta"), tensor.device)
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, tensor.requires_grad)
        else:
            made.requires_grad_(tensor.requires_grad and tensor.is_leaf)
        return memo.setdefault(id(tensor), made)

    with torch.no_grad(), patch.object(Tensor, "__deepcopy__", copy), patch.object(nn.Parameter, "__deepcopy__", copy):
        step = deepcopy(run)
    owner = "bilevel" if hasattr(step, "bilevel") else "update"
    steps = getattr(step, owner).updates  # replayed, it launches the same
    setattr(step, owner, steps)
    with fake:
        for name in ("train", "val", "batch"):
            if hasattr(step, name):
                tensors = (t.new_empty((batch, *t.shape[1:])) for t in getattr(step, name))
                setattr(step, name, Batch(*tensors))
    return step


@contextmanager
def _without_gpu(found: Recorded) -> Generator[None]:
    """Context manager: the library believes in an H200, and Triton's launcher records."""
    here: dict[str, Any] = {"table": (), "one": None}
    execute, start, decide = mixed_cell._execute, mixed_cell._start, backend._decide

    def executed(plan: Any, *args: Any) -> None:
        here["table"] = tuple(plan.table)
        execute(plan, *args)
        here.update(table=(), one=None)

    def start_one(one: Launch, *args: Any) -> None:
        here["one"] = one
        start(one, *args)

    def cuda(kernel: str, *_: Any) -> None:
        raise WorkloadError(
            f"launch.json: mixed_cell.{kernel} has backend cuda, this reads the machine code of Triton's kernels only"
        )

    def run(jit: Any, *args: Any, grid: Any, warmup: bool, **names: Any) -> None:
        found.started.append(started(jit, args, names, grid, here["table"], here["one"]))

    decide.cache_clear()
    with ExitStack() as stack:
        for owner, name, value in (
            (backend, "_decide", lambda op, name, _, dtype: decide(op, name, torch.device("cuda"), dtype)),
            (backend, "_lacks_capability", lambda device: None),
            (launch, "target_of", lambda device: f"sm_{ARCH}"),
            (launch, "on", lambda device: nullcontext()),
            (mixed_cell, "_execute", executed),
            (mixed_cell, "_start", start_one),
            (mixed_cell_cuda, "launch", cuda),
            (JITFunction, "run", run),
            (updates, "known", lambda bad: False),
            (_foreach_utils, "_foreach_supported_types", [Tensor, nn.Parameter, FakeTensor]),
        ):
            stack.enter_context(patch.object(owner, name, value))
        mixed_cell._planned.cache_clear()
        yield
    decide.cache_clear()
    mixed_cell._planned.cache_clear()


class _Operators(TorchDispatchMode):
    """Runs the library's ops by their GPU kernels, and notes torch's operators."""

    def __init__(self, found: Recorded) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "fastdarts":
            return func._op_dk(torch._C.DispatchKey.CUDA, *args, **kwargs)
        results = func(*args, **kwargs)
        if not _launches_nothing(func):
            tensors = [t for t in tree_leaves((args, kwargs, results)) if isinstance(t, Tensor)]
            lists = [a for a in args if isinstance(a, list) and a and isinstance(a[0], Tensor)]
            count = ceil(len(lists[0]) / MULTI_TENSOR[min(len(lists), 5) - 1]) if lists else 1
            count *= 2 if func is torch.ops.aten.convolution_backward.default else 1
            self.found.own.append(Own(str(func), count, sum(map(tensor_bytes, tensors))))
        return results


def _launches_nothing(func: Any) -> bool:
    """Return whether an operator only looks at tensors anew, or allocates, or computes none."""
    namespace, _, name = func.name().partition("::")
    aliases = [a.alias_info for a in func._schema.arguments if a.alias_info is not None]
    return (
        namespace != "aten"
        or name.startswith(("empty", "new_empty", "set_", "as_strided", "_unsafe_view"))
        or (bool(aliases) and not any(a.is_write for a in aliases))
    )
