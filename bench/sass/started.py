"""One launch of a Triton kernel, and what Triton compiles for it: the record that bench.sass is about."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastdarts.kernels.compile import pointer
from fastdarts.kernels.launch import OPTIONS
from fastdarts.kernels.mixed_cell_launches import Launch

ARCH = 90  # of an H200
Tensors = str | tuple[str, ...]


@dataclass(frozen=True)
class Kernel:
    """A kernel as Triton specialises it for a launch.

    jit         the function under @triton.jit
    signature   of each argument: Triton's type, of a tuple a tuple of types, or "constexpr"
    constexprs  values of those
    aligned     paths of the arguments that are multiples of 16
    options     of the compiler
    """

    jit: Any
    signature: tuple[tuple[str, Tensors], ...]
    constexprs: tuple[tuple[str, Any], ...]
    aligned: tuple[tuple[int, ...], ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """Return its module and function."""
        return f"{self.jit.fn.__module__.rpartition('.')[2]}.{self.jit.fn.__name__}"


@dataclass(frozen=True)
class Started:
    """One launch of the library's kernels.

    grid     programs by axis
    values   arguments that are numbers, constexprs included
    table    contents of p_table, if the kernel reads one
    bytes    that it reads and writes, each number counted once
    """

    kernel: Kernel
    grid: tuple[int, ...]
    values: Mapping[str, Any]
    table: tuple[int, ...]
    bytes: int


class Own(NamedTuple):
    """One of torch's operators: its kernel launches and the bytes that it reads and writes."""

    name: str
    launches: int
    bytes: int


@dataclass
class Recorded:
    """Everything that a step launches: by the library's kernels, in order, and by torch's operators."""

    started: list[Started] = field(default_factory=list)
    own: list[Own] = field(default_factory=list)


def tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's numbers; those of an expanded one once."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= size if stride else 1
    return numbers * tensor.element_size()


def started(jit: Any, args: Any, names: dict[str, Any], grid: Any, table: tuple[int, ...], one: Launch | None) -> Started:
    """Return the record of kernel[grid](*args, **names)."""
    given = dict(zip(jit.arg_names, args, strict=False)) | {n: v for n, v in names.items() if n in jit.arg_names}
    signature, constexprs, aligned = {}, {}, []
    for i, parameter in enumerate(jit.params):
        name = parameter.name
        kind, paths = ("constexpr", []) if parameter.is_constexpr else _typed(given[name], parameter.do_not_specialize)
        signature[name] = kind
        aligned += [(i, *path) for path in paths]
        if kind == "constexpr":
            constexprs[name] = given[name]
    options = {n: v for n, v in names.items() if n in OPTIONS}
    kernel = Kernel(jit, *(tuple(d.items()) for d in (signature, constexprs)), tuple(aligned), tuple(sorted(options.items())))
    tensors = {id(t): t for t in tree_leaves(list(given.values())) if isinstance(t, Tensor)}
    size = given["p_saved"].element_size() if one and "p_saved" in given else 4
    moved = sum(map(tensor_bytes, tensors.values())) if one is None else one.bytes(size)
    values = {n: v for n, v in given.items() if not isinstance(v, Tensor | tuple) or n in constexprs}
    return Started(kernel, tuple(grid), values, table if "p_table" in given else (), moved)


def _typed(value: Any, general: bool) -> tuple[Tensors, list[tuple[int, ...]]]:
    """Return Triton's type of an argument and the paths in it of multiples of 16. general: values make no other kernel."""
    if isinstance(value, tuple):
        kinds = [_typed(one, general) for one in value]
        return tuple(str(kind) for kind, _ in kinds), [(j,) for j, (_, paths) in enumerate(kinds) if paths]
    if isinstance(value, Tensor):
        whole = value.storage_offset() * value.element_size() % 16 == 0
        return pointer(value.dtype), [()] if whole else []
    if isinstance(value, float):
        return "fp32", []
    if value is None or (value == 1 and not general):
        return "constexpr", []
    kind = "i32" if -(2**31) <= value < 2**31 else "i64"
    return kind, [()] if value % 16 == 0 and not general else []
