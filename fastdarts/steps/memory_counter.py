"""Counts the bytes that operators would take, where their tensors have no storage (meta or fake tensors).

On a GPU a tensor takes its bytes and gives them back. In a process's own memory two things come on top: torch's tensors lie
in the C library's heap, between holes that fit nothing (heap.py), and the native ops keep what they have taken
(csrc/cpu/workspace.cpp).
"""

import weakref
from bisect import bisect_left, insort
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdarts.kernels.arguments import MixedCellBackward
from fastdarts.ops import mixed_cell
from fastdarts.steps.glibc_heap import Block, Heap

HUGE = 2 << 20  # a block of so many bytes is in huge pages
HEADER = 64  # bytes before each block of the workspace


class Counted(TorchDispatchMode):
    """Inside, what each operator makes is added to `live` until its last tensor ends; `peak` is the most there was.

    host  tensors stand for such in this process's own memory: `live` has the heap's holes too
    An operator on the meta device whose arguments look like those of an earlier call gives tensors that look like that
    call's: torch's own way to find their shapes is many times slower.
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
                # of the native ops, states and what is kept are in the workspace; statistics are torch's own
                self.add(tensor, native and tensor.dim() in (1, 4), made=True)
        if backward and not self.host:  # on a GPU beside what it gives
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
        """Count a tensor's storage, if it is not counted yet, until the storage ends. `made`: by an operator."""
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

    def pass_begins(self, *_: Any) -> None:
        """A forward begins (a hook of the module that computes the loss): what was beside the graphs has ended."""
        self._free_heap(self._heap.walls())

    def pass_ends(self, module: Any, args: Any, loss: Tensor) -> None:
        """A forward ends (a hook of that module): the walls in the heap stay as long as the loss' graph."""
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
        """The fused cell's backward sums up its nodes' gradients in blocks of its own; twice where channels are shuffled."""
        block, grown = self._workspace.take(a.grad.numel() * a.grad.element_size() * (2 if a.partial_channels > 1 else 1))
        self._grow(grown)
        self._workspace.give(block)


class _Looks(NamedTuple):
    """A tensor's shape, strides and dtype."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


@cache
def _aliases(func: Any) -> bool:
    """Whether an operator writes to an argument or returns a view of one."""
    schema = func._schema
    return schema.is_mutable or any(x.alias_info is not None for x in (*schema.arguments, *schema.returns))


def _look(value: Any, on_meta: list[bool]) -> Any:
    """Nested arguments with their tensors as _Looks; notes of each whether it is on the meta device."""
    if isinstance(value, Tensor):
        on_meta.append(value.is_meta)  # a fake tensor is not
        return _Looks(tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple([_look(v, on_meta) for v in value])
    return type(value), value  # 1, 1.0 and True are equal and make different tensors


def _like(looks: Any) -> Any:
    """A call's results, with the tensors made anew."""
    if isinstance(looks, _Looks):
        return torch.empty_strided(looks.shape, looks.strides, dtype=looks.dtype, device="meta")
    if looks and isinstance(looks[0], type):
        return looks[1]
    return tuple([_like(each) for each in looks])


class Workspace:
    """The native ops' memory: a block that is given back is kept for the next of about its size."""

    def __init__(self) -> None:
        self._idle: list[tuple[int, int]] = []  # of each block its size and how much of it was ever used, by size

    def take(self, size: int) -> tuple[tuple[int, int], int]:
        """A block, and how many of its bytes are used for the first time: those alone become resident."""
        used = size + HEADER
        step = HEADER
        while step * 16 <= used:
            step *= 2
        wanted = -(-used // step) * step
        if wanted >= HUGE:
            used = wanted  # in huge pages, which are resident as a whole
        at = bisect_left(self._idle, (wanted, 0))
        if at == len(self._idle) or self._idle[at][0] > 2 * wanted:
            return (wanted, used), used
        room, before = self._idle.pop(at)
        return (room, max(before, used)), max(0, used - before)

    def give(self, block: tuple[int, int]) -> None:
        """Back to the idle ones."""
        insort(self._idle, block)
