"""Copies of tensors between two pages that no one may touch: what reads or writes past one ends the process."""

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

Side = Literal["before", "after"]
PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Guarded:
    """Makes the copies; they live as long as this does.

    side  the end of the tensor that touches its guard page: "before" its first byte or "after" its last
    """

    def __init__(self, side: Side) -> None:
        self.side = side
        self._maps: list[tuple[int, int]] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        """A copy with the same strides, which leave no gaps; it requires gradients where its original does."""
        bytes_of = tensor.numel() * tensor.element_size()
        room = -(-bytes_of // PAGE) * PAGE
        begin = self._mapped(room + 2 * PAGE) + PAGE
        if self.side == "after":
            begin += room - bytes_of
        memory = (ctypes.c_char * bytes_of).from_address(begin)
        copy = torch.frombuffer(memory, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride())
        return copy.copy_(tensor.detach()).requires_grad_(tensor.requires_grad)

    def close(self) -> None:
        for begin, length in self._maps:
            _LIBC.munmap(begin, length)
        self._maps.clear()

    def _mapped(self, length: int) -> int:
        """The address of that many bytes, whose first and last page are closed."""
        begin = _LIBC.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if begin == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap failed")
        self._maps.append((begin, length))
        for page in (begin, begin + length - PAGE):
            if _LIBC.mprotect(page, PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect failed")
        return begin


@contextmanager
def guarded(side: Side) -> Iterator[Guarded]:
    """What it copied must not be used after."""
    guard = Guarded(side)
    try:
        yield guard
    finally:
        guard.close()
