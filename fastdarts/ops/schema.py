"""Registered ops whose Python kernels take one object of named arguments (kernels/arguments.py)."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, get_type_hints

import torch
from torch import Tensor

A = TypeVar("A", bound=tuple)  # a NamedTuple of arguments
TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    list[Tensor]: "Tensor[]",
    list[int]: "int[]",
    list[float]: "float[]",
    list[bool]: "bool[]",
    int: "int",
    float: "float",
    bool: "bool",
    str: "str",
}


def schema(arguments: type[tuple], results: type) -> str:
    """The schema of an op with these arguments; results is a NamedTuple, or Tensor."""
    return f"({_fields(arguments)}) -> {'Tensor' if results is Tensor else f'({_fields(results)})'}"


def _fields(named: type) -> str:
    return ", ".join(f"{TYPES[kind]} {name}" for name, kind in get_type_hints(named).items())


class Op(Generic[A]):
    """The op fastdarts::NAME: registers its Python kernels. It is called as torch.ops.fastdarts.NAME."""

    def __init__(self, name: str, arguments: type[A], results: type) -> None:
        self.name, self.arguments = f"fastdarts::{name}", arguments
        torch.library.define(self.name, schema(arguments, results), tags=torch.Tag.pt2_compliant_tag)

    def fake(self, kernel: Callable[[A], Any]) -> Callable[[A], Any]:
        """Decorator of the fake kernel: results without values."""
        torch.library.register_fake(self.name, self._positional(kernel))
        return kernel

    def cuda(self, kernel: Callable[[A], Any]) -> Callable[[A], Any]:
        """Decorator of the kernel for CUDA tensors."""
        torch.library.impl(self.name, "cuda", self._positional(kernel))
        return kernel

    def _positional(self, kernel: Callable[[A], Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: kernel(self.arguments(*args, **kwargs))
