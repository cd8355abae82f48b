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
_TWICE = {3: Candidate.SEP_CONV_3, 5: Candidate.SEP_CONV_5, 7: Candidate.SEP_CONV_7}
_ONCE = {3: Candidate.DIL_CONV_3, 5: Candidate.DIL_CONV_5}
_POOLS = {
    "mb": Candidate.MAX_POOL_3,
    "ab": Candidate.AVG_POOL_3,
    "m": Candidate.PLAIN_MAX_POOL_3,
    "a": Candidate.PLAIN_AVG_POOL_3,
}
_DENSE = {1: Candidate.CONV_1, 3: Candidate.CONV_3}


class FusableCandidate(NamedTuple):
    """A candidate that can be fused, and the locations of its layers.

    channels  that pass through it; 0: any
    dropouts  that follow it: while one is active, the candidate runs its own forward
    affine    whether its BatchNorms have affine parameters
    """

    code: Candidate
    stride: int
    channels: int
    convolutions: tuple[Path, ...] = ()
    norms: tuple[Path, ...] = ()
    dropouts: tuple[Path, ...] = ()
    affine: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "FusableCandidate":
        return self  # no part of it changes


class Preprocess(NamedTuple):
    """A layer before a cell's edges, as ops.relu_conv_bn computes it: ReLU, one or two 1x1 convolutions, BatchNorm.

    dropouts, affine  as of a FusableCandidate
    """

    convolutions: tuple[Path, ...]
    norms: tuple[Path]
    dropouts: tuple[Path, ...] = ()
    affine: bool = False


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
    scaled = {layer.affine for _, layer, letter in known if letter == "b"}
    if len(scaled) > 1:
        return Unknown("some of its BatchNorms have affine parameters, others have none")
    paths = [tuple(path for path, _, letter in known if letter == kind) for kind in "cb"]
    rest: tuple[Any, ...] = *paths, dropouts, True in scaled
    convolutions = [layer for _, layer, _ in known if isinstance(layer, nn.Conv2d)]
    if not known:
        return FusableCandidate(Candidate.SKIP, 1, 0, *rest)
    if order in ("mb", "ab", "m", "a"):
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
    return FusableCandidate(_POOLS[order], stride[0], _features(norm) if order[1:] else 0, *rest)


def _separable(convolutions: list[nn.Conv2d], stride: int, rest: tuple) -> FusableCandidate | Unknown:
    C, kernel = convolutions[0].weight.shape[0], convolutions[0].kernel_size[0]
    dilation, table = (1, _TWICE) if len(convolutions) == 4 else (2, _ONCE)
    for i, (depth, point) in enumerate(zip(convolutions[::2], convolutions[1::2], strict=True)):
        s, p = stride if i == 0 else 1, dilation * (kernel // 2)
        expected = (C, C, (kernel, kernel), (s, s), (p, p), (dilation, dilation), C)
        if _shape(depth) != expected or kernel not in table:
            return Unknown("its depthwise convolution differs from DARTS'")
        if _shape(point) != (C, C, (1, 1), (1, 1), (0, 0), (1, 1), 1):
            return Unknown("its 1x1 convolution differs from DARTS'")
    return FusableCandidate(table[kernel], stride, C, *rest)


def _dense(conv: nn.Conv2d, rest: tuple) -> FusableCandidate | Preprocess | Unknown:
    (D, C), kernel = conv.weight.shape[:2], conv.kernel_size[0]
    expected = (C, D, (kernel, kernel), (1, 1), (kernel // 2, kernel // 2), (1, 1), 1)
    if _shape(conv) != expected or kernel not in _DENSE:
        return Unknown("its convolution is neither 1x1 nor 3x3 of stride 1")
    if C == D:
        return FusableCandidate(_DENSE[kernel], 1, C, *rest)
    return Preprocess(*rest) if kernel == 1 else Unknown("it changes the number of channels")


def _reduction(convolutions: list[nn.Conv2d], rest: tuple) -> FusableCandidate | Preprocess | Unknown:
    half, C = convolutions[0].weight.shape[:2]
    if any(_shape(c) != (C, half, (1, 1), (2, 2), (0, 0), (1, 1), 1) for c in convolutions):
        return Unknown("its two convolutions do not produce half of the channels each")
    return FusableCandidate(Candidate.SKIP, 2, C, *rest) if 2 * half == C else Preprocess(*rest)


def as_preprocess(found: FusableCandidate | Preprocess | Unknown) -> Preprocess | None:
    """Return a preprocess layer, including one that keeps the number of channels."""
    if isinstance(found, FusableCandidate) and (
        found.code == Candidate.CONV_1 or (found.code == Candidate.SKIP and found.stride == 2)
    ):
        return Preprocess(found.convolutions, (found.norms[0],), found.dropouts, found.affine)
    return found if isinstance(found, Preprocess) else None


def as_searched(found: FusableCandidate | Preprocess | Unknown) -> FusableCandidate | Unknown:
    """Return a candidate that the kernels of every device compute, as search networks have them, or why they do not."""
    if not isinstance(found, FusableCandidate):
        return Unknown("it changes the number of channels") if isinstance(found, Preprocess) else found
    if found.affine:
        return Unknown("its BatchNorm has affine parameters")
    if found.code in (Candidate.PLAIN_MAX_POOL_3, Candidate.SEP_CONV_7):
        what = "a 7x7 convolution" if found.norms else "max-pooling without BatchNorm"
        return Unknown(f"{what} is fused in discrete cells only")
    if found.code == Candidate.PLAIN_AVG_POOL_3 and found.stride == 2:
        return Unknown("average pooling without BatchNorm is fused at stride 1 only")
    return found


def _features(norm: nn.BatchNorm2d) -> int:
    return norm.num_features if norm.running_mean is None else len(norm.running_mean)


def _unusual(layer: nn.Module) -> str | None:
    """Return why a layer of a known kind differs from those of a search, as a sentence, or None."""
    if isinstance(layer, nn.Conv2d) and (layer.bias is not None or layer.padding_mode != "zeros"):
        return "its convolution has a bias" if layer.bias is not None else f"its padding is {layer.padding_mode}"
    if isinstance(layer, nn.BatchNorm2d) and layer.momentum is None:
        return "its BatchNorm averages over all batches"
    if isinstance(layer, nn.BatchNorm2d) and {p is not None for p in (layer.weight, layer.bias)} != {layer.affine}:
        return "its BatchNorm has affine parameters that it does not declare, or declares those that it lacks"
    return None


def _shape(conv: nn.Conv2d) -> tuple[Any, ...]:
    """Return the shape from its weight, which may have been replaced by a wider one."""
    D, C, *kernel = conv.weight.shape
    return C * conv.groups, D, tuple(kernel), conv.stride, conv.padding, conv.dilation, conv.groups


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
