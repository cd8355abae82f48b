"""convert and revert: fuse search networks and discrete networks of other codebases, in place."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastdarts.interop import probe
from fastdarts.interop.candidates import Own, described, proposed
from fastdarts.interop.cell import CellPlan, FusedCell, FusedPreprocess, PreprocessPlan, nodes_of
from fastdarts.interop.classes import PLAN, RENEW, Before, add_mixin, remove_mixin
from fastdarts.interop.discrete import FusedDiscreteCell
from fastdarts.interop.discrete_trial import discrete_cells, proposal, verified_structure
from fastdarts.interop.mixture import FusedMixture, MixturePlan, listing, mixtures
from fastdarts.interop.parts import Layers
from fastdarts.interop.reads import Reads, Unwatched
from fastdarts.interop.recognise import FusableCandidate, Unknown, as_preprocess, recognise
from fastdarts.interop.tree import bare, signature
from fastdarts.interop.trial import differs_on, kind_of, subject_of
from fastdarts.kernels.graph import Candidate
from fastdarts.module_hooks import SLOW, global_hooks, without_global_hooks
from fastdarts.ops.backend import choose

Level = Literal["cell", "op"]
KS = (1, 2, 3, 4, 5, 6, 8)  # candidates for the divisor of partial channels
FUSED = (FusedMixture, FusedCell, FusedPreprocess, FusedDiscreteCell)


class ConvertError(ValueError):
    """A network that cannot be converted; the message says why and what to do."""


class Line(NamedTuple):
    """The result for one module: "cell", "op", "partly", "preprocess", "left alone"; for all modules: "own forward"."""

    name: str
    became: str
    why: str = ""


class Report(tuple[Line, ...]):
    """A Line for each module that was examined; str() gives a table."""

    def __str__(self) -> str:
        counts: dict[tuple[str, str], list[str]] = {}
        for line in self:
            counts.setdefault((line.became, line.why), []).append(line.name)
        return "\n".join(f"{became}: {_shortlist(names)}{why and f' ({why})'}" for (became, why), names in counts.items())


def _shortlist(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} ... {names[-1]} ({len(names)} modules)"


def convert(model: nn.Module, *, level: Level = "cell", backend: str = "auto") -> Report:
    """Fuse the mixed operations of a search network, or the cells of a discrete one, and return the result for each module.

    model    of any DARTS codebase. Parameters, buffers, names, signatures and classes (isinstance) are preserved; other modules
             and unknown operations stay unchanged
    level    "cell": one fused call for a cell with the forward of DARTS, one for each mixed operation of other cells; two for
             a discrete cell; "op": mixed operations only
    backend  of ops.mixed_cell and ops.relu_conv_bn

    A copy of each kind of module is verified first, on random inputs in float64, in train and eval mode; if it differs from
    ops.mixed_cell in any way, it keeps its own forward. A call outside the verified conditions (other arguments, hooks on
    candidates, global module hooks, active dropout) runs the class' own forward. Optimizers created before or after hold
    the same Parameters. torch.compile leaves fused calls unchanged between its graphs (not with fullgraph=True). If the
    conversion is interrupted, nothing is converted.

    A discrete cell (two preprocess layers and single operations, as in DARTS' NetworkCIFAR and NetworkImageNet) draws its
    drop-path factors by its own code: each call runs the cell's own forward on small stand-ins of its layers, which shows what
    it sums, with which factors, and takes the same random numbers. If it is no sum as verified, or there is no fused kernel
    with affine BatchNorms (so far on CPUs only), the class' own forward runs, which is logged once for each reason.

    The dependencies of a forward besides its arguments are found from its code: attributes, class attributes, globals, closure
    variables, and the contents of objects and containers there. Each call compares them; while any differs from its verified
    value, the class' own forward runs. To verify the current module, revert and convert again. A module is left alone,
    and the report says why, if its forward reads a tensor of its own, draws random numbers, reads what its code does not show
    (getattr with a computed name, vars, eval, objects without __dict__), or writes anything but an attribute that it sets
    before it reads it (GAEA's): a fused call does not set that attribute, and the report says so. Code of torch, numpy and
    Python's pure modules is trusted; monkey patches of them are not detected.
    Raises ConvertError for a network without any of these or one that is converted already; BackendUnavailable, ValueError
    for a backend that cannot run it.
    """
    if level not in ("cell", "op"):
        raise ConvertError(f"level {level!r}: expected 'cell' or 'op'")
    if any(isinstance(m, FUSED) for m in model.modules()):
        raise ConvertError("this network is already converted; fastdarts.revert(model) undoes it")
    tensor = next(iter(model.parameters()), None)
    if tensor is None:
        raise ConvertError("this network has no parameters")
    choose("mixed_cell", backend, tensor.device, tensor.dtype)
    try:
        with probe.isolated_state(tensor.device), without_global_hooks():
            lines = list(_Converter(model, level, backend).run())
    except BaseException:
        for module in model.modules():
            remove_mixin(module, PLAN)
        raise
    if not any(line.became != "left alone" for line in lines):
        reasons = "; ".join(f"{line.name}: {line.why}" for line in lines[:4]) or "it holds no list of candidates"
        raise ConvertError(f"no mixed operation was recognised, nor a discrete cell ({reasons})")
    if global_hooks():
        lines.append(Line("all modules", "own forward", SLOW))
    if callable(getattr(model, "new", None)):
        add_mixin(model, Renewed, RENEW, (level, backend))
    return Report(lines)


def revert(model: nn.Module) -> None:
    """Undo convert: restore every module's class. Parameters and buffers keep their current values.

    Raises ConvertError for a network that is not converted.
    """
    found = [m for m in model.modules() if PLAN in m.__dict__ or RENEW in m.__dict__]
    if not found:
        raise ConvertError("this network is not converted")
    for module in found:
        remove_mixin(module, PLAN, RENEW)


class Renewed(Before):
    """Mixin of a converted network whose class has `new()`: also converts the network that it returns."""

    def new(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Call the class' method and convert the result."""
        own: Any = super()
        made = own.new(*args, **kwargs)
        level, backend = self.__dict__[RENEW]
        remove_mixin(made, RENEW)  # if the class instantiates type(self)
        convert(made, level=level, backend=backend)
        return made


class _Converter:
    """State of one conversion: a verified result holds for all modules of the same kind."""

    def __init__(self, model: nn.Module, level: Level, backend: str) -> None:
        self.model, self.level, self.backend = model, level, backend
        images = [p for p in model.parameters() if p.dim() == 4 and not p.is_contiguous()]
        self.channels_last = any(p.is_contiguous(memory_format=torch.channels_last) for p in images)
        self.tried: dict[Any, Any] = {}

    def run(self) -> Iterator[Line]:
        """Convert, and yield a Line for each module."""
        done: dict[str, Line] = {}
        discrete = list(discrete_cells(self.model)) if self.level == "cell" else []
        for name, module in discrete:
            why = self.discrete(module)
            done[name] = Line(name, "cell" if why is None else "left alone", why or "")
        for name, module in [pair for pair in mixtures(self.model) if pair not in discrete]:
            line = self.mixture(name, module)
            if line is not None:
                done[name] = line
        for name, module in list(mixtures(self.model)) if self.level == "cell" else []:
            edges = _edges_of(module)
            if edges is None:
                continue
            why = self.cell(module)
            inner = [n for n in done if n.startswith(f"{name}." if name else "")]
            if why is None:
                reasons = {done[n].why: None for n in inner if done[n].why}
                yield Line(name, "cell", "; ".join(reasons))
                for n in inner:
                    done.pop(n)
                for child in module.__dict__[PLAN].before:
                    if isinstance(module._modules[child], FusedPreprocess):
                        inner_name = f"{name}.{child}" if name else child
                        done[inner_name] = Line(inner_name, "preprocess")
            else:
                yield Line(name, "left alone", f"as a cell: {why}; its mixed operations are converted one by one")
        yield from done.values()

    def mixture(self, name: str, module: nn.Module) -> Line | None:
        """Convert a mixed operation; None for any other module."""
        listed, candidates = listing(module)
        own = self._own(candidates)
        signatures = list(map(signature, candidates))
        layouts, found = map(list, zip(*(described(c, own) for c in candidates), strict=True))
        known = [a for a in layouts if isinstance(a, FusableCandidate)]
        if not any(a.channels for a in known) or len({type(c) for c in candidates} & {nn.ModuleList}):
            return None
        divisors = [name for name in ("k", "_k") if type(vars(module).get(name)) is int]
        try:
            reads = Reads(module, apart=[listed], free=divisors)
        except Unwatched as error:
            return Line(name, "left alone", str(error))
        attributes = tuple((n, vars(module)[n]) for n in divisors if n in reads.names)
        tried = [(one, None if layers is None else layers.key) for one, layers in zip(signatures, found, strict=True)]
        plan = MixturePlan(listed, backend=self.backend, own=own, tried=frozenset(tried), layouts=layouts, found=found)
        kind = kind_of(module, reads.key, attributes, layouts, tried)
        if kind not in self.tried:
            self.tried[kind] = self._try_mixture(module, plan)
        flags = self.tried[kind]
        if isinstance(flags, str):
            return Line(name, "left alone", flags)
        plan.divisor, plan.skips_zeros, plan.positive, plan.longer = flags
        plan.channels_last, plan.reads, plan.attributes = self.channels_last, reads, attributes
        _mixed(module, plan)
        unknown = [f"candidate {i}: {a.why}" for i, a in enumerate(layouts) if isinstance(a, Unknown)]
        left = [f"its forward also sets {', '.join(reads.sets)}, which a fused call does not"] if reads.sets else []
        return Line(name, "partly" if unknown else "op", "; ".join([*unknown, *left]))

    def discrete(self, module: nn.Module) -> str | None:
        """Convert a discrete cell; return None, or why it keeps its own forward."""
        plan = proposal(module, self._own, self.backend)
        if isinstance(plan, str):
            return plan
        kind = "discrete", kind_of(module, plan.key, plan.layouts, sorted(map(repr, plan.tried)))
        if kind not in self.tried:
            subject = subject_of(module)
            self.tried[kind] = subject if isinstance(subject, str) else verified_structure(subject, plan, self._image_for)
        if isinstance(self.tried[kind], str):
            return self.tried[kind]
        plan.structure, plan.channels_last = self.tried[kind], self.channels_last
        add_mixin(module, FusedDiscreteCell, PLAN, plan)
        return None

    def _own(self, candidates: Iterable[nn.Module]) -> Own:
        """Return the codebase's own Identity and Zero among the candidates."""
        layers = dict.fromkeys(filter(None, map(bare, candidates)))
        return {signature(layer): found for layer in layers if (found := self._without_layers(layer)) is not None}

    def _without_layers(self, layer: nn.Module) -> tuple[Candidate, int] | None:
        """Identify a layer without parameters by its output on a random image."""
        try:
            kind = kind_of(layer, Reads(layer, layers=True).key)
        except Unwatched:
            return None
        if kind not in self.tried:
            self.tried[kind] = self._try_without_layers(layer)
        return self.tried[kind]

    def _try_without_layers(self, layer: nn.Module) -> tuple[Candidate, int] | None:
        x = torch.randn(probe.N, 4, probe.SIDE, probe.SIDE, dtype=torch.float64, device=self._device())
        try:
            y = probe.double(layer).eval()(x)
        except Exception:  # foreign code: whatever it raises, it is no Identity or Zero
            return None
        if isinstance(y, Tensor) and y.shape == x.shape and torch.equal(y, x):
            return Candidate.SKIP, 1
        if isinstance(y, Tensor) and not y.any() and y.dim() == 4 and y.shape[-1] * 2 in (2 * probe.SIDE, probe.SIDE):
            return Candidate.NONE, probe.SIDE // y.shape[-1]
        return None

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _try_mixture(self, module: nn.Module, plan: MixturePlan) -> tuple[int, bool, bool, bool] | str:
        """Return a MixturePlan's divisor and flags, or why the forward is not that of a mixed operation."""
        subject, why = subject_of(module), ""
        if isinstance(subject, str):
            return subject
        layouts = [proposed(c, plan.own) for c in plan.candidates(module)]
        Cq = next(a.channels for a in layouts if isinstance(a, FusableCandidate) and a.channels)
        declared = vars(module).get("k")
        for k in dict.fromkeys([declared, *KS] if isinstance(declared, int) and declared > 0 else KS):
            x = torch.randn(probe.N, k * Cq, probe.SIDE, probe.SIDE, dtype=torch.float64, device=self._device())
            cases: dict[str, tuple[Any, ...]] = {n: (x, table[0]) for n, table in probe.rows(1, [len(layouts)], x).items()}
            cases[probe.LISTS] = x, list(cases[probe.SOFT][1])
            trial = replace(plan, positive=True, divisor=k, longer=True, layouts=[], found=[])
            differs = differs_on(subject, {probe.LISTS: cases[probe.LISTS]}, _as(trial))
            if differs is not None:
                why = why or differs
                continue
            for skips, positive in ((False, False), (True, False), (False, True)):  # the first that matches
                trial = replace(trial, skips_zeros=skips, positive=positive)
                differs = differs_on(subject, cases, _as(trial))
                if differs is None:
                    longer = {"a longer row": (x, x.new_ones(len(layouts) + 1))}
                    return k, skips, positive, differs_on(subject, longer, _as(trial)) is None
            return differs
        return why

    def cell(self, module: nn.Module) -> str | None:
        """Convert a cell whose mixed operations are converted; return None, or why it keeps its own forward."""
        listed, edges = listing(module)
        before = [n for n, child in module._modules.items() if child is not None and not isinstance(child, nn.ModuleList)]
        plans = [e.__dict__[PLAN] for e in edges if isinstance(e, FusedMixture)]
        if len(plans) < len(edges) or not all(p.whole for p in plans):
            return "not all its operations are mixed operations with fused candidates only"
        if len(before) != 2 or not nodes_of(len(edges)):
            return "it does not have two preprocess layers and i + 2 operations for node i"
        try:
            reads = Reads(module, apart=[*before, listed])
        except Unwatched as error:
            return str(error)
        of_edges = [
            kind_of(e, p.reads.key, p.attributes, p.layouts, p.skips_zeros, p.positive)
            for e, p in zip(edges, plans, strict=True)
        ]
        kind = kind_of(module, reads.key, of_edges)
        if kind not in self.tried:
            self.tried[kind] = self._try_cell(module, (before[0], before[1]), listed)
        found = self.tried[kind]
        if isinstance(found, str):
            return found
        beta, bare, further = found
        plan = CellPlan((before[0], before[1]), listed, beta, further, self.backend, reads, self.channels_last, bare)
        add_mixin(module, FusedCell, PLAN, plan)
        for name in before:
            self._fuse_preprocess(module.get_submodule(name))
        return None

    def _try_cell(self, module: nn.Module, before: tuple[str, str], listed: str) -> tuple[bool, bool, tuple[Any, ...]] | str:
        """Return a CellPlan's beta, bare and further arguments, or why the forward is not that of DARTS."""
        parameters = list(inspect.signature(module.forward).parameters.values())
        plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(plain) < 3 or len(plain) < len(parameters):
            return f"its forward takes ({', '.join(map(str, parameters))}), not two states and weights"
        subject, why = subject_of(module), ""
        if isinstance(subject, str):
            return subject
        bare = len(plain) > 3 and plain[3].default is None
        for beta in ((True, False) if bare else (False, True))[: len(plain) - 2]:
            further = tuple(0.0 if p.default is p.empty else p.default for p in plain[4 if beta else 3 :])
            plan = CellPlan(before, listed, beta, further, self.backend, bare=bare and beta)

            def converted(cell: nn.Module, plan: CellPlan = plan) -> list[nn.Module]:
                add_mixin(cell, FusedCell, PLAN, plan)
                return [cell]

            cases = self._cell_cases(subject.module, before, listed, beta, further)
            if plan.bare:
                table, states = cases[probe.SOFT][2], cases[probe.SOFT][:2]
                cases["no weights of edges"] = *states, table, None, *further
            differs = differs_on(subject, cases, converted)
            if differs is None:
                return beta, plan.bare, further
            why = differs
        return why

    def _cell_cases(
        self, own: nn.Module, before: tuple[str, str], listed: str, beta: bool, further: tuple[Any, ...]
    ) -> dict[str, tuple[Any, ...]]:
        """Return arguments to verify a cell with."""
        states = [self._image_for(own.get_submodule(name)) for name in before]
        plans = [edge.__dict__[PLAN] for edge in listing(own)[1]]
        tables = probe.rows(len(plans), [len(p.layouts) for p in plans], states[0])
        betas = (torch.rand(len(plans), dtype=torch.float64, device=self._device()),) if beta else ()
        cases = {name: (*states, table, *betas, *further) for name, table in tables.items()}
        soft = tables[probe.SOFT]
        rows = [list(row[: len(p.layouts)]) for row, p in zip(soft, plans, strict=True)]
        return cases | {probe.LISTS: (*states, rows, *betas, *further)}

    def _fuse_preprocess(self, module: nn.Module) -> bool:
        """Convert a preprocess layer; return whether it is one."""
        found = as_preprocess(recognise(module))
        if found is None or found.affine:
            return False
        try:
            layers = Layers.of(module, found)
        except Unwatched:
            return False
        plan = PreprocessPlan(signature(module), layers, self.backend)
        kind = "preprocess", kind_of(module, layers.key), plan.kind, found
        if kind not in self.tried:
            self.tried[kind] = self._try_preprocess(module, plan)
        if self.tried[kind] is not None:
            return False
        add_mixin(module, FusedPreprocess, PLAN, plan)
        return True

    def _try_preprocess(self, module: nn.Module, plan: PreprocessPlan) -> str | None:
        """Return None, or how the layer differs."""

        def converted(layer: nn.Module) -> list[nn.Module]:
            add_mixin(layer, FusedPreprocess, PLAN, replace(plan))
            return [layer]

        subject = subject_of(module)
        if isinstance(subject, str):
            return subject
        return differs_on(subject, {"a random image": (self._image_for(subject.module),)}, converted)

    def _image_for(self, layer: nn.Module) -> Tensor:
        """Return (N, C, S, S), which the layer maps to (N, D, SIDE, SIDE)."""
        first = next(m for m in layer.modules() if isinstance(m, nn.Conv2d))
        side = probe.SIDE * first.stride[0]
        return torch.randn(probe.N, first.in_channels, side, side, dtype=torch.float64, device=self._device())


def _edges_of(module: nn.Module) -> list[nn.Module] | None:
    """Return the mixed operations of a module that lists some, else None."""
    _, edges = listing(module)
    return edges if any(isinstance(e, FusedMixture) for e in edges) else None


def _as(trial: MixturePlan) -> Callable[[nn.Module], list[nn.Module]]:
    """Return a function that converts a module by that plan, for a trial."""
    return lambda module: [_mixed(module, replace(trial, layouts=[], found=[]))]


def _mixed(module: nn.Module, plan: MixturePlan) -> nn.Module:
    add_mixin(module, FusedMixture, PLAN, plan)
    return module
