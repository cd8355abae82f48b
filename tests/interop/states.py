"""Mixed operations and cells, written at random, whose forwards read state from anywhere, and what changes that state.

Each holder keeps one number, 1.0 at first, which leaves the forward a plain weighted sum. `{i}` is the holder's number.
"""

import random
import textwrap
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

VALUES = (1.0, 0.5, 2.0)


@dataclass(frozen=True)
class Holder:
    """Where a number is kept.

    read     the expression that reads it, in a method of the class
    put      the statement that sets it to `v`: `edge` is the module, `Edge` its class, `ns` the names of its Python module
    outside, body, init  lines of the Python module, of the class and of its constructor
    before   a line of the forward
    fused    the class may be fused
    """

    read: str
    put: str
    outside: str = ""
    body: str = ""
    init: str = ""
    before: str = ""
    fused: bool = True


OBJECT = """
class Holder{i}:
    kept = 1.0
    def __init__(self, v): self.v = v
    def get(self): return self.v
    @property
    def also(self): return self.get()
    def __call__(self): return self.v
    def __len__(self): return int(2 * self.v)
    def __getitem__(self, key): return self.v
"""
CLOSURE = """
def make{i}():
    v = 1.0
    def get(): return v
    def put(new):
        nonlocal v
        v = new
    return get, put
"""
DECORATED = """
G{i} = 1.0
def around{i}(f):
    @functools.wraps(f)
    def inner(*a): return f(*a) * G{i}
    return inner
@around{i}
def f{i}(): return 1.0
"""
ATTRIBUTES = """
class D{i}(dict):
    def __getattr__(self, key):
        if key not in self: raise AttributeError(key)
        return self[key]
"""
HOLDERS: dict[str, Holder] = {
    "attribute": Holder("self.a{i}", "edge.a{i} = v", init="self.a{i} = 1.0"),
    "attribute set later": Holder("getattr(self, 'g{i}', 1.0)", "edge.g{i} = v"),
    "attribute set later, asked for": Holder("(self.g{i} if hasattr(self, 'g{i}') else 1.0)", "edge.g{i} = v"),
    "SimpleNamespace": Holder("self.n{i}.v", "edge.n{i}.v = v", init="self.n{i} = types.SimpleNamespace(v=1.0)"),
    "Namespace": Holder("self.n{i}.v", "edge.n{i}.v = v", init="self.n{i} = argparse.Namespace(v=1.0)"),
    "Namespace replaced": Holder(
        "self.n{i}.v", "edge.n{i} = argparse.Namespace(v=v)", init="self.n{i} = argparse.Namespace(v=1.0)"
    ),
    "dict": Holder("self.d{i}['v']", "edge.d{i}['v'] = v", init="self.d{i} = {{'v': 1.0}}"),
    "dict get": Holder("self.d{i}.get('v', 1.0)", "edge.d{i}['v'] = v", init="self.d{i} = {{}}"),
    "OrderedDict": Holder("self.d{i}['v']", "edge.d{i}['v'] = v", init="self.d{i} = collections.OrderedDict(v=1.0)"),
    "nested": Holder("self.l{i}[0]['v'][0]", "edge.l{i}[0]['v'] = (v,)", init="self.l{i} = [{{'v': (1.0,)}}]"),
    "set": Holder(
        "(2.0 if 1 in self.s{i} else 1.0)", "edge.s{i}.add(1) if v != 1.0 else edge.s{i}.discard(1)", init="self.s{i} = set()"
    ),
    "deque": Holder("self.q{i}[-1]", "edge.q{i}.append(v)", init="self.q{i} = collections.deque([1.0], 2)"),
    "object": Holder("self.o{i}.v", "edge.o{i}.v = v", OBJECT, init="self.o{i} = Holder{i}(1.0)"),
    "method": Holder("self.o{i}.get()", "edge.o{i}.v = v", OBJECT, init="self.o{i} = Holder{i}(1.0)"),
    "method replaced": Holder("self.o{i}.get()", "edge.o{i}.get = lambda: v", OBJECT, init="self.o{i} = Holder{i}(1.0)"),
    "method of a class replaced": Holder(
        "self.o{i}.get()", "ns['Holder{i}'].get = lambda self: v", OBJECT, init="self.o{i} = Holder{i}(1.0)"
    ),
    "property": Holder("self.o{i}.also", "edge.o{i}.v = v", OBJECT, init="self.o{i} = Holder{i}(1.0)"),
    "called": Holder("self.o{i}()", "edge.o{i}.v = v", OBJECT, init="self.o{i} = Holder{i}(1.0)"),
    "length": Holder("len(self.o{i}) / 2", "edge.o{i}.v = v", OBJECT, init="self.o{i} = Holder{i}(1.0)"),
    "item": Holder("self.o{i}[0]", "edge.o{i}.v = v", OBJECT, init="self.o{i} = Holder{i}(1.0)"),
    "bound method": Holder("self.m{i}()", "edge.m{i}.__self__.v = v", OBJECT, init="self.m{i} = Holder{i}(1.0).get"),
    "an object's class": Holder("self.o{i}.kept", "ns['Holder{i}'].kept = v", OBJECT, init="self.o{i} = Holder{i}(1.0)"),
    "objects in a list": Holder("self.o{i}[1].v", "edge.o{i}[1].v = v", OBJECT, init="self.o{i} = [None, Holder{i}(1.0)]"),
    "class attribute": Holder("self.c{i}", "Edge.c{i} = v", body="c{i} = 1.0"),
    "class attribute by the class' name": Holder("Edge.c{i}", "Edge.c{i} = v", body="c{i} = 1.0"),
    "class attribute by type": Holder("type(self).c{i}", "Edge.c{i} = v", body="c{i} = 1.0"),
    "class attribute set later": Holder("getattr(self, 'c{i}', 1.0)", "Edge.c{i} = v"),
    "attribute over the class'": Holder("self.c{i}", "edge.c{i} = v", body="c{i} = 1.0"),
    "inherited": Holder("self.inherited", "ns['Base'].inherited = v"),
    "inherited method": Holder("self.ask()", "edge.asked = v"),
    "super": Holder("super().ask()", "edge.asked = v"),
    "own property": Holder(
        "self.p{i}", "edge.kept{i} = v", body="p{i} = property(lambda self: self.kept{i})", init="self.kept{i} = 1.0"
    ),
    "class method": Holder("self.cm{i}()", "Edge.c{i} = v", body="c{i} = 1.0\ncm{i} = classmethod(lambda cls: cls.c{i})"),
    "static method": Holder("self.sm{i}()", "ns['G{i}'] = v", "G{i} = 1.0", "sm{i} = staticmethod(lambda: G{i})"),
    "global": Holder("G{i}", "ns['G{i}'] = v", "G{i} = 1.0"),
    "global dict": Holder("G{i}['v']", "ns['G{i}']['v'] = v", "G{i} = {{'v': 1.0}}"),
    "global class": Holder("Mode{i}.v", "ns['Mode{i}'].v = v", "class Mode{i}:\n    v = 1.0"),
    "helper": Holder("helper{i}()", "ns['G{i}'] = v", "G{i} = 1.0\ndef helper{i}(): return G{i}"),
    "helper replaced": Holder("helper{i}()", "ns['helper{i}'] = lambda: v", "def helper{i}(): return 1.0"),
    "helper of a helper": Holder(
        "outer{i}(self)",
        "edge.h{i} = v",
        "def inner{i}(m): return m.h{i}\ndef outer{i}(m): return inner{i}(m)",
        init="self.h{i} = 1.0",
    ),
    "default": Holder("f{i}()", "ns['f{i}'].__defaults__[0]['v'] = v", "def f{i}(d={{'v': 1.0}}): return d['v']"),
    "attribute of a function": Holder("f{i}.v", "ns['f{i}'].v = v", "def f{i}(): pass\nf{i}.v = 1.0"),
    "decorated": Holder(
        "f{i}()",
        "ns['G{i}'] = v",
        DECORATED,
    ),
    "remembered": Holder(
        "f{i}(self.a{i})", "edge.a{i} = v", "@functools.lru_cache\ndef f{i}(v): return v", init="self.a{i} = 1.0"
    ),
    "closure": Holder("self.get{i}()", "edge.put{i}(v)", CLOSURE, init="self.get{i}, self.put{i} = make{i}()"),
    "lambda": Holder("self.r{i}()", "edge.r{i} = lambda: v", init="self.r{i} = lambda: 1.0"),
    "partial": Holder(
        "self.q{i}()",
        "edge.q{i}.args[0]['v'] = v",
        "def f{i}(d): return d['v']",
        init="self.q{i} = functools.partial(f{i}, {{'v': 1.0}})",
    ),
    "enum": Holder(
        "self.e{i}.value",
        "edge.e{i} = ns['E{i}'](v)",
        "E{i} = enum.Enum('E{i}', dict(a=1.0, b=0.5, c=2.0))",
        init="self.e{i} = E{i}(1.0)",
    ),
    "tuple with names": Holder(
        "self.t{i}.v", "edge.t{i} = ns['T{i}'](v)", "T{i} = collections.namedtuple('T{i}', 'v')", init="self.t{i} = T{i}(1.0)"
    ),
    "dict with attributes": Holder(
        "self.d{i}.v",
        "edge.d{i}['v'] = v",
        ATTRIBUTES,
        init="self.d{i} = D{i}(v=1.0)",
    ),
    "dataclass": Holder(
        "self.t{i}.v", "edge.t{i}.v = v", "@dataclasses.dataclass\nclass T{i}:\n    v: float = 1.0", init="self.t{i} = T{i}()"
    ),
    "module within": Holder(
        "self.sub{i}(1.0)",
        "edge.sub{i}.v = v",
        "class Sub{i}(nn.Module):\n    v = 1.0\n    def forward(self, x): return x * self.v",
        init="self.sub{i} = Sub{i}()",
    ),
    "torch's layer within": Holder(
        "float(self.layer{i}(torch.ones(())))", "edge.layer{i}.max_val = v", init="self.layer{i} = nn.Hardtanh(0.5, 1.0)"
    ),
    "a hook within": Holder(
        "float(self.layer{i}(torch.ones(())))",
        "edge.layer{i}.register_forward_hook(lambda m, x, y: v * torch.ones(()))",
        init="self.layer{i} = nn.Identity()",
    ),
    "layer replaced": Holder(
        "float(self.layer{i}(torch.ones(())))", "edge.layer{i} = nn.Hardtanh(0.5 * v, v)", init="self.layer{i} = nn.Identity()"
    ),
    "unfused module in a list": Holder(
        "self.net{i}[0].v", "edge.net{i}[0].v = v", init="self.net{i} = [nn.Identity()]; self.net{i}[0].v = 1.0"
    ),
    "buffer": Holder(
        "float(self.b{i})", "edge.b{i}.fill_(v)", init="self.register_buffer('b{i}', torch.ones(()))", fused=False
    ),
    "buffer, its data": Holder(
        "(2.0 if self.b{i} else 1.0)",
        "edge.b{i}.data.fill_(v != 1.0)",
        init="self.register_buffer('b{i}', torch.zeros((), dtype=torch.bool))",
        fused=False,
    ),
    "tensor": Holder(
        "(1.0 if self.b{i} < 1.4 else 0.5)", "edge.b{i} = torch.tensor(v)", init="self.b{i} = torch.ones(())", fused=False
    ),
    "counter": Holder(
        "(1.0 if self.n{i} < 5 else 0.5)", "edge.n{i} = 9 * (v > 1)", init="self.n{i} = 0", before="self.n{i} += 1", fused=False
    ),
    "counter in a dict": Holder(
        "(1.0 if self.n{i}['n'] < 5 else 0.5)",
        "edge.n{i}['n'] = 9 * (v > 1)",
        init="self.n{i} = {{'n': 0}}",
        before="self.n{i}['n'] += 1",
        fused=False,
    ),
    "history": Holder(
        "(1.0 if len(self.h{i}) < 5 else 0.5)",
        "edge.h{i}.extend([0] * 9)",
        init="self.h{i} = []",
        before="self.h{i}.append(0)",
        fused=False,
    ),
    "history by another name": Holder(
        "(1.0 if len(self.h{i}) < 5 else 0.5)",
        "edge.h{i}.extend([0] * 9)",
        init="self.h{i} = []",
        before="kept = self.h{i} if len(self.h{i}) else self.h{i}; kept += [0]",
        fused=False,
    ),
    "global counter": Holder(
        "(1.0 if G{i} < 5 else 0.5)", "ns['G{i}'] = 9 * (v > 1)", "G{i} = 0", before="global G{i}; G{i} += 1", fused=False
    ),
    "computed name": Holder(
        "getattr(self, self.key{i})", "edge.a{i} = v", init="self.key{i} = 'a{i}'; self.a{i} = 1.0", fused=False
    ),
    "__dict__": Holder("self.__dict__['a{i}']", "edge.a{i} = v", init="self.a{i} = 1.0", fused=False),
    "vars": Holder("vars(self)['a{i}']", "edge.a{i} = v", init="self.a{i} = 1.0", fused=False),
    "globals": Holder("globals()['G{i}']", "ns['G{i}'] = v", "G{i} = 1.0", fused=False),
    "eval": Holder("eval('self.a{i}')", "edge.a{i} = v", init="self.a{i} = 1.0", fused=False),
    "slots": Holder(
        "self.o{i}.v",
        "edge.o{i}.v = v",
        "class S{i}:\n    __slots__ = ('v',)",
        init="self.o{i} = S{i}(); self.o{i}.v = 1.0",
        fused=False,
    ),
    "environment": Holder(
        "float(os.environ.get('FASTDARTS_TEST_{i}', '1.0'))", "os.environ['FASTDARTS_TEST_{i}'] = str(v)", fused=False
    ),
    "generator": Holder(
        "(1.0 if next(self.it{i}) < 30 else 0.5)",
        "[next(edge.it{i}) for _ in range(40)]",
        init="self.it{i} = itertools.count()",
        fused=False,
    ),
}
USES = ("out = out * {read}", "out = out if {read} == 1.0 else out.flip(1)", "out = out if {read} < 1.4 else out + 1.0")
HEAD = """
import argparse, collections, dataclasses, enum, functools, itertools, os, types
import torch
from torch import Tensor, nn
"""
BASE = """
class Base:
    inherited = 1.0
    asked = 1.0
    def ask(self): return self.asked
"""
MIXTURE = """
class Edge(Base, nn.Module):
{body}
    def __init__(self, ops):
        super().__init__()
        self.ops = nn.ModuleList(ops)
        {init}
    def forward(self, x, weights):
        {before}
        out = sum(w * op(x) for w, op in zip(weights, self.ops, strict=True))
        {use}
        return out
"""
WRAPPED = """
class Edge(Base, Own):
{body}
    def __init__(self, *arguments):
        super().__init__(*arguments)
        {init}
    def forward(self, *arguments):
        {before}
        out = super().forward(*arguments)
        {use}
        return out
"""


class State:
    """A module of a class written at random, and what changes what its forward reads.

    `names` are of HOLDERS; `own` is the class whose forward the written one calls, None for a mixed operation of its own.
    """

    def __init__(self, rng: random.Random, names: list[str], own: type[nn.Module] | None = None) -> None:
        self.names = names
        holders = [HOLDERS[name] for name in names]

        def lines(part: str, indent: int) -> str:
            texts = [getattr(h, part).format(i=i) for i, h in enumerate(holders) if getattr(h, part)]
            return textwrap.indent("\n".join(texts), " " * indent)

        uses = [rng.choice(USES).format(read=h.read.format(i=i)) for i, h in enumerate(holders)]
        filled = {
            "body": lines("body", 4) or "    pass",
            "init": lines("init", 8).strip() or "pass",
            "before": lines("before", 8).strip() or "pass",
            "use": "\n        ".join(uses),
        }
        self.source = HEAD + lines("outside", 0) + BASE + (MIXTURE if own is None else WRAPPED).format(**filled)
        self.module = ModuleType("states")
        self.module.__dict__["Own"] = own
        exec(compile(self.source, "<states>", "exec"), self.module.__dict__)
        self.cls: type[nn.Module] = self.module.Edge
        self.puts = [h.put.format(i=i) for i, h in enumerate(holders)]
        self.fused = all(h.fused for h in holders)

    def put(self, number: int, value: float, *edges: nn.Module) -> None:
        """Holder `number` of each of these modules keeps another value."""
        for edge in edges:
            names: dict[str, Any] = {"edge": edge, "Edge": self.cls, "ns": self.module.__dict__, "v": value, "nn": nn}
            exec(f"import argparse, os, torch\n{self.puts[number]}", names)
