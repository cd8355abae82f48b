"""The memory estimate counts what a step really keeps."""

import torch

from fastdarts.engine import meta_batch, step_bytes
from fastdarts.objectives import MaskedReconstruction
from fastdarts.ops.philox import Stream
from fastdarts.search import SoftmaxRelaxation
from fastdarts.spaces import S0
from fastdarts.supernet import Supernet


def parts(device):
    with torch.device(device):
        supernet = Supernet(S0, C=8, layers=3, stem="imagenet", partial_channels=2)
        objective = MaskedReconstruction(supernet.tap_channels, backend="definition")
    return supernet, objective, SoftmaxRelaxation(S0, edge_normalization=True, device=device)


def test_estimate_is_what_autograd_keeps():
    """Counted on storages of a real step: saved tensors (weights aside), and three copies of the weights."""
    supernet, objective, relaxation = parts("cpu")
    batch = meta_batch(4, 64)
    batch = type(batch)(*(torch.zeros(t.shape, dtype=t.dtype) for t in batch))
    weights = [w for m in (supernet, objective) for w in m.parameters()]
    own = {w.untyped_storage().data_ptr() for w in weights}
    kept, alive = {}, []

    def pack(t):
        alive.append(t)
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        objective(supernet, relaxation.weights(), batch, torch.zeros(1, dtype=torch.int64), Stream.TRAIN)
    real = sum(n for p, n in kept.items() if p not in own) + 3 * sum(w.numel() * w.element_size() for w in weights)
    estimate = step_bytes(*parts("meta"), meta_batch(4, 64))
    assert abs(estimate - real) < 0.05 * real


def test_estimate_grows_with_the_batch_and_allocates_nothing():
    """A batch of a terabyte is only counted."""
    supernet, objective, relaxation = parts("meta")
    small, large = (step_bytes(supernet, objective, relaxation, meta_batch(n, 224)) for n in (1024, 2048))
    weights = 12 * sum(w.numel() for m in (supernet, objective) for w in m.parameters())
    assert large > 1e10 and abs((large - weights) / (small - weights) - 2) < 0.01
