"""Track the dependencies of a forward besides its arguments, and detect changes.

Starting at a module, the tracker follows every name in the code of its forward and of the functions that this calls:
attributes of objects, of their classes and of modules, globals, closure variables, and the contents of containers. One key,
independent of the process, describes the result; for fast change detection the values are also kept and compared by
identity.
"""

import builtins
import types
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum, EnumMeta
from functools import partial
from hashlib import sha256
from itertools import repeat
from operator import is_
from typing import Any, NamedTuple, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastdarts.interop.bytecode import MUTATORS, PURE, facts
from fastdarts.interop.tree import own_class

MOST = 2000  # maximum number of objects that a forward may read from
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PLAIN = (bool, int, float, complex, str, bytes, range, slice, type(None), type(...), type(NotImplemented))
PLAIN += (object, torch.dtype, torch.device, torch.Size, torch.memory_format, torch.layout)
TRUSTED = {  # packages whose code keeps no state that a forward depends on
    *("torch", "fastdarts", "numpy", "math", "cmath", "functools", "itertools", "collections", "typing", "abc", "numbers"),
    *("operator", "einops", "enum", "dataclasses", "contextlib", "_operator", "_functools", "_collections", "_abc", "builtins"),
}
CONTAINERS = (list, tuple, deque, dict, set, frozenset, types.MappingProxyType)
BUILTIN = types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType
ACCESSORS = (staticmethod, classmethod, property, types.MethodType, partial, types.GenericAlias)
WRITING = {  # methods that no expression calls, and those that return text
    *("__init__", "__new__", "__setattr__", "__delattr__", "__setitem__", "__delitem__", "__init_subclass__", "__del__"),
    *("__copy__", "__deepcopy__", "__getstate__", "__setstate__", "__reduce__", "__reduce_ex__", "__class_getitem__"),
    *("__repr__", "__str__", "__format__", "__dir__", "__sizeof__", "__getnewargs__", "__set_name__", "__set__", "__delete__"),
    *("__post_init__", "__replace__", "__annotate__", "__annotate_func__", "__class__"),
}
MISSING = object()
_ABSENT = repeat(MISSING)


class Named(NamedTuple):
    """Attributes of an object, or entries of a dict, by name."""

    holder: Any
    names: tuple[str, ...]
    values: tuple[Any, ...]

    def same(self) -> bool:
        attributes = self.holder if type(self.holder) is dict else self.holder.__dict__
        return all(map(is_, map(attributes.get, self.names, _ABSENT), self.values))


class Whole(NamedTuple):
    """All contents of a container; of a dict, its keys and values."""

    holder: Any
    contents: Any

    def same(self) -> bool:
        holder, contents = self.holder, self.contents
        if isinstance(holder, dict | types.MappingProxyType):
            return (
                len(holder) == len(contents)
                and all(map(is_, holder, contents))
                and all(map(is_, holder.values(), contents.values()))
            )
        if isinstance(holder, set):
            return holder == contents
        return len(holder) == len(contents) and all(map(is_, holder, contents))


class Variable(NamedTuple):
    """A closure variable of a function."""

    cell: types.CellType
    value: Any

    def same(self) -> bool:
        return _content(self.cell) is self.value


class Code(NamedTuple):
    """A function's code and defaults."""

    function: types.FunctionType
    parts: tuple[Any, ...]

    def same(self) -> bool:
        f = self.function
        return all(map(is_, (f.__code__, f.__defaults__, f.__kwdefaults__), self.parts))


class Unwatched(ValueError):
    """A forward reads something that cannot be watched, or writes; the message says what."""


class Reads:
    """Dependencies of a module's forward besides its arguments, at their verified values.

    apart   children, or lists of children, that are fused with the module: their forwards and contents do not count
    free    plain attributes of the module that the caller compares
    layers  the caller compares submodules, their parameters, hooks and settings, because they are fused
    sets    names of attributes that the forward sets before it reads them
    Raises Unwatched if a forward writes anything else, or reads something that cannot be watched.
    """

    def __init__(self, module: nn.Module, apart: Sequence[str] = (), free: Sequence[str] = (), layers: bool = False) -> None:
        self.options = tuple(apart), frozenset(free), layers
        self.names, found = _settled(module, *self.options)
        if clash := found.sets & self.names:
            raise Unwatched(f"its forward sets {min(clash)}, which it reads elsewhere")
        self.key, self.sets = found.key(), sorted(found.sets)
        self.last: tuple[Any, ...] = module, found.watched, True

    def same(self, module: nn.Module) -> bool:
        """Return whether the dependencies of `module` have their verified values; also true again after a change is reverted.

        Results for a replica of DataParallel, one of several threads, are not stored.
        """
        last, watched, as_tried = self.last
        if last is module and all(w.same() for w in watched):
            return as_tried
        found = _Look(module, *self.options, self.names)
        try:
            found.run()
            as_tried = found.grown <= self.names and found.key() == self.key
        except Unwatched:
            as_tried = False
        if not getattr(module, "_is_replica", False):
            self.last = module, found.watched, as_tried
        return as_tried

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles, without the dependencies: they are found again."""
        return {**self.__dict__, "last": (None, (), False)}


def _settled(module: nn.Module, *options: Any) -> tuple[frozenset[str], "_Look"]:
    """Return all attribute names that the code reads, and the dependencies. Raises Unwatched."""
    known = _names.setdefault(own_class(module), {})
    if options in known:
        found = _Look(module, *options, known[options]).run()
        if found.grown | {"forward"} == known[options]:
            return known[options], found
    names = frozenset({"forward"})
    while True:
        found = _Look(module, *options, names).run()
        if found.grown <= names:
            known.setdefault(options, names)
            return names, found
        names |= found.grown


_names: WeakKeyDictionary[type, dict[Any, frozenset[str]]] = WeakKeyDictionary()  # as found for other modules of the class


class _Look:
    """One traversal of all dependencies, for a given set of attribute names."""

    def __init__(
        self, root: nn.Module, apart: tuple[str, ...], free: frozenset[str], layers: bool, names: frozenset[str]
    ) -> None:
        self.root, self.apart, self.free, self.layers = root, apart, free, layers
        self.names, self.sorted = names, sorted(names)
        self.grown: set[str] = set()
        self.tokens: list[str] = []
        self.watched: list[Any] = []
        self.seen: dict[Any, int] = {}
        self.kept: list[Any] = []  # keeps ids from being reused
        self.queue: deque[tuple[Callable[..., None], Any, str]] = deque()
        self.sets: frozenset[str] = frozenset()
        self.changes: set[str] = set()
        self.containers: dict[type, str] = {}

    def run(self) -> Self:
        """Traverse. Raises Unwatched; results up to then are kept."""
        self.inner = {id(m) for m in self.root.modules()}
        lists = [self.root._modules.get(name) for name in self.apart]
        fused = [m for listed in lists for m in _each(listed)]
        self.fused = {id(m) for m in fused}
        self.watched += [Whole(m._modules, m._modules.copy()) for m in lists if m is not None]
        self.visit(self.root, "it")
        for number, m in enumerate(fused):
            self.aside(m, number)
        while self.queue:
            act, value, path = self.queue.popleft()
            act(value, path)
        for kind, path in self.containers.items():
            if self.changes & MUTATORS[kind]:
                raise Unwatched(f"its forward may change {path}: a fused call would not")
        return self

    def key(self) -> str:
        """Return the key of all dependencies."""
        return sha256("\n".join(self.tokens).encode()).hexdigest()

    def visit(self, value: Any, path: str) -> None:
        """Record a value, and schedule its contents."""
        kind = type(value)
        if kind in PLAIN or isinstance(value, Enum | EnumMeta):
            self.tokens.append(f"{_name(kind)} {value!r}" if kind is not object else "object")
            return
        if id(value) in self.seen:
            self.tokens.append(f"#{self.seen[id(value)]}")
            return
        self.seen[id(value)] = len(self.seen)
        self.kept.append(value)
        if len(self.kept) > MOST:
            raise Unwatched(f"its forward reads from more than {MOST} objects")
        self.tokens.append(_described(value))
        act = self.reader(value, path)
        if act is not None:
            self.queue.append((act, value, path))

    def reader(self, value: Any, path: str) -> Callable[[Any, str], None] | None:
        """Return the method that traverses a value; None for a leaf. Raises Unwatched."""
        if isinstance(value, Tensor):
            raise Unwatched(f"its forward depends on {_short(path)}, a tensor besides its parameters and buffers")
        if issubclass(type(value), nn.Module):
            return self.module
        if isinstance(value, types.FunctionType):
            return None if _trusted(value) else self.function
        if isinstance(value, type):
            return None if _trusted(value) else self.loose_class
        if isinstance(value, types.ModuleType):
            if value.__name__ == "numpy" and "random" in self.names:
                raise Unwatched("its forward draws numbers from numpy.random")
            return None if _trusted(value) else self.attributes
        if isinstance(value, ACCESSORS):
            return self.accessor
        if isinstance(value, BUILTIN):
            own = getattr(value, "__self__", getattr(value, "__objclass__", None))
            if value in PURE or (own is not builtins and isinstance(own, types.ModuleType | type) and _trusted(own)):
                return None
            raise Unwatched(f"its forward uses {_short(path)}, which may do anything")
        if isinstance(value, CONTAINERS):
            return self.container
        if type(value) in (types.SimpleNamespace, Namespace):
            return self.namespace
        if hasattr(value, "__wrapped__") and type(value).__module__ == "functools":
            return self.wrapped
        if type(value).__name__ == "_tuplegetter":  # a field of a namedtuple
            return None
        if not _trusted(type(value)) and hasattr(value, "__dict__"):
            return self.instance
        raise Unwatched(f"its forward reads {_short(path)}, a {type(value).__name__}, which cannot be watched")

    def named(self, holder: Any, contents: Any, names: Sequence[str], path: str) -> None:
        """Record values by name, missing ones included."""
        values = tuple([contents.get(n, MISSING) for n in names])
        self.watched.append(Named(holder, tuple(names), values))
        self.tokens.append(":")
        for name, value in zip(names, values, strict=True):
            if value is not MISSING:
                self.tokens.append(name)
                self.visit(value, f"{path}.{name}")

    def whole(self, holder: Any) -> Any:
        """Return a container's current contents."""
        contents = tuple(holder) if isinstance(holder, tuple | list | deque) else holder.copy()
        self.watched.append(Whole(holder, contents))
        self.tokens.append(":")
        return contents

    def attributes(self, value: Any, path: str) -> None:
        """Record an object's named attributes."""
        self.named(value, value.__dict__, self.sorted, path)

    def instance(self, value: Any, path: str) -> None:
        self.attributes(value, path)
        self.class_of(type(value), path)

    def namespace(self, value: Any, path: str) -> None:
        contents = self.whole(vars(value))
        for name, inner in contents.items():
            self.tokens.append(name)
            self.visit(inner, f"{path}.{name}")

    def container(self, value: Any, path: str) -> None:
        kind = next((k for k in MUTATORS if isinstance(value, k)), None)
        if kind is not None:
            self.containers.setdefault(kind, _short(path))
        contents = self.whole(value) if kind is not None or isinstance(value, types.MappingProxyType) else value
        if isinstance(value, dict | types.MappingProxyType):
            for key, inner in contents.items():
                self.visit(key, f"a key of {path}")
                self.visit(inner, f"{path}[{key!r}]")
        elif isinstance(value, set | frozenset):
            if any(type(v) not in PLAIN and not isinstance(v, Enum) for v in contents):
                raise Unwatched(f"its forward reads {_short(path)}, a set of other than plain values")
            self.tokens += sorted(map(repr, contents))
        else:
            for i, inner in enumerate(contents):
                self.visit(inner, f"{path}[{i}]")
        self.tokens.append("end")
        if not _trusted(type(value)):
            if hasattr(value, "__dict__"):
                self.attributes(value, path)
            self.class_of(type(value), path)
        elif type(value).__name__ == "defaultdict":
            self.visit(value.default_factory, f"{path}.default_factory")

    def wrapped(self, value: Any, path: str) -> None:
        self.visit(value.__wrapped__, path)

    def accessor(self, value: Any, path: str) -> None:
        """Record descriptors and wrappers between a name and a function."""
        parts = ("fget", "func", "args", "keywords", "__func__", "__self__", "__origin__", "__args__")
        skipped = ("__self__",) if isinstance(value, staticmethod | classmethod) else ()
        for part in parts:
            if part not in skipped and hasattr(value, part):
                self.visit(getattr(value, part), path)

    def function(self, value: types.FunctionType, path: str) -> None:
        known = facts(value.__code__)
        if known.refusal:
            of = "" if path == "it.forward" else f"uses {_short(path)}, which "
            raise Unwatched(f"its forward {of}{known.refusal}")
        if known.sets and path != "it.forward":
            raise Unwatched(f"its forward uses {_short(path)}, which sets {min(known.sets)}")
        self.sets |= known.sets
        self.tokens.append(known.digest)
        self.grown |= known.attributes
        self.watched.append(Code(value, (value.__code__, value.__defaults__, value.__kwdefaults__)))
        names = sorted(known.names)
        namespace = value.__globals__
        if names:
            self.watched.append(Named(namespace, tuple(names), tuple([namespace.get(n, MISSING) for n in names])))
        for name in names:
            found = namespace.get(name, vars(builtins).get(name, MISSING))
            self.tokens.append(name)
            if found is not MISSING:
                self.visit(found, name)
        for what, name in known.changes:
            owner = None if name is None else namespace.get(name)
            if not isinstance(owner, types.ModuleType):
                self.changes.add(what)
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            inner = _content(cell)
            self.watched.append(Variable(cell, inner))
            if name == "__class__" and isinstance(inner, type):
                self.class_of(inner, name)
            elif inner is not MISSING:
                self.visit(inner, name)
        for inner in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()):
            self.visit(inner, f"a default of {value.__name__}")
        if value.__dict__:
            self.attributes(value, path)

    def loose_class(self, value: type, path: str) -> None:
        """Record a class that is named: it may be called."""
        self.class_of(value, path)
        if not issubclass(value, nn.Module | BaseException):
            for c in _foreign(value):
                for name in ("__init__", "__new__"):
                    if name in vars(c):
                        self.visit(vars(c)[name], f"{path}.{name}")

    def class_of(self, value: type, path: str) -> None:
        """Record attributes of a class and of its bases."""
        for c in _foreign(value):
            if ("class", c) in self.seen:
                continue
            self.seen["class", c] = 0
            if not _trusted(type(c)):
                raise Unwatched(f"its forward reads {_short(path)}, whose class has a metaclass of its own")
            self.tokens.append(_name(c))
            special = [n for n, v in vars(c).items() if n[:2] == "__" == n[-2:] and callable(v) and n not in WRITING]
            gradient = ["backward", "setup_context"] if issubclass(c, torch.autograd.Function) else []
            names = sorted({*self.sorted, *special, *gradient} - {"__class__", "__doc__", "__module__"})
            self.queue.append((lambda c, path, names=names: self.named(c, vars(c), names, path), c, path))

    def module(self, value: nn.Module, path: str) -> None:
        """Record a submodule, or a module that is reached otherwise."""
        if id(value) in self.fused:
            return
        cls, own = own_class(value), vars(value)
        torchs, compared = _trusted(cls), self.layers and id(value) in self.inner
        if not compared:
            self.watched.append(Whole(own["_modules"], own["_modules"].copy()))
            if value is not self.root:
                for hooks in HOOKS:
                    self.visit_whole(own[hooks], f"{path}.{hooks}")
        if not torchs:
            skipped = {"training"} if id(value) in self.inner else set()
            skipped |= self.free if value is self.root else set()
            self.named(value, own, [n for n in self.sorted if n not in skipped], path)
            self.class_of(cls, path)
        elif not compared:
            settings = [n for n, v in own.items() if type(v) in (*PLAIN, tuple) and n != "training"]
            self.named(value, own, ["forward", *settings], path)
        for kind in ("_parameters", "_buffers") if not (compared and torchs) else ():
            for name in self.whole(own[kind]):
                if name in self.names:
                    self.tokens.append(name)
                    self.visit(own[kind][name], f"{path}.{name}")
        for name, child in own["_modules"].items():
            if child is not None and not (value is self.root and name in self.apart):
                self.tokens.append(name)
                self.visit(child, f"{path}.{name}")

    def visit_whole(self, value: dict, path: str) -> None:
        for inner in self.whole(value).values():
            self.visit(inner, path)

    def aside(self, module: nn.Module, number: int) -> None:
        """Record the attributes that the root's code names of a module fused with the root, where it has them."""
        cls, path = own_class(module), f"module {number}"
        if _trusted(cls):
            return
        names = [n for n in self.sorted if n not in ("forward", "training")]
        for holder in (module, *_foreign(cls)):
            attributes = vars(holder)
            if ("aside", holder) not in self.seen:
                self.seen["aside", holder] = 0
                self.watched.append(Named(holder, tuple(names), tuple([attributes.get(n, MISSING) for n in names])))
            for name in names:
                if name in attributes:
                    self.tokens.append(f"{number} {name}")
                    self.visit(attributes[name], f"{path}.{name}")


def _each(child: nn.Module | None) -> Iterator[nn.Module]:
    """Yield a child, or its members if it is a list or a dictionary."""
    if isinstance(child, nn.ModuleList | nn.ModuleDict):
        for member in child._modules.values():
            yield from _each(member)
    elif child is not None:
        yield child


def _foreign(cls: type) -> list[type]:
    """Return a class and its bases, except those of trusted packages."""
    return [c for c in cls.__mro__ if not _trusted(c)]


def _trusted(value: Any) -> bool:
    name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return isinstance(name, str) and name.split(".")[0] in TRUSTED


def _described(value: Any) -> str:
    """Describe a value by names that are the same in every process."""
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, type):
        return f"class {_name(value)}"
    if isinstance(value, types.FunctionType | BUILTIN):
        return f"function {_name(value)}"
    return _name(own_class(value) if issubclass(type(value), nn.Module) else type(value))


def _name(value: Any) -> str:
    """Return the name of a class or function; a spawned process' main module is named as its parent's."""
    module = getattr(value, "__module__", None)
    return f"{'__main__' if module == '__mp_main__' else module}.{value.__qualname__}"


def _short(path: str) -> str:
    return path.removeprefix("it.")


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable without a value yet
        return MISSING
