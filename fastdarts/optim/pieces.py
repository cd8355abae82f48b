"""Updates in pieces, cut where tensors are averaged over the ranks."""

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.protocols import Pieces, Reduce, T, Update, Updates


def take_update(updates: Updates, update: Update, step: Tensor, train: Batch, val: Batch | None) -> Tensor:
    """Run one update of a step, as the stage of its name; returns its loss."""
    with updates.stage(update):
        return run_pieces(updates.pieces(update, step, train, val), updates.reduce)


def run_pieces(pieces: Pieces[T], reduce: Reduce | None) -> T:
    """Run all pieces one after the other and return the result; without `reduce` nothing is averaged between them."""
    while True:
        try:
            flat = next(pieces)
        except StopIteration as end:
            return end.value
        if reduce is not None:
            reduce(flat)


def means(tensors: list[Tensor], reduce: Reduce | None) -> Pieces[list[Tensor]]:
    """Return the tensors' means over the ranks, from one flat tensor; without `reduce`, the tensors themselves."""
    if reduce is None:
        return tensors
    flat = torch.cat([t.reshape(-1) for t in tensors])
    yield flat
    parts = flat.split([t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def average(tensors: list[Tensor], reduce: Reduce | None) -> Pieces[None]:
    """Replace the tensors by their means over the ranks, in place; without `reduce`, nothing."""
    if reduce is not None:
        averaged = yield from means(tensors, reduce)
        torch._foreach_copy_(tensors, averaged)
