"""patch_mask by Triton on a GPU: the definition's bits, captured, compiled, registered."""

import pytest
import torch

from fastdarts.ops.patch_mask import definition, patch_mask
from tests.ops.exactness import uninitialised_memory_is_nan
from tests.ops.test_patch_mask import arguments, flat

pytestmark = pytest.mark.gpu
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [(5, 224, 224, 8, 392), (64, 32, 32, 4, 48), (3, 15, 35, 5, 0), (2, 9, 3, 1, 27), (2, 256, 256, 1, 30000)]


def on_gpu(size: tuple[int, ...], dtype: torch.dtype) -> tuple[list, dict]:
    tensors, given = arguments(*size, dtype)
    return [t.cuda() for t in tensors], given


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_result_is_bitwise_cpu_definition(size: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors, given = arguments(*size, dtype)
    with uninitialised_memory_is_nan():
        ours = patch_mask(*(t.cuda() for t in tensors), **given, backend="triton")
    theirs = patch_mask(*tensors, **given, backend="definition")
    for mine, want in zip(ours, theirs, strict=True):
        assert mine.stride() == want.stride()
        assert torch.equal(mine.cpu(), want)


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck_and_gradient_of_fill(dtype: torch.dtype) -> None:
    tensors, given = on_gpu((3, 8, 12, 4, 2), dtype)
    torch.library.opcheck(torch.ops.fastdarts.patch_mask.default, flat(tensors, given))
    fill = tensors[4].requires_grad_()
    x, mask = patch_mask(*tensors, **given, backend="triton")
    (grad,) = torch.autograd.grad(x, fill, torch.ones_like(x))
    assert torch.equal(grad, torch.full_like(fill, 16 * int(mask.sum())))


def test_captured_call_follows_step() -> None:
    tensors, given = on_gpu((4, 32, 32, 4, 9), torch.float32)
    patch_mask(*tensors, **given, backend="triton")  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x, mask = patch_mask(*tensors, **given, backend="triton")
    for _ in range(2):
        tensors[2] += 1
        graph.replay()
        want = patch_mask(*tensors, **given, backend="definition")
        assert torch.equal(x, want[0]) and torch.equal(mask, want[1])


def test_compiles_without_graph_break() -> None:
    tensors, given = on_gpu((3, 8, 12, 4, 2), torch.float32)
    compiled = torch.compile(lambda *t: patch_mask(*t, **given, backend="triton"), fullgraph=True)
    want = definition(*flat(tensors, given))
    assert all(torch.equal(a, b) for a, b in zip(compiled(*tensors), want, strict=True))
