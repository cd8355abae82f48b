"""A CUDA graph without a GPU: the operators of some work on the CPU, run again on the tensors that they met the first time.

What Python decided while the work was recorded stays decided, as in a graph: a number that was read, a branch, a tensor made
outside that is replaced later.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Inside, every operator of this thread is recorded (and runs); a read number is refused, as a capture refuses it."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, tuple, dict[str, Any], dict[int, Tensor]]] = []
        self._made: set[int] = set()  # storages
        self._before: dict[int, tuple[Any, Any]] = {}  # of the others: as they were

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs, given = kwargs or {}, set()
        for tensor in _tensors((args, kwargs)).values():
            storage = tensor.untyped_storage()
            given.add(storage._cdata)
            if storage._cdata not in self._made | self._before.keys():
                self._before[storage._cdata] = storage, storage.clone()
        result = func(*args, **kwargs)
        # neither views nor what was changed in place
        fresh = {i: t for i, t in _tensors(result).items() if t.untyped_storage()._cdata not in given}
        self._made.update(t.untyped_storage()._cdata for t in fresh.values())
        self._calls.append((func, args, kwargs, fresh))
        return result

    def put_back(self) -> None:
        """Recording is to leave no trace."""
        for storage, before in self._before.values():
            storage.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        """Everything again, results where they were."""
        for func, args, kwargs, fresh in self._calls:
            again = _tensors(func(*args, **kwargs))
            for i, tensor in fresh.items():
                tensor.copy_(again[i])


def _tensors(nested: Any) -> dict[int, Tensor]:
    return {i: leaf for i, leaf in enumerate(tree_leaves(nested)) if isinstance(leaf, Tensor)}
