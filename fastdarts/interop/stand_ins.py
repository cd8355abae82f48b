"""Run a discrete cell's own forward on stand-ins of its layers, which shows its graph and the drop-path factors that it draws.

A stand-in returns a unit vector along the channels instead of its layer's output, so that every tensor in the forward shows
which layers' outputs it sums, and with what factors. Notation: N images, L layers, T = 2 + L terms: the cell's inputs 0 and 1,
then the layers' outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastdarts.interop.tree import own_class

CONTAINERS = (nn.ModuleList, nn.ModuleDict)
SCALES = (1.0, -2.0)  # of a unit vector's two pixels: only a linear function keeps their ratio


class NotFused(ValueError):
    """A call that the class' own forward has to compute; the message says why."""


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that a cell calls: its children, and those in its lists and dictionaries, in order."""
    for child in module._modules.values():
        if isinstance(child, CONTAINERS):
            yield from layers_of(child)
        elif child is not None:
            yield child


@torch.no_grad()
def observed(
    cell: nn.Module, arguments: Sequence[Any], named: dict[str, Any], N: int, like: Tensor, identities: Sequence[int] = ()
) -> Tensor:
    """Return what each layer receives, then the states that are concatenated: (L + states, N, T), of like's dtype and device.

    arguments, named  those that follow the two inputs
    identities        numbers of layers that return their input itself, which writing to their output would change
    Random numbers are drawn as for N images. Raises NotFused unless the forward only passes on, scales each image, sums and
    concatenates.
    """
    L = sum(1 for _ in layers_of(cell))
    T = 2 + L
    unchanged = torch.eye(T, dtype=like.dtype, device=like.device)[:, None, :, None, None] * like.new_tensor(SCALES)
    units = unchanged.expand(T, N, T, 1, 2).contiguous()
    received = torch.empty_like(units[2:])
    calls: list[int] = []

    def stand_in(number: int) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            calls.append(number)
            if not _alike(x, units[0].shape, units):
                raise NotFused("its forward changes the shape or dtype of a layer's input")
            received[number].copy_(x)
            return units[2 + number]

        return forward

    own: Any = own_class(cell)
    try:
        out = own.forward(_twin(cell, map(stand_in, range(L))), units[0], units[1], *arguments, **named)
    except NotFused:
        raise
    except Exception as error:  # foreign code: whatever it raises, its own forward shall raise
        raise NotFused(f"on stand-ins of its layers its forward raises {type(error).__name__}") from error
    if sorted(calls) != list(range(L)):
        raise NotFused("its forward does not call each of its layers once")
    kept = [0, 1, *(2 + i for i in identities)]
    if not bool((units[kept] == unchanged[kept]).all()):
        raise NotFused("its forward writes to its inputs or states")
    states = out.shape[1] // T if isinstance(out, Tensor) and out.dim() == 4 else 0
    if not states or not _alike(out, (N, states * T, 1, 2), units):
        raise NotFused("its forward does not return states, concatenated along the channels")
    seen = torch.cat([received, out.reshape(N, states, T, 1, 2).transpose(0, 1)])
    first, second = seen.flatten(3).unbind(3)
    if not torch.equal(first * SCALES[1], second):
        raise NotFused("its forward is no sum of its layers' outputs")
    return first


def _alike(x: Any, shape: tuple[int, ...], like: Tensor) -> bool:
    return isinstance(x, Tensor) and x.shape == shape and x.dtype == like.dtype and x.device == like.device


def _twin(module: nn.Module, forwards: Iterator[Callable[[Tensor], Tensor]]) -> nn.Module:
    """Return a module of the same class and attributes whose layers are stand-ins with these forwards."""
    children = {
        name: child
        if child is None
        else _twin(child, forwards)
        if isinstance(child, CONTAINERS)
        else _copied(child, forward=next(forwards))
        for name, child in module._modules.items()
    }
    return _copied(module, _modules=children)


def _copied(module: nn.Module, **attributes: Any) -> nn.Module:
    own: Any = type(module)
    copied: nn.Module = object.__new__(own)
    copied.__dict__.update(module.__dict__, **attributes)
    return copied
