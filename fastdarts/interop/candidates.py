"""Modules that a fused call replaces: recognised once, and again when they change.

A change is accepted if the converted network had, and verified, modules of the new kind.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from fastdarts.interop.parts import Layers
from fastdarts.interop.reads import Unwatched
from fastdarts.interop.recognise import FusableCandidate, Preprocess, Unknown, as_searched, recognise
from fastdarts.interop.tree import bare, only_torch_layers, signature
from fastdarts.kernels.graph import Candidate
from fastdarts.module_hooks import has_hooks

Own = dict[tuple[Any, ...], tuple[Candidate, int]]
Layout = FusableCandidate | Preprocess | Unknown


@dataclass(kw_only=True)
class Candidates:
    """Layouts and layers of a module's candidates, in order.

    own      modules without layers, by signature: the codebase's own Identity or Zero
    tried    signatures of the converted network's candidates, and keys of their forwards' dependencies
    searched only what a search network has is recognised
    """

    own: Own = field(default_factory=dict)
    tried: frozenset[Any] = frozenset()
    layouts: list[Any] = field(default_factory=list)
    found: list[Layers | None] = field(default_factory=list)
    searched: ClassVar[bool] = True

    def candidates(self, module: nn.Module) -> list[nn.Module]:
        """Return the candidates. Raises KeyError if there are none."""
        raise NotImplementedError

    def update(self, module: nn.Module) -> list[Layers | None]:
        """Return the candidates' current layers, recognising changed ones again. Raises KeyError as `candidates`.

        Results for a replica of DataParallel, one of several threads, are not stored.
        """
        candidates = self.candidates(module)
        as_many = len(candidates) == len(self.found)
        if as_many and all(f is None or f.same(c) for f, c in zip(self.found, candidates, strict=True)):
            return self.found
        layouts, found = self.recognised(candidates)
        if not getattr(module, "_is_replica", False):
            self.layouts, self.found = layouts, found
        return found

    def recognised(self, candidates: list[nn.Module]) -> tuple[list[Layout], list[Layers | None]]:
        """Return the candidates' layouts, if they are of verified kinds, and their layers."""
        found = [described(c, self.own, self.searched) for c in candidates]
        for i, c in enumerate(candidates):
            layers = found[i][1]
            if layers is not None and not only_torch_layers(c) and (signature(c), layers.key) not in self.tried:
                found[i] = Unknown("its kind was not verified"), None
        return [layout for layout, _ in found], [layers for _, layers in found]


def described(candidate: nn.Module, own: Own, searched: bool = True) -> tuple[Layout, Layers | None]:
    """Recognise a candidate and its layers, if it can be fused."""
    layout = proposed(candidate, own, searched)
    if isinstance(layout, Unknown):
        return layout, None
    try:
        return layout, Layers.of(candidate, layout)
    except Unwatched as error:
        return Unknown(str(error)), None


def proposed(candidate: nn.Module, own: Own, searched: bool = True) -> Layout:
    """Recognise a candidate by its layers, or, without layers, by the verified result of its kind."""
    layer = bare(candidate)
    if layer is not None and (known := own.get(signature(layer))) is not None:
        return FusableCandidate(*known, 0)
    found = recognise(candidate)
    return as_searched(found) if searched else found


def fits(candidate: nn.Module, layout: Layout, found: Layers | None) -> bool:
    """Return whether a candidate is fused in this call."""
    if isinstance(layout, Unknown) or found is None or has_hooks(candidate) or found.tree.has_hooks():
        return False
    if not found.as_tried(candidate):
        return False
    return not found.drops()
