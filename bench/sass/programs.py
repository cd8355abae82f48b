"""Count how often a program of a launch passes the loops and branches of its Triton source.

The kernel's Python function runs with stand-ins for Triton's language: numbers of the launch and of its table are real, blocks
are `Block`s without values. Control flow of the library's kernels depends on numbers alone. Loops over range and `if`s count
themselves under the chain of source lines that leads to them, as the compiler's line information names them.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from types import CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

from triton.runtime.jit import JITFunction

from bench.sass.language import BLOCK, Block, DataDependent, Language, Number, Table
from bench.sass.source import first_lines
from bench.sass.started import Started

LONG = 16  # iterations: in longer loops, and in those over blocks, the first two stand for all
FEW = 64  # programs: of more, the first of each group of parts stands for the group
Chain = tuple[tuple[str, int], ...]  # (file, line) from the kernel inwards


@dataclass
class Passes:
    """Counts of one program by chain.

    branches  of each `if`: evaluations, and how many were true
    loops     of each `for`: evaluations, those with an iteration, iterations
    """

    branches: dict[Chain, tuple[float, float]] = field(default_factory=dict)
    loops: dict[Chain, tuple[float, float, float]] = field(default_factory=dict)


class _Counting(ast.NodeTransformer):
    """Makes loops over range and conditions count themselves."""

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        call = node.iter
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range":
            line = ast.Constant(node.lineno)
            call.func, call.args = ast.Name("__range", ast.Load()), [line, *call.args]
        return ast.fix_missing_locations(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        node.test = ast.Call(ast.Name("__test", ast.Load()), [ast.Constant(node.lineno), node.test], [])
        return ast.fix_missing_locations(ast.copy_location(node, node))


@cache
def _counting(function: FunctionType) -> CodeType:
    """Return the code of a kernel's function that counts itself."""
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    ast.increment_lineno(tree, first - 1)
    definition = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
    definition.decorator_list, definition.returns = [], None
    for argument in ast.walk(definition.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    code = compile(_Counting().visit(tree), function.__code__.co_filename, "exec")
    return next(each for each in code.co_consts if isinstance(each, CodeType))


class _Run:
    """One run of a program."""

    def __init__(self, language: Language) -> None:
        self.language, self.passes = language, Passes()
        self.chain: Chain = ()
        self.weight = 1.0
        self.path: Path | None = None  # of the function that runs
        self._made: dict[Any, Any] = {}

    @property
    def _file(self) -> str:
        return self.path.name if self.path is not None else ""

    def function(self, jit: Any) -> Callable[..., Any]:
        """Return the function under @triton.jit, which counts itself; every call stands in the chain with its line."""
        if jit not in self._made:
            code = _counting(jit.fn)
            space = {name: self._stand_in(value) for name, value in jit.fn.__globals__.items() if name in _names(code)}
            space |= {"__range": self._range, "__test": self._test, "__builtins__": __builtins__, "tl": self.language}
            plain = FunctionType(code, space, jit.fn.__name__, jit.fn.__defaults__)
            path = Path(code.co_filename)

            def called(*args: Any, **names: Any) -> Any:
                frame = inspect.currentframe()
                above = frame.f_back if frame is not None else None
                before = self.chain, self.path
                if self.path is not None:
                    line = above.f_lineno if above is not None else 0
                    self.chain += ((self.path.name, first_lines(self.path).get(line, line)),)
                self.path = path
                try:
                    return plain(*args, **names)
                finally:
                    self.chain, self.path = before

            self._made[jit] = called
        return self._made[jit]

    def _stand_in(self, value: Any) -> Any:
        if isinstance(value, JITFunction):
            return self.function(value)
        if isinstance(value, ModuleType) and not value.__name__.startswith("triton"):
            kernels = {n: v for n, v in vars(value).items() if isinstance(v, JITFunction)}
            return _Lazy(self, kernels)
        return _plain(value)

    def _range(self, line: int, *bounds: Any) -> Iterator[Number]:
        if any(isinstance(bound, Block) for bound in bounds):
            raise DataDependent(f"{self._file}:{line}: the loop's bounds depend on data")
        indices = range(*map(int, bounds))
        key = (*self.chain, (self._file, line))
        entries, full, iterations = self.passes.loops.get(key, (0.0, 0.0, 0.0))
        weight, count = self.weight, len(indices)
        self.passes.loops[key] = entries + weight, full + weight * bool(count), iterations + weight * count
        alike = count > LONG or (count > 2 and indices.step != 1)
        for i in indices[:2] if alike else indices:
            with self._times(count - 1 if alike and i != indices.start else 1):
                yield Number(i)

    @contextmanager
    def _times(self, times: int) -> Generator[None]:
        before = self.weight
        self.weight *= times
        yield
        self.weight = before

    def _test(self, line: int, value: Any) -> bool:
        if isinstance(value, Block):
            raise DataDependent(f"{self._file}:{line}: the condition depends on data")
        key = (*self.chain, (self._file, line))
        all_, true = self.passes.branches.get(key, (0.0, 0.0))
        self.passes.branches[key] = all_ + self.weight, true + self.weight * bool(value)
        return bool(value)


class _Lazy:
    """A module of kernels' parts: its kernels count themselves."""

    def __init__(self, run: _Run, kernels: Mapping[str, Any]) -> None:
        self._run, self._kernels = run, kernels

    def __getattr__(self, name: str) -> Any:
        return self._run.function(self._kernels[name])


def _names(code: CodeType) -> set[str]:
    return set(code.co_names)


def _plain(value: Any) -> Any:
    """Return a constexpr's value; named numbers as attributes."""
    inner = getattr(value, "value", value)
    if hasattr(inner, "_asdict"):
        return SimpleNamespace(**{name: Number(number) for name, number in inner._asdict().items()})
    return Number(inner) if isinstance(inner, int) and not isinstance(inner, bool) else inner


def passes(started: Started) -> list[tuple[int, Passes]]:
    """Return the counts of a launch's programs: (how many programs, counts of each). Raises DataDependent."""
    merged: list[tuple[int, Passes]] = []
    for count, program in _representatives(started.grid, int(started.values.get("parts", started.grid[0]))):
        run = _Run(Language(program, started.grid))
        arguments = {}
        for parameter, (name, kind) in zip(started.kernel.jit.params, started.kernel.signature, strict=True):
            value = started.values.get(name, BLOCK)
            arguments[parameter.name] = Table(started.table) if name == "p_table" else _argument(value)
            if isinstance(kind, tuple):
                arguments[parameter.name] = [BLOCK] * len(kind)
        run.function(started.kernel.jit)(**arguments)
        for i, (others, known) in enumerate(merged):
            if known == run.passes:
                merged[i] = others + count, known
                break
        else:
            merged.append((count, run.passes))
    return merged


def _argument(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_argument, value))
    return (
        Number(value)
        if isinstance(value, int) and not isinstance(value, bool)
        else BLOCK
        if isinstance(value, float)
        else value
    )


def _representatives(grid: tuple[int, ...], parts: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield (count, program): programs that stand for all. Groups of `parts` on the first axis do the same work."""
    step = 1 if grid[0] <= FEW else min(max(parts, 1), grid[0])
    for begin in range(0, grid[0], step):
        for other in product(*map(range, grid[1:])):
            yield min(step, grid[0] - begin), (begin, *other)
