"""The definitions on a CPU stay clear of the 1x1 convolution of stride 2 in which torch writes out of bounds."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fastdarts.ops.relu_conv_bn import halving_convolution
from fastdarts.spaces.darts import S0
from fastdarts.supernet import CellWeights, Supernet
from tests.ops.cells import CellCall, dense
from tests.ops.test_relu_conv_bn import LayerCall as Layer

pytestmark = pytest.mark.usefixtures("one_thread")


class Strided(TorchDispatchMode):
    """Notes the weights of the convolutions that stride, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: set[tuple[int, ...]] = set()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func.name().startswith("aten::convolution"):
            backward = func.name() == "aten::convolution_backward"
            weight, stride = (args[2], args[4]) if backward else (args[1], args[3])
            self.count += 1
            if max(stride) > 1:
                self.kernels.add(tuple(weight.shape[2:]))
        return func(*args, **(kwargs or {}))


def test_mode_detects_strided_pointwise_convolution() -> None:
    x, weight = torch.randn(1, 8, 4, 4, requires_grad=True), torch.randn(4, 8, 1, 1)
    with Strided() as strided:
        F.conv2d(x, weight, stride=2).sum().backward()
    assert strided.kernels == {(1, 1)} and strided.count == 2


@pytest.mark.parametrize("channels_last", [True, False])
def test_definitions_use_no_strided_pointwise_convolution(channels_last: bool) -> None:
    """Forward, backward and double backward of a mixed cell with every candidate of S0, and of FactorizedReduce."""
    for call in (
        CellCall(dense(2, 2), 2, 8, 6, 4, channels_last=channels_last),
        Layer(halves=True, channels_last=channels_last),
    ):
        named = call.tensors()
        running = None if isinstance(call, Layer) else (call.constants()["mean"], call.constants()["var"])
        rest = (running, "definition") if isinstance(call, Layer) else (running, None, "definition")
        with Strided() as strided:
            out = call.forward(named, *rest)
            first = torch.autograd.grad(out.square().sum(), list(named.values()), create_graph=True)
            sum(g.square().sum() for g in first).backward()
        assert strided.count > 6 and (1, 1) not in strided.kernels


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_supernets_use_no_strided_pointwise_convolution(stem: str) -> None:
    side = 16 if stem == "cifar" else 64
    supernet = Supernet(S0, C=4, layers=3, stem=stem, backend="definition")
    weights = {kind: CellWeights(torch.rand(14, 8)) for kind in ("normal", "reduce")}
    with Strided() as strided:
        features = supernet(torch.randn(1, 3, side, side), weights)
        sum(f.square().sum() for f in features).backward()
    assert (5, 5) in strided.kernels and (1, 1) not in strided.kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("H", "W"), [(6, 8), (5, 7), (1, 9), (2, 2)])
def test_halving_equals_stride_2_convolution(H: int, W: int, layout: torch.memory_format, dtype: torch.dtype) -> None:
    """Of whole numbers, so that the order of a sum does not matter: bit for bit, gradients too."""
    for C, offset in ((8, 0), (16, min(H, W) > 1)):
        x = torch.randint(-3, 4, (2, C, H, W)).to(dtype).contiguous(memory_format=layout).requires_grad_()
        weight = torch.randint(-3, 4, (3, C, 1, 1)).to(dtype).requires_grad_()
        got, want = halving_convolution(x, weight, offset), F.conv2d(x[:, :, offset:, offset:], weight, stride=2)
        by = torch.randint(-1, 2, want.shape).to(dtype)
        assert torch.equal(got, want)
        mine, theirs = (torch.autograd.grad(y, (x, weight), by) for y in (got, want))
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


PROGRAM = """
import torch
from fastdarts.kernels.graph import Candidate
from tests.ops.cells import CellCall, one_edge
from tests.ops.test_relu_conv_bn import LayerCall as Layer

torch.set_num_threads(1)
for _ in range(2):
    for C in range(1, 10):
        for N, H, W in ((5, 8, 6), (3, 8, 8), (1, 6, 4), (2, 4, 4), (2, 14, 10)):
            layer = Layer(N, C, 2, H, W, halves=True)
            layer.run(layer.tensors(), "definition", torch.float32)
            if C % 2 == 0:
                edge = CellCall(one_edge(Candidate.SKIP, stride=2), N, C, H, W)
                edge.run(edge.tensors(), "definition", torch.float32)
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="checks glibc's heap")
def test_definition_does_not_corrupt_heap(root: Path) -> None:
    """FactorizedReduce with few channels under glibc's checks of the heap, by torch's kernels for AVX2 where it has them.

    Since glibc 2.34 the checks are in a library of their own; where that is missing, the loader says so and goes on.
    """
    checks = {"MALLOC_CHECK_": "3", "LD_PRELOAD": "libc_malloc_debug.so.0"}
    forced = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
    environment = os.environ | checks | forced | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout == "done\n", f"status {done.returncode}: {done.stderr}"
