"""Static analysis of bytecode: the names that a function reads and writes.

Names are not followed through the code's variables: a named attribute counts as read from any object. Only changes of
containers that the code has provably created itself are allowed; every other change is reported.
"""

import builtins
import dis
import hashlib
import re
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from types import CodeType
from typing import Any, NamedTuple

ASKED = {"getattr", "hasattr"}  # builtins that read an attribute named by a string
_PURE = """abs all any bool bytes callable chr complex dict divmod enumerate filter float frozenset getattr hasattr int
isinstance issubclass iter len list map max min next object ord pow property range reversed round set slice sorted staticmethod
str sum super tuple type zip"""
PURE = {getattr(builtins, name) for name in re.findall(r"\w+", _PURE)}
DYNAMIC = {  # names through which code reaches more than its bytecode names
    *("eval", "exec", "compile", "globals", "locals", "vars", "dir", "setattr", "delattr", "__import__", "import_module"),
    *("__dict__", "__getattribute__", "__setattr__", "__delattr__", "__closure__", "__globals__", "__defaults__"),
    *("__kwdefaults__", "__code__", "__self__", "__func__", "__subclasses__", "__reduce__", "__reduce_ex__", "attrgetter"),
    *("methodcaller", "_parameters", "_buffers", "parameters", "named_parameters", "buffers", "named_buffers", "state_dict"),
    *("get_parameter", "get_buffer", "get_extra_state", "register_buffer", "register_parameter", "add_module", "__setitem__"),
    *("__delitem__", "__iadd__", "__ior__", "setitem", "delitem", "iadd", "ior", "iand", "isub", "imul", "ixor", "iconcat"),
    *("is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled", "is_deterministic_algorithms_warn_only_enabled"),
    *("are_deterministic_algorithms_enabled", "get_default_dtype", "get_default_device", "get_rng_state", "initial_seed"),
    *("get_num_threads", "get_float32_matmul_precision", "environ", "getenv"),
}
MUTATORS: dict[type, set[str]] = {
    list: {"append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse", "[]=", "+=", "*="},
    dict: {"update", "setdefault", "pop", "popitem", "clear", "move_to_end", "subtract", "[]=", "|="},
    set: {
        *("add", "discard", "remove", "pop", "clear", "update", "intersection_update", "difference_update"),
        *("symmetric_difference_update", "|=", "&=", "-=", "^="),
    },
    deque: {
        *("append", "appendleft", "extend", "extendleft", "insert", "remove", "pop", "popleft", "clear", "rotate", "reverse"),
        *("[]=", "+=", "*="),
    },
}
_CHANGES = set().union(*MUTATORS.values())
_WRITES = {"STORE_ATTR": "sets", "DELETE_ATTR": "deletes", "STORE_GLOBAL": "sets", "DELETE_GLOBAL": "deletes"}
_NEW = {  # instructions that return a new, unshared object
    *("BUILD_LIST", "BUILD_MAP", "BUILD_CONST_KEY_MAP", "BUILD_SET", "BUILD_TUPLE", "LIST_EXTEND", "SET_UPDATE", "DICT_UPDATE"),
    *("BINARY_OP", "LOAD_CONST", "LOAD_SMALL_INT", "UNARY_NEGATIVE", "UNARY_NOT", "COMPARE_OP"),
}
_LOADS, _STORES = ("LOAD_FAST", "LOAD_DEREF"), ("STORE_FAST", "STORE_DEREF")


class Step(NamedTuple):
    """An instruction: name, index, operand, whether it is a jump target, whether it jumps, and its stack effect."""

    name: str
    number: int
    what: Any
    target: bool
    jumps: bool
    effect: int


class Facts(NamedTuple):
    """Side effects and dependencies of a function's code, nested functions included.

    attributes  names read from objects
    names       globals and builtins read
    changes     methods and operators that may change a container that the code has not created, each with the global whose
                attribute it is, or None
    sets        attributes of the first argument that the code sets before anything in it can read them
    refusal     why the code cannot be analysed, a phrase that follows "its forward"; None if it can
    digest      equal for equal code
    """

    attributes: frozenset[str]
    names: frozenset[str]
    changes: frozenset[tuple[str, str | None]]
    sets: frozenset[str]
    refusal: str | None
    digest: str


@lru_cache(maxsize=4096)
def facts(code: CodeType) -> Facts:
    """Analyse a function's code."""
    codes = list(_within(code))
    steps = [list(_steps(c)) for c in codes]
    sets = _first_set(code, steps)
    refusals = [why for s in steps for why in _refusals(s, set(code.co_freevars), sets)]
    attributes, names = set(), set()
    for of_code in steps:
        for i, step in enumerate(of_code):
            if step.name in ("LOAD_GLOBAL", "LOAD_NAME"):
                names.add(step.what)
                if step.what in ASKED:
                    attributes.add(_asked(of_code, i))
            elif step.name == "NAMED":
                attributes.add(step.what)
    if None in attributes:
        refusals.append("reads an attribute whose name it computes")
    dynamic = sorted((attributes | names) & DYNAMIC)
    refusals += [f"uses {dynamic[0]}, which may read or write anything"] if dynamic else []
    arguments = {name for c in codes for name in c.co_varnames[: _arguments(c)]}
    return Facts(
        frozenset(attributes - {None} - sets),
        frozenset(names),
        frozenset(_changes(steps, arguments)),
        sets,
        refusals[0] if refusals else None,
        hashlib.sha256(repr([(c.co_code, c.co_names, _constants(c), c.co_freevars) for c in codes]).encode()).hexdigest(),
    )


def _within(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _within(constant)


def _constants(code: CodeType) -> list[str]:
    """Return the constants' texts; sets are sorted, since their order differs between processes."""
    constants = [c for c in code.co_consts if not isinstance(c, CodeType)]
    return [repr(sorted(map(repr, c))) if isinstance(c, frozenset) else repr(c) for c in constants]


def _arguments(code: CodeType) -> int:
    return code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)


def _steps(code: CodeType) -> Iterator[Step]:
    """Normalise the instructions across Python versions: split superinstructions, map attribute reads to NAMED."""
    for i in dis.get_instructions(code):
        jumps = i.opcode in dis.hasjrel or i.opcode in dis.hasjabs
        effect = dis.stack_effect(i.opcode, i.arg, jump=False)
        name, number = i.opname, i.arg or 0
        if name == "BINARY_OP":
            name = {"=": "INPLACE", "]": "BINARY_SUBSCR"}.get(i.argrepr[-1:], name)
            yield Step(name, number, i.argrepr, i.is_jump_target, jumps, effect)
        elif isinstance(i.argval, tuple) and "FAST" in name:
            for kind, what in zip(re.findall("LOAD|STORE", name), i.argval, strict=True):
                yield Step(f"{kind}_FAST", 0, what, i.is_jump_target, False, 1 if kind == "LOAD" else -1)
        elif name.startswith(("LOAD_FAST", "STORE_FAST")) and name != "LOAD_FAST_AND_CLEAR":
            yield Step(name[: name.index("FAST") + 4], number, i.argval, i.is_jump_target, jumps, effect)
        elif i.opcode in dis.hasname and name not in ("LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME", *_WRITES):
            yield Step("NAMED", number, i.argval, i.is_jump_target, jumps, effect)
        else:
            yield Step(name, number, i.argval, i.is_jump_target, jumps, effect)


def _first_set(code: CodeType, steps: list[list[Step]]) -> frozenset[str]:
    """Return attributes of the first argument that the code sets once, always, and before any read (also in nested code)."""
    own, *within = steps
    found, read = set(), set()
    for before, step in pairwise(own):
        if step.jumps or step.target:
            break
        of_first = code.co_argcount and (before.name, before.what) == ("LOAD_FAST", code.co_varnames[0])
        if step.name == "STORE_ATTR" and of_first:
            found |= {step.what} - read
        read |= {step.what} if step.name == "NAMED" else set()
    once = {s.what for s in own if s.name in _WRITES and sum(s.what == o.what for o in own if o.name in _WRITES) == 1}
    return frozenset(found & once - {s.what for of_code in within for s in of_code if s.name in ("NAMED", *_WRITES)})


def _refusals(steps: list[Step], outer: set[str], sets: frozenset[str]) -> Iterator[str]:
    for step in steps:
        if step.name in _WRITES and step.what not in sets:
            yield f"{_WRITES[step.name]} {step.what}: a fused call would not"
        elif step.name in ("STORE_DEREF", "DELETE_DEREF") and step.what in outer:
            yield f"sets {step.what}, a variable of the enclosing function"
        elif step.name == "IMPORT_NAME" and str(step.what).split(".")[0] not in ("torch", "math"):
            yield f"imports {step.what}"
        elif step.name in ("MATCH_CLASS", "LOAD_BUILD_CLASS", "IMPORT_STAR"):
            yield "uses match statements or defines classes"


def _asked(steps: list[Step], index: int) -> str | None:
    """Return the constant name in getattr(object, "name") and the like, or None."""
    depth, second, third = 0, index, index  # arguments on the stack; the start of the last two of them
    for i in range(index + 1, len(steps)):
        step = steps[i]
        if step.jumps or step.target or depth < 0:
            return None
        if step.name in ("PRECALL", "CALL") and step.number == depth and depth in (2, 3):
            name = steps[second]
            alone = second + 1 == (i if depth == 2 else third)
            return name.what if alone and name.name == "LOAD_CONST" and isinstance(name.what, str) else None
        if depth == 1 and step.effect > 0:
            second = i
        elif depth == 2 and step.effect > 0:
            third = i
        depth += step.effect
    return None


def _changes(steps: list[list[Step]], arguments: set[str]) -> Iterator[tuple[str, str | None]]:
    """Yield operations that may change a container, except new ones held in variables."""
    stored: dict[object, bool] = dict.fromkeys(arguments, False)
    for of_code in steps:
        for before, step in pairwise(of_code):
            if step.name in _STORES:
                new = (before.name in _NEW or before.name == "INPLACE") and not step.target
                stored[step.what] = stored.get(step.what, True) and new

    def own(step: Step) -> bool:
        return step.name in _LOADS and stored.get(step.what, False)

    for of_code in steps:
        for i, step in enumerate(of_code):
            before = of_code[i - 1]
            if step.name == "NAMED" and step.what in _CHANGES and (step.target or not own(before)):
                yield step.what, before.what if before.name == "LOAD_GLOBAL" and not step.target else None
            elif step.name in ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"):
                simple = step.name != "STORE_SLICE" and before.name in (*_LOADS, "LOAD_CONST", "LOAD_SMALL_INT")
                if not simple or step.target or before.target or not own(of_code[i - 2]):
                    yield "[]=", None
            elif step.name == "INPLACE":
                after = of_code[i + 1]
                if not (after.name in _STORES and stored.get(after.what, False)):
                    yield str(step.what), None
