"""Stand-ins for Triton's language: numbers are real, blocks have no values. programs.py runs kernels with them."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any


class DataDependent(RuntimeError):
    """A kernel's control flow depends on a value that only a GPU computes; the message has the line."""


class Block:
    """Any value that the launch does not determine: a block, a float, a pointer into a tensor."""

    def _same(self, *_: Any, **__: Any) -> "Block":
        return self

    def __getattr__(self, name: str) -> "Block":
        return self

    def __bool__(self) -> bool:
        raise DataDependent("control flow depends on data")

    def __iter__(self) -> Iterator[Any]:
        raise DataDependent("a block is taken apart")

    __call__ = __getitem__ = __neg__ = __invert__ = __index__ = _same
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _same  # ty: ignore[incompatible-method-override]
    __hash__ = None


class Number(int):
    """A number that Triton's methods and operators accept."""

    def to(self, *_: Any) -> "Number":
        return self


class Table:
    """A pointer into the plan's table."""

    def __init__(self, numbers: tuple[int, ...], offset: int = 0) -> None:
        self.numbers, self.offset = numbers, offset

    def __add__(self, other: Any) -> Any:
        return BLOCK if isinstance(other, Block) else Table(self.numbers, self.offset + int(other))


BLOCK = Block()


def _operators() -> None:
    def of(name: str, reflected: bool) -> Callable[..., Any]:
        plain = getattr(int, name)

        def operator(self: int, other: Any) -> Any:
            result = plain(self, other) if isinstance(other, int) else NotImplemented
            if result is NotImplemented:
                return BLOCK
            return Number(result) if isinstance(result, int) and not isinstance(result, bool) else result

        return operator

    names = ("add", "sub", "mul", "floordiv", "mod", "and", "or", "xor", "lshift", "rshift", "truediv")
    for name in names:
        for prefix in ("__", "__r"):
            setattr(Number, f"{prefix}{name}__", of(f"{prefix}{name}__", prefix == "__r"))
            setattr(Block, f"{prefix}{name}__", Block._same)
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(Number, f"__{name}__", of(f"__{name}__", False))
    Number.__hash__ = int.__hash__


_operators()


class Language(ModuleType):
    """Triton's language without blocks: what kernels call `tl`."""

    def __init__(self, program: tuple[int, ...], grid: tuple[int, ...]) -> None:
        super().__init__("tl")
        self.program_id = lambda axis: Number(program[axis] if axis < len(program) else 0)
        self.num_programs = lambda axis: Number(grid[axis] if axis < len(grid) else 1)
        self.static_range = range
        self.cdiv = _of_numbers(lambda a, b: -(-a // b))
        self.minimum, self.maximum = _of_numbers(min), _of_numbers(max)

    def load(self, pointer: Any, *_: Any, **__: Any) -> Any:
        return Number(pointer.numbers[pointer.offset]) if isinstance(pointer, Table) else BLOCK

    def where(self, condition: Any, yes: Any, no: Any) -> Any:
        if isinstance(condition, Block):
            return BLOCK
        return yes if condition else no

    def philox(self, *_: Any) -> Any:
        return (BLOCK,) * 4

    def __getattr__(self, name: str) -> Any:
        return BLOCK


def _of_numbers(function: Callable[..., int]) -> Callable[[Any, Any], Any]:
    return lambda a, b: Number(function(a, b)) if isinstance(a, int) and isinstance(b, int) else BLOCK
