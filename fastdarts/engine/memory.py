"""How much memory a step will take, counted on tensors without storage before anything runs."""

from contextlib import nullcontext
from copy import deepcopy

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fastdarts.batch import Batch
from fastdarts.objectives import Objective
from fastdarts.ops.backend import choose
from fastdarts.ops.philox import Stream
from fastdarts.search import SoftmaxRelaxation
from fastdarts.supernet import CellWeights, Supernet


def meta_batch(batch_size: int, image_size: int) -> Batch:
    """A batch of that shape on the meta device."""
    with torch.device("meta"):
        return Batch(
            torch.empty(batch_size, image_size, image_size, 3, dtype=torch.uint8),
            torch.empty(batch_size, dtype=torch.int64),
            torch.empty(batch_size, dtype=torch.int64),
            torch.empty(batch_size, dtype=torch.bool),
        )


def step_bytes(
    supernet: Supernet, objective: Objective, relaxation: SoftmaxRelaxation, batch: Batch, device: torch.device | str
) -> int:
    """Bytes of one bilevel step on `device`: weights, their gradients and momentum, and what a forward keeps for its backward.

    All modules and tensors are on the meta device, so nothing is computed and nothing allocated; the backends are those
    that would serve on `device`. Short-lived tensors of the backward pass come on top: as a rule of thumb a tenth.
    """
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)  # so that no address is used twice
        return tensor

    step, mix = torch.empty(1, dtype=torch.int64, device="meta"), relaxation.weights()
    device, dtype = torch.device(device), next(supernet.parameters()).dtype
    fused = choose("mixed_cell", supernet.backend, device, dtype) != "definition"
    mode = FakeTensorMode() if fused else nullcontext()  # of definitions plain meta tensors tell the same, and sooner
    if fused:

        def placed(tensor: Tensor) -> Tensor:
            return FakeTensor(mode, tensor.detach(), device).requires_grad_(tensor.requires_grad)

        mine = [t for module in (supernet, objective) for t in (*module.parameters(), *module.buffers())]
        supernet, objective = deepcopy((supernet, objective), {id(t): placed(t) for t in mine})
        batch, step = Batch(*map(placed, batch)), placed(step)
        mix = {kind: CellWeights(*(None if t is None else placed(t) for t in w)) for kind, w in mix.items()}
    with mode, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective(supernet, mix, batch, step, Stream.TRAIN)
    weights = {id(w): w for m in (supernet, objective) for w in m.parameters()}.values()
    for w in weights:  # a forward keeps weights too: they are counted once, here
        kept.pop(w.untyped_storage()._cdata, None)
    return sum(kept.values()) + 3 * sum(w.numel() * w.element_size() for w in weights)
