"""Count the bytes that operators would allocate, on tensors without storage (meta or fake tensors).

On a GPU a tensor allocates its bytes and frees them. Two effects add to that in host memory: torch's tensors are in glibc's
heap, between unusable holes (glibc_heap.py), and the native ops cache their allocations (csrc/cpu/workspace.cpp).
"""

import weakref
from bisect import bisect_left, insort
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdarts.kernels.arguments import MixedCellBackward
from fastdarts.ops import mixed_cell
from fastdarts.steps.glibc_heap import Block, Heap

HUGE = 2 << 20  # blocks of at least this size are in huge pages
HEADER = 64  # bytes before each block of the workspace


class Counted(TorchDispatchMode):
    """Dispatch mode that adds each operator's storages to `live` for their lifetime; `peak` is the maximum of `live`.

    host  tensors represent host memory: `live` includes the heap's holes
    An operator on the meta device with arguments of the same shapes as an earlier call returns tensors like that call's:
    torch's own shape inference is many times slower.
    """

    def __init__(self, host: bool) -> None:
        super().__init__()
        self._known: dict[tuple, Any] = {}
        self.host = host
        self.live = self.peak = 0
        self._heap, self._workspace = Heap(), Workspace()
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = self._results(func, args, kwargs or {})
        native = self.host and func.namespace == "fastdarts"
        backward = func is torch.ops.fastdarts.mixed_cell_backward.default
        if backward and self.host:
            self._scratch(MixedCellBackward(*args))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                # native ops keep states and saved tensors in the workspace; statistics are torch's
                self.add(tensor, native and tensor.dim() in (1, 4), made=True)
        if backward and not self.host:  # on a GPU in addition to its results
            self.peak = max(self.peak, self.live + mixed_cell.backward_scratch(MixedCellBackward(*args)))
        return results

    def _results(self, func: Any, args: Any, kwargs: Any) -> Any:
        if _aliases(func):
            return func(*args, **kwargs)
        on_meta: list[bool] = []
        key = func, _look(args, on_meta), _look(tuple(kwargs.items()), on_meta)
        if not on_meta or not all(on_meta):
            return func(*args, **kwargs)
        if key in self._known:
            return _like(self._known[key])
        results = func(*args, **kwargs)
        self._known[key] = _look(results, on_meta)
        return results

    def add(self, tensor: Tensor, from_workspace: bool = False, made: bool = False) -> None:
        """Count a tensor's storage once, until it is freed. `made`: created by an operator."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        if from_workspace:
            block, grown = self._workspace.take(size)
            self._grow(grown)
            weakref.finalize(storage, self._give, key, block)
        elif self.host:
            before = self._heap.taken
            place = self._heap.take(size, walled=made)
            self._grow(self._heap.taken - before)
            weakref.finalize(storage, self._free_heap, [place], key)
        else:
            self._grow(size)
            weakref.finalize(storage, self._free, key, size)

    def watch(self, module: nn.Module) -> None:
        """Report the forwards of a module that returns the loss."""
        module.register_forward_pre_hook(lambda *_: self.pass_begins())
        module.register_forward_hook(lambda _, __, loss: self.pass_ends(loss))

    def pass_begins(self) -> None:
        """Report the start of a forward: memory outside the graphs has been freed."""
        self._free_heap(self._heap.walls())

    def pass_ends(self, loss: Tensor) -> None:
        """Report the end of a forward: the heap's walls live as long as the loss' graph."""
        weakref.finalize(loss, self._free_heap, self._heap.walls())

    def _grow(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size

    def _free_heap(self, blocks: list[Block], key: int | None = None) -> None:
        self._seen.discard(key)
        before = self._heap.taken
        for block in blocks:
            self._heap.give(block)
        self.live += self._heap.taken - before

    def _give(self, key: int, block: tuple[int, int]) -> None:
        self._seen.discard(key)
        self._workspace.give(block)

    def _scratch(self, a: MixedCellBackward) -> None:
        """Count the scratch blocks of the fused cell's backward for node gradients; twice with shuffled channels."""
        block, grown = self._workspace.take(a.grad.numel() * a.grad.element_size() * (2 if a.partial_channels > 1 else 1))
        self._grow(grown)
        self._workspace.give(block)


class _Looks(NamedTuple):
    """Shape, strides and dtype of a tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


@cache
def _aliases(func: Any) -> bool:
    """Return whether an operator writes to an argument or returns a view of one."""
    schema = func._schema
    return schema.is_mutable or any(x.alias_info is not None for x in (*schema.arguments, *schema.returns))


def _look(value: Any, on_meta: list[bool]) -> Any:
    """Replace the tensors of nested arguments by _Looks; records for each whether it is on the meta device."""
    if isinstance(value, Tensor):
        on_meta.append(value.is_meta)  # a fake tensor is not
        return _Looks(tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple([_look(v, on_meta) for v in value])
    return type(value), value  # 1, 1.0 and True are equal but give different tensors


def _like(looks: Any) -> Any:
    """Return a call's results with new tensors."""
    if isinstance(looks, _Looks):
        return torch.empty_strided(looks.shape, looks.strides, dtype=looks.dtype, device="meta")
    if looks and isinstance(looks[0], type):
        return looks[1]
    return tuple([_like(each) for each in looks])


class Workspace:
    """Model of the native ops' memory: a freed block is kept for the next one of similar size."""

    def __init__(self) -> None:
        self._idle: list[tuple[int, int]] = []  # (size, bytes ever used) of each block, sorted by size

    def take(self, size: int) -> tuple[tuple[int, int], int]:
        """Return a block and the number of its bytes used for the first time: only these become resident."""
        used = size + HEADER
        step = HEADER
        while step * 16 <= used:
            step *= 2
        wanted = -(-used // step) * step
        if wanted >= HUGE:
            used = wanted  # huge pages become resident as a whole
        at = bisect_left(self._idle, (wanted, 0))
        if at == len(self._idle) or self._idle[at][0] > 2 * wanted:
            return (wanted, used), used
        length, before = self._idle.pop(at)
        return (length, max(before, used)), max(0, used - before)

    def give(self, block: tuple[int, int]) -> None:
        """Return a block to the idle ones."""
        insort(self._idle, block)
