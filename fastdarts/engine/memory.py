"""How much memory a step will take, counted on tensors without storage before anything runs."""

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.objectives import Objective
from fastdarts.ops.philox import Stream
from fastdarts.search import SoftmaxRelaxation
from fastdarts.supernet import Supernet


def meta_batch(batch_size: int, image_size: int) -> Batch:
    """A batch of that shape on the meta device."""
    with torch.device("meta"):
        return Batch(
            torch.empty(batch_size, image_size, image_size, 3, dtype=torch.uint8),
            torch.empty(batch_size, dtype=torch.int64),
            torch.empty(batch_size, dtype=torch.int64),
            torch.empty(batch_size, dtype=torch.bool),
        )


def step_bytes(supernet: Supernet, objective: Objective, relaxation: SoftmaxRelaxation, batch: Batch) -> int:
    """Bytes of one bilevel step: weights, their gradients and momentum, and what a forward keeps for its backward.

    All modules and tensors are on the meta device, so nothing is computed and nothing allocated. Short-lived tensors
    of the backward pass come on top: as a rule of thumb a tenth.
    """
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)  # so that no address is used twice
        return tensor

    alive: list[Tensor] = []
    step = torch.empty(1, dtype=torch.int64, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective(supernet, relaxation.weights(), batch, step, Stream.TRAIN)
    weights = {id(w): w for m in (supernet, objective) for w in m.parameters()}.values()
    for w in weights:  # a forward keeps weights too: they are counted once, here
        kept.pop(w.untyped_storage()._cdata, None)
    return sum(kept.values()) + 3 * sum(w.numel() * w.element_size() for w in weights)
