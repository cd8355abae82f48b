"""The memory estimate counts what a step really keeps."""

import pytest
import torch

from fastdarts.engine import meta_batch, step_bytes
from fastdarts.objectives import Classification, MaskedReconstruction
from fastdarts.ops.backend import BackendUnavailable
from fastdarts.ops.philox import Stream
from fastdarts.search import SoftmaxRelaxation
from fastdarts.spaces import S0
from fastdarts.supernet import Supernet
from tests.backends import BACKENDS, needs_native


def parts(device, backend, masked=True):
    whole = "definition" if backend == "definition" else "auto"
    with torch.device(device):
        supernet = Supernet(S0, C=8, layers=3, stem="imagenet", partial_channels=2, backend=backend)
        objective = (
            MaskedReconstruction(supernet.tap_channels, backend=whole) if masked else Classification(supernet, num_classes=3)
        )
    return supernet, objective, SoftmaxRelaxation(S0, edge_normalization=True, device=device)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [True, False])
def test_estimate_is_what_autograd_keeps(masked, backend):
    """Counted on storages of a real step: saved tensors (weights aside), and three copies of the weights."""
    supernet, objective, relaxation = parts("cpu", backend, masked)
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
    estimate = step_bytes(*parts("meta", backend, masked), meta_batch(4, 64), "cpu")
    assert abs(estimate - real) < 0.05 * real


@pytest.mark.parametrize("backend", BACKENDS)
def test_estimate_grows_with_the_batch_and_allocates_nothing(backend):
    """A batch of terabytes is only counted; the modules that are counted stay as they are."""
    supernet, objective, relaxation = parts("meta", backend)
    sizes = [step_bytes(supernet, objective, relaxation, meta_batch(n, 224), "cpu") for n in (1024, 2048, 1024)]
    weights = 12 * sum(w.numel() for m in (supernet, objective) for w in m.parameters())
    assert sizes[1] > 5e9 and abs((sizes[1] - weights) / (sizes[0] - weights) - 2) < 0.01
    assert sizes[0] == sizes[2]
    assert all(type(p) is torch.nn.Parameter and p.is_meta for m in (supernet, objective) for p in m.parameters())


@needs_native
def test_the_fused_cells_keep_less():
    fused, plain = (step_bytes(*parts("meta", backend), meta_batch(64, 224), "cpu") for backend in ("auto", "definition"))
    assert fused < plain / 2


def test_a_backend_that_cannot_serve_there_is_refused():
    with pytest.raises(BackendUnavailable, match="serves tensors on the CPU"):
        step_bytes(*parts("meta", "cpu"), meta_batch(4, 64), "cuda")
