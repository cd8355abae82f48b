"""Recognise the modules of another DARTS codebase by their layers, whatever their classes and attributes are called.

Notation: C channels that pass through a candidate, D channels that come out.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from fastdarts.kernels.graph import Candidate

Path = tuple[str, ...]  # names of children, from a candidate down to a layer
TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout2d)
LETTERS = {nn.Conv2d: "c", nn.BatchNorm2d: "b", nn.ReLU: "r", nn.MaxPool2d: "m", nn.AvgPool2d: "a"}
_TWICE = {3: Candidate.SEP_CONV_3, 5: Candidate.SEP_CONV_5}
_ONCE = {3: Candidate.DIL_CONV_3, 5: Candidate.DIL_CONV_5}
_DENSE = {1: Candidate.CONV_1, 3: Candidate.CONV_3}


class FusableCandidate(NamedTuple):
    """A candidate that can be fused, and the locations of its layers.

    channels  that pass through it; 0: any
    dropouts  that follow it: while one is active, the candidate runs its own forward
    """

    code: Candidate
    stride: int
    channels: int
    convolutions: tuple[Path, ...] = ()
    norms: tuple[Path, ...] = ()
    dropouts: tuple[Path, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> "FusableCandidate":
        return self  # no part of it changes


class Preprocess(NamedTuple):
    """A layer before a cell's edges, as ops.relu_conv_bn computes it: ReLU, one or two 1x1 convolutions, BatchNorm."""

    convolutions: tuple[Path, ...]
    norm: Path


class Unknown(NamedTuple):
    """A module that is not recognised, and why."""

    why: str


def layer_at(module: Any, path: Path) -> Any:
    """Return the layer at `path` in a module. Raises KeyError if it no longer exists."""
    for name in path:
        module = module._modules[name]
    return module


def letter_of(layer: nn.Module) -> str | None:
    """Return the kind of a layer; None for one that no candidate has."""
    return next((letter for kind, letter in LETTERS.items() if isinstance(layer, kind)), None)


def layers(module: nn.Module, path: Path = ()) -> Iterator[tuple[Path, nn.Module]]:
    """Yield the layers of a module in the order of registration, which is normally that of their use."""
    if not module._modules:
        yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from layers(child, (*path, name))


def recognise(module: nn.Module) -> FusableCandidate | Preprocess | Unknown:
    """Recognise a candidate or a preprocess layer whose channels change; else say why not. interop.probe verifies it.

    A module without layers and parameters (a codebase's own Identity or Zero) is none of these; the probe identifies it.
    """
    found = list(layers(module))
    if module._modules and (module._parameters or module._buffers):
        return Unknown("it has parameters outside its layers")
    dropouts = tuple(path for path, layer in found if isinstance(layer, nn.Dropout | nn.Dropout2d))
    known = [(path, layer, letter_of(layer)) for path, layer in found if not isinstance(layer, TRANSPARENT)]
    for _, layer, letter in known:
        if letter is None:
            return Unknown(f"{type(layer).__name__} is not a layer of a known candidate")
        if why := _unusual(layer):
            return Unknown(why)
    order = "".join(letter or "" for *_, letter in known)
    rest = *(tuple(path for path, _, letter in known if letter == kind) for kind in "cb"), dropouts
    convolutions = [layer for _, layer, _ in known if isinstance(layer, nn.Conv2d)]
    if not known:
        return FusableCandidate(Candidate.SKIP, 1, 0, *rest)
    if order in ("mb", "ab", "a"):
        return _pool(order, known[0][1], known[-1][1], rest)
    if order in ("rccb", "rccbrccb"):
        first = convolutions[0]
        if order == "rccb" and all(c.kernel_size == (1, 1) and c.stride == (2, 2) for c in convolutions):
            return _reduction(convolutions, rest)
        return _separable(convolutions, first.stride[0], rest)
    if order == "rcb":
        return _dense(convolutions[0], rest)
    return Unknown("its layers are in an unknown order")


def _pool(order: str, pool: Any, norm: Any, rest: tuple) -> FusableCandidate | Unknown:
    kernel, stride, padding = (_pair(getattr(pool, name)) for name in ("kernel_size", "stride", "padding"))
    usual = kernel == (3, 3) and padding == (1, 1) and stride in ((1, 1), (2, 2)) and not pool.ceil_mode
    if order[0] == "m" and not (usual and _pair(pool.dilation) == (1, 1)):
        return Unknown("its max-pooling is not 3x3 with padding 1")
    if order[0] == "a" and not (usual and not pool.count_include_pad and pool.divisor_override is None):
        return Unknown("its average pooling is not 3x3 with padding 1 excluded from the count")
    code = {"mb": Candidate.MAX_POOL_3, "ab": Candidate.AVG_POOL_3, "a": Candidate.PLAIN_AVG_POOL_3}[order]
    if order == "a" and stride != (1, 1):
        return Unknown("average pooling without BatchNorm is fused at stride 1 only")
    return FusableCandidate(code, stride[0], 0 if order == "a" else _features(norm), *rest)


def _separable(convolutions: list[nn.Conv2d], stride: int, rest: tuple) -> FusableCandidate | Unknown:
    C, kernel = convolutions[0].weight.shape[0], convolutions[0].kernel_size[0]
    dilation = 1 if len(convolutions) == 4 else 2
    for i, (depth, point) in enumerate(zip(convolutions[::2], convolutions[1::2], strict=True)):
        s, p = stride if i == 0 else 1, dilation * (kernel // 2)
        expected = (C, C, (kernel, kernel), (s, s), (p, p), (dilation, dilation), C)
        if _shape(depth) != expected or kernel not in _TWICE:
            return Unknown("its depthwise convolution differs from DARTS'")
        if _shape(point) != (C, C, (1, 1), (1, 1), (0, 0), (1, 1), 1):
            return Unknown("its 1x1 convolution differs from DARTS'")
    return FusableCandidate((_TWICE if dilation == 1 else _ONCE)[kernel], stride, C, *rest)


def _dense(conv: nn.Conv2d, rest: tuple) -> FusableCandidate | Preprocess | Unknown:
    (D, C), kernel = conv.weight.shape[:2], conv.kernel_size[0]
    expected = (C, D, (kernel, kernel), (1, 1), (kernel // 2, kernel // 2), (1, 1), 1)
    if _shape(conv) != expected or kernel not in _DENSE:
        return Unknown("its convolution is neither 1x1 nor 3x3 of stride 1")
    if C == D:
        return FusableCandidate(_DENSE[kernel], 1, C, *rest)
    return Preprocess(rest[0], rest[1][0]) if kernel == 1 else Unknown("it changes the number of channels")


def _reduction(convolutions: list[nn.Conv2d], rest: tuple) -> FusableCandidate | Preprocess | Unknown:
    half, C = convolutions[0].weight.shape[:2]
    if any(_shape(c) != (C, half, (1, 1), (2, 2), (0, 0), (1, 1), 1) for c in convolutions):
        return Unknown("its two convolutions do not produce half of the channels each")
    return FusableCandidate(Candidate.SKIP, 2, C, *rest) if 2 * half == C else Preprocess(rest[0], rest[1][0])


def as_preprocess(found: FusableCandidate | Preprocess | Unknown) -> Preprocess | None:
    """Return a preprocess layer, including one that keeps the number of channels."""
    if isinstance(found, FusableCandidate) and (
        found.code == Candidate.CONV_1 or (found.code == Candidate.SKIP and found.stride == 2)
    ):
        return Preprocess(found.convolutions, found.norms[0])
    return found if isinstance(found, Preprocess) else None


def _features(norm: nn.BatchNorm2d) -> int:
    return norm.num_features if norm.running_mean is None else len(norm.running_mean)


def _unusual(layer: nn.Module) -> str | None:
    """Return why a layer of a known kind differs from those of a search, as a sentence, or None."""
    if isinstance(layer, nn.Conv2d) and (layer.bias is not None or layer.padding_mode != "zeros"):
        return "its convolution has a bias" if layer.bias is not None else f"its padding is {layer.padding_mode}"
    if isinstance(layer, nn.BatchNorm2d) and (layer.affine or layer.weight is not None or layer.momentum is None):
        return (
            "its BatchNorm has affine parameters" if layer.momentum is not None else "its BatchNorm averages over all batches"
        )
    return None


def _shape(conv: nn.Conv2d) -> tuple[Any, ...]:
    """Return the shape from its weight, which may have been replaced by a wider one."""
    D, C, *kernel = conv.weight.shape
    return C * conv.groups, D, tuple(kernel), conv.stride, conv.padding, conv.dilation, conv.groups


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
