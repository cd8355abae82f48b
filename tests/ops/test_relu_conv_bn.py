"""relu_conv_bn: by hand, against formulas, each backend as exact as eager, registration, invalid arguments."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdarts.ops.backend import BackendUnavailable
from fastdarts.ops.relu_conv_bn import relu_conv_bn
from tests.ops.exactness import Named, assert_exact, double, gradients, on_threads, uninitialised_memory_is_nan
from tests.support import naive
from tests.support.backends import BACKENDS, needs_native

pytestmark = pytest.mark.usefixtures("one_thread")
FLOATS = [torch.float32, torch.float64]
OP = torch.ops.fastdarts.relu_conv_bn


@dataclass(frozen=True)
class LayerCall:
    """One call with random tensors.

    halves  FactorizedReduce
    affine  the BatchNorm has affine parameters, one scale is exactly 0
    shift   a mean that is so much larger than the deviation of 1
    """

    N: int = 3
    C: int = 8
    D: int = 4
    H: int = 6
    W: int = 8
    halves: bool = False
    training: bool = True
    running: bool = True
    channels_last: bool = True
    shift: float = 0.0
    affine: bool = False

    def tensors(self, dtype: torch.dtype = torch.float32) -> Named:
        g = torch.Generator().manual_seed(self.C + self.D)
        n = 1 + self.halves
        x = torch.randn(self.N, self.C, self.H, self.W, generator=g, dtype=torch.float64) + self.shift
        x[:, :, : self.H // 2, : self.W // 2] = x[0, :, :1, :1].clone()  # a masked region
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        named = {"x": x.contiguous(memory_format=layout)}
        for i in range(n):
            kernel = torch.randn(self.D // n, self.C, 1, 1, generator=g, dtype=torch.float64) * self.C**-0.5
            named[f"w{i}"] = torch.where(torch.rand(kernel.shape, generator=g) < 0.1, 0.0, kernel)
        if self.affine:
            named |= {name: torch.randn(self.D, generator=g, dtype=torch.float64) for name in ("scale", "shift")}
            named["scale"][0] = 0
        return {name: t.to(dtype).requires_grad_() for name, t in named.items()}

    def parts(self, named: Named) -> tuple[Tensor, list[Tensor], Tensor | None, Tensor | None]:
        """x, the weights, scale and shift, without history."""
        named = {name: t.detach() for name, t in named.items()}
        return named["x"], [t for name, t in named.items() if name[0] == "w"], named.get("scale"), named.get("shift")

    def constants(self, dtype: torch.dtype = torch.float32) -> tuple[tuple[Tensor, Tensor] | None, Tensor]:
        """Running statistics and the output's gradient."""
        g = torch.Generator().manual_seed(1)
        mean, var = torch.randn(self.D, generator=g), 0.5 + torch.rand(self.D, generator=g)
        s = 1 + self.halves
        grad = torch.randn(self.N, self.D, self.H // s, self.W // s, generator=g, dtype=torch.float64)
        return (mean.to(dtype), var.to(dtype)) if self.running else None, grad.to(dtype)

    def forward(self, named: Named, running: tuple[Tensor, Tensor] | None, backend: str) -> Tensor:
        weights = [t for name, t in named.items() if name.startswith("w")]
        affine = (named["scale"], named["shift"]) if self.affine else None
        settings = {"training": self.training, "momentum": 0.2, "eps": 1e-4, "backend": backend}
        return relu_conv_bn(named["x"], weights, running, affine=affine, **settings)

    def run(self, named: Named, backend: str, dtype: torch.dtype) -> Named:
        running, grad = self.constants(dtype)
        out = self.forward(named, running, backend)
        moved = {} if running is None else {"mean": running[0], "var": running[1]}
        return {"out": out.detach()} | moved | gradients(out, grad, named)


@needs_native
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(
    ("training", "running", "affine"),
    [(True, True, False), (True, False, False), (False, True, False), (True, True, True), (False, True, True)],
)
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"N": 65, "C": 4, "D": 4, "H": 4, "W": 4},
        {"N": 1, "C": 48, "D": 16, "H": 16, "W": 10, "channels_last": False},
        {"N": 2, "C": 20, "D": 12, "H": 4, "W": 56},
        {"N": 2, "C": 64, "D": 24, "H": 56, "W": 4},
        {"N": 2, "C": 16, "D": 64, "H": 56, "W": 56},
        {"N": 5, "C": 3, "D": 6, "H": 8, "W": 6, "channels_last": False},
        {"N": 3, "C": 256, "D": 64, "H": 4, "W": 6},
        {"C": 12, "D": 8, "shift": 1e3},  # in float64 the definition is no better there
    ],
    ids=str,
)
def test_as_exact_as_eager(
    sizes: dict[str, Any], training: bool, running: bool, affine: bool, halves: bool, dtype: torch.dtype
) -> None:
    call = LayerCall(**sizes, halves=halves, training=training, running=running, affine=affine)
    if call.shift:
        dtype = torch.float32
    named = call.tensors(dtype)
    with uninitialised_memory_is_nan():
        got = call.run(named, "cpu", dtype)
    if dtype == torch.float64:
        assert_exact(got, [], call.run(named, "definition", dtype), dtype)
        return
    layouts = (replace(call, channels_last=flag) for flag in (False, True))
    eager = [c.run(c.tensors(dtype), "definition", dtype) for c in layouts]
    assert_exact(got, eager, call.run(double(named), "definition", torch.float64), dtype)


@needs_native
def test_odd_sizes_without_halving(isa: str) -> None:
    """By each instruction set."""
    for N, C, D, H, W in ((2, 5, 7, 3, 5), (3, 1, 1, 1, 1), (1, 2, 3, 1, 9), (3, 20, 12, 7, 6)):
        call = LayerCall(N, C, D, H, W)
        named = call.tensors(torch.float64)
        assert_exact(call.run(named, "cpu", torch.float64), [], call.run(named, "definition", torch.float64), torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("halves", [False, True])
def test_definition_follows_formulas(halves: bool, training: bool, backend: str) -> None:
    """tests/support/naive.py: output, gradients, running statistics."""
    call = LayerCall(halves=halves, training=training)
    named = call.tensors(torch.float64)
    running, grad = call.constants(torch.float64)
    names = ["p.conv_1.weight", "p.conv_2.weight"] if halves else ["p.op.1.weight"]
    norm = "p.bn" if halves else "p.op.2"
    x, *weights = named.values()
    run = naive.Run(dict(zip(names, weights, strict=True)), {norm: (running[0].clone(), running[1].clone())}, train=training)
    want = run.factorized_reduce(x, "p") if halves else run.relu_conv_bn(x, "p")
    got = relu_conv_bn(x, weights, running, training=training, backend=backend)  # momentum and eps as there
    naive.assert_close(got, want, "out")
    naive.assert_all_close(gradients(got, grad, named), gradients(want, grad, named))
    for buffer, moved in zip(running, run.moved[norm] if training else call.constants(torch.float64)[0], strict=True):
        naive.assert_close(buffer, moved, "running")


@pytest.mark.parametrize("backend", BACKENDS)
def test_halving_matches_hand_computation(backend: str) -> None:
    """The first half of the outputs reads even rows and columns, the second the odd ones; the ReLU comes first."""
    x = torch.arange(16, dtype=torch.float64).reshape(1, 1, 4, 4) - 8
    still = torch.zeros(2, dtype=torch.float64), torch.full((2,), 1 - 1e-5, dtype=torch.float64)
    kernels = [torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (1, 10)]
    out = relu_conv_bn(x, kernels, still, training=False, backend=backend)
    naive.assert_close(out, torch.tensor([[[[0, 0], [0, 2]], [[0, 0], [50, 70]]]], dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("halves", [False, True])
def test_gradcheck_and_gradgradcheck(halves: bool, training: bool, backend: str) -> None:
    call = LayerCall(2, 3, 2, 4, 4, halves=halves, training=training)
    named = call.tensors(torch.float64)
    running, _ = call.constants(torch.float64)

    def forward(*tensors: Tensor) -> Tensor:
        return call.forward(dict(zip(named, tensors, strict=True)), (running[0].clone(), running[1].clone()), backend)

    assert torch.autograd.gradcheck(forward, tuple(named.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(forward, tuple(named.values()), fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", [{"x"}, {"w0"}, {"w1"}, {"x", "w1"}])
def test_requested_gradients_only_in_any_layout(wanted: set[str], backend: str) -> None:
    call = LayerCall(halves=True)
    named = call.tensors()
    everything = call.run(named, backend, torch.float32)
    for name, tensor in named.items():
        tensor.requires_grad_(name in wanted)
    running, grad = call.constants()
    out = call.forward(named, running, backend)
    asked = {name: named[name] for name in sorted(wanted)}
    got = torch.autograd.grad(out, list(asked.values()), grad, retain_graph=True)
    assert all(torch.equal(g, everything[f"d {name}"]) for name, g in zip(asked, got, strict=True))
    rows = grad[:1, :, :, :1].expand(grad.shape)
    ours, same = (torch.autograd.grad(out, list(asked.values()), g, retain_graph=True) for g in (rows, rows.contiguous()))
    for a, b in zip(ours, same, strict=True):
        torch.testing.assert_close(a, b, rtol=0 if backend == "cpu" else 1e-3, atol=0 if backend == "cpu" else 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_running_statistics_update_once_per_training_forward(backend: str) -> None:
    call = LayerCall()
    named = call.tensors(torch.float64)
    running, _ = call.constants(torch.float64)
    y = naive.pointwise(naive.relu(named["x"]), named["w0"]).detach()
    want = running[0].clone(), running[1].clone()
    for _ in range(2):
        call.forward(named, running, backend)
        moved = y.mean((0, 2, 3)), y.var((0, 2, 3))
        want = tuple(0.8 * old + 0.2 * new for old, new in zip(want, moved, strict=True))
        for buffer, w in zip(running, want, strict=True):
            naive.assert_close(buffer, w)
    with torch.no_grad():
        replace(call, training=False).forward(named, running, backend)
    for buffer, w in zip(running, want, strict=True):
        naive.assert_close(buffer, w)


@needs_native
@pytest.mark.parametrize("halves", [False, True])
def test_bitwise_identical_for_any_number_of_threads(halves: bool) -> None:
    call = LayerCall(5, 48, 16, 12, 10, halves=halves, affine=True)
    named = call.tensors()
    first, *others = on_threads(lambda: call.run(named, "cpu", torch.float32))
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


@needs_native
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "call",
    [
        LayerCall(),
        LayerCall(halves=True, training=False),
        LayerCall(2, 5, 3, 3, 5, affine=True),
        LayerCall(2, 3, 2, 2, 2, halves=True),
    ],
    ids=str,
)
def test_opcheck(call: LayerCall, dtype: torch.dtype) -> None:
    named = {name: t.detach() for name, t in call.tensors(dtype).items()}
    x, weights = named["x"].contiguous(memory_format=torch.channels_last), [named[n] for n in named if n.startswith("w")]
    running = ([], []) if call.training else [[t] for t in call.constants(dtype)[0]]
    affine = [[named[name]] if call.affine else [] for name in ("scale", "shift")]
    args = [x], weights, [len(weights)], *affine, *running, 1e-5, 0
    torch.library.opcheck(OP.default, args)
    (out,), normalised, (statistics,) = OP(*args)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert statistics.dtype == torch.float64
    for needs in ((True, True), (False, True), (True, False), (False, False)):
        given = [torch.ones_like(out)], [x], weights, [len(weights)], affine[0], normalised or [out], [statistics]
        args = *given, 1e-5, call.training, [needs[0]], needs[1], 0
        torch.library.opcheck(torch.ops.fastdarts.relu_conv_bn_backward.default, args)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_graph_break(backend: str) -> None:
    call = LayerCall(halves=True)
    named = call.tensors()

    def forward(x: Tensor, w0: Tensor, w1: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return call.forward({"x": x, "w0": w0, "w1": w1}, (mean, var), backend)

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager", dynamic=False)
    results = []
    for function in (compiled, forward):
        running, grad = call.constants()
        out = function(*named.values(), *running)
        results.append([out, *gradients(out, grad, named).values(), *running])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_matches_definition() -> None:
    call = LayerCall()
    named = call.tensors()
    with torch.autocast("cpu", torch.bfloat16):
        assert call.forward(named, None, "auto").dtype == torch.bfloat16
        with pytest.raises(BackendUnavailable, match="not for bfloat16"):
            call.forward(named, None, "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": lambda t: t[0]}, r"x must be floating point \(N, C, H, W\)"),
        ({"x": lambda t: t.long()}, "x must be floating point"),
        ({"x": lambda t: t[:0]}, "not empty"),
        ({"x": lambda t: t[:, :, :5]}, "sides must be even, got 5 x 8"),
        ({"x": lambda t: t[:, :7]}, r"weights must be \(D, 7, 1, 1\)"),
        ({"x": lambda t: t.double()}, "weights must be float64 on cpu, as the input is, got float32"),
        ({"weights": lambda w: []}, "one convolution, or two"),
        ({"weights": lambda w: [*w, w[0]]}, "got 3"),
        ({"weights": lambda w: [w[0], w[1][:1]]}, "equal in D"),
        ({"weights": lambda w: [w[0][..., 0], w[1]]}, r"\(D, 8, 1, 1\)"),
        ({"weights": lambda w: [w[0], w[1].to("meta")]}, "got float32 on meta"),
        ({"running": lambda r: (r[0][:1], r[1])}, r"running mean must be torch.float32 \(4,\)"),
        ({"running": lambda r: (r[0], r[1].half())}, "running variance must be"),
        ({"affine": lambda a: (torch.ones(3), torch.ones(4))}, r"scale must be \(4,\), got \(3,\)"),
        ({"affine": lambda a: (torch.ones(4), torch.ones(4).double())}, "shift must be float32 on cpu"),
        ({"momentum": lambda m: -0.1}, "momentum"),
        ({"eps": lambda e: -1.0}, "eps above 0"),
        ({"backend": lambda b: "cuda9"}, "relu_conv_bn has no backend 'cuda9'; it has auto, cpu, triton, definition"),
    ],
)
def test_invalid_arguments_are_named(change: dict[str, Any], message: str, backend: str) -> None:
    call = LayerCall(halves=True)
    x, *weights = call.tensors().values()
    given = {"x": x, "weights": weights, "running": call.constants()[0], "momentum": 0.1, "eps": 1e-5, "backend": backend}
    given["affine"] = None
    given |= {name: changed(given[name]) for name, changed in change.items()}
    with pytest.raises(ValueError, match=message):
        relu_conv_bn(given.pop("x"), given.pop("weights"), given.pop("running"), training=True, **given)


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_value_per_channel_is_rejected(backend: str) -> None:
    call = LayerCall(1, 3, 2, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value per channel when training"):
        call.run(call.tensors(), backend, torch.float32)
    replace(call, training=False).run(call.tensors(), backend, torch.float32)
