"""Find the discrete cells of another codebase's network, and verify each kind against its own forward."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from fastdarts.interop import probe
from fastdarts.interop.candidates import Own, described, proposed
from fastdarts.interop.classes import PLAN, add_mixin
from fastdarts.interop.discrete import DiscretePlan, FusedDiscreteCell, lacks_kernel
from fastdarts.interop.reads import Reads, Unwatched
from fastdarts.interop.recognise import FusableCandidate, Unknown, as_preprocess, recognise
from fastdarts.interop.stand_ins import CONTAINERS, NotFused, layers_of
from fastdarts.interop.tree import signature
from fastdarts.interop.trial import differs_on

DROP = 0.4  # probability to verify drop path with
UNSEEN = {  # what changes gradients, not outputs
    *("detach", "detach_", "data", "requires_grad_", "register_hook", "no_grad", "enable_grad", "set_grad_enabled"),
    *("inference_mode", "Function", "checkpoint"),
}
ARGUMENTS = "two states and the probability of drop path"


def discrete_cells(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield all submodules, by name, that have preprocess layers, and single operations in a list or dictionary."""
    for name, module in model.named_modules():
        children = [child for child in module._modules.values() if child is not None]
        lists = [child for child in children if isinstance(child, CONTAINERS)]
        if lists and any(as_preprocess(recognise(child)) is not None for child in children if child not in lists):
            listed = [layer for child in lists for layer in layers_of(child)]
            if any(isinstance(recognise(layer), FusableCandidate) for layer in listed):
                yield name, module


def proposal(cell: nn.Module, own_of: Callable[[Sequence[nn.Module]], Own], backend: str) -> DiscretePlan | str:
    """Return what to verify of a cell, or why it keeps its own forward.

    own_of  returns the codebase's own Identity and Zero among layers
    """
    tensor = next(cell.parameters())
    if why := lacks_kernel(backend, tensor.device, tensor.dtype):
        return why
    layers = list(layers_of(cell))
    own = own_of(layers)
    layouts, found = map(list, zip(*(described(layer, own, searched=False) for layer in layers), strict=True))
    unknown = [f"layer {i}, {type(layers[i]).__name__}: {a.why}" for i, a in enumerate(layouts) if isinstance(a, Unknown)]
    if unknown:
        return "; ".join(unknown)
    try:
        reads = Reads(cell, apart=[name for name, child in cell._modules.items() if child is not None])
    except Unwatched as error:
        return str(error)
    if hidden := sorted(UNSEEN & reads.names):
        return f"its forward uses {hidden[0]}, which its outputs alone do not show"
    if reads.sets:
        return f"its forward sets {', '.join(reads.sets)}: a fused call would not"
    tried = frozenset((signature(c), layers.key) for c, layers in zip(layers, found, strict=True))
    return DiscretePlan(own=own, tried=tried, layouts=layouts, found=found, reads=reads, backend=backend)


def verified_structure(subject: probe.Subject, plan: DiscretePlan, image_for: Callable[[nn.Module], Tensor]) -> Any:
    """Return the Structure of a cell whose results do not differ when fused, or how they do, as text.

    image_for  returns random images for a preprocess layer
    """
    cell = subject.module
    given = _further(cell)
    if isinstance(given, str):
        return given
    layers = list(layers_of(cell))
    trial = replace(plan, strict=True, reads=None, layouts=[proposed(c, plan.own, searched=False) for c in layers], found=[])
    try:
        trial.structure = trial.structure_of(cell.eval(), given[0.0], next(cell.parameters()))
    except NotFused as error:
        return str(error)
    states = [image_for(layers[i]) for i in trial.structure.before]
    cases = {f"drop path of {p}": (*states, *further) for p, further in given.items()}
    if not _runs(subject, (*states, *given[DROP])):
        del cases[f"drop path of {DROP}"]

    def converted(module: nn.Module) -> list[nn.Module]:
        add_mixin(module, FusedDiscreteCell, PLAN, trial)
        return [module]

    return differs_on(subject, cases, converted, ARGUMENTS) or trial.structure


def _further(cell: nn.Module) -> dict[float, tuple[Any, ...]] | str:
    """Return the arguments after the two states, without and with drop path, or why there are none."""
    parameters = list(inspect.signature(cell.forward).parameters.values())
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(plain) < 2 or len(plain) < len(parameters):
        return f"its forward takes ({', '.join(map(str, parameters))}), not {ARGUMENTS}"

    def value(parameter: inspect.Parameter, probability: float) -> Any:
        number = parameter.default is parameter.empty or type(parameter.default) in (int, float)
        return probability if number else parameter.default

    return {p: tuple(value(parameter, p) for parameter in plain[2:]) for p in (0.0, DROP)}


def _runs(subject: probe.Subject, arguments: probe.Arguments) -> bool:
    """Return whether the cell's own forward takes arguments: DARTS' code drops paths on a GPU only."""
    try:
        subject.outcome(arguments, training=True)
    except Exception:  # foreign code: where it raises, a converted cell runs it and raises, too
        return False
    return True
