"""conv_bn_chain: by hand, against formulas, each backend as exact as eager, registration, invalid arguments."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdarts.ops.backend import BackendUnavailable
from fastdarts.ops.conv_bn_chain import conv_bn_chain
from tests.ops.exactness import Named, assert_exact, double, gradients, on_threads, uninitialised_memory_is_nan
from tests.support import naive
from tests.support.backends import BACKENDS, needs_native

pytestmark = pytest.mark.usefixtures("one_thread")
FLOATS = [torch.float32, torch.float64]
OP = torch.ops.fastdarts.conv_bn_chain
Running = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ChainCall:
    """One call with random tensors. D: channels of each layer. shift: a mean that much larger than the deviation of 1."""

    N: int = 3
    C: int = 3
    D: tuple[int, ...] = (6, 8, 8)
    strides: tuple[int, ...] = (2, 2, 1)
    H: int = 12
    W: int = 16
    outputs: int = 2
    training: bool = True
    running: bool = True
    channels_last: bool = True
    shift: float = 0.0

    def tensors(self, dtype: torch.dtype = torch.float32) -> Named:
        g = torch.Generator().manual_seed(sum(self.D))
        x = torch.randn(self.N, self.C, self.H, self.W, generator=g, dtype=torch.float64) + self.shift
        x[:, :, : self.H // 2, : self.W // 2] = x[0, :, :1, :1].clone()  # a masked region
        named = {"x": x.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)}
        channels = (self.C, *self.D)
        for i, D in enumerate(self.D):
            kernel = torch.randn(D, channels[i], 3, 3, generator=g, dtype=torch.float64) * (9 * channels[i]) ** -0.5
            named[f"w{i}"] = torch.where(torch.rand(kernel.shape, generator=g) < 0.1, 0.0, kernel)
        for i, D in enumerate(self.D):
            scale = torch.randn(D, generator=g, dtype=torch.float64)
            scale[0] = 0.0  # a channel that says nothing
            named |= {f"scale{i}": scale, f"shift{i}": torch.randn(D, generator=g, dtype=torch.float64)}
        return {name: t.to(dtype).requires_grad_() for name, t in named.items()}

    def buffers(self, dtype: torch.dtype = torch.float32) -> Running | None:
        g = torch.Generator().manual_seed(1)
        pairs = [(torch.randn(D, generator=g), 0.5 + torch.rand(D, generator=g)) for D in self.D]
        return [(mean.to(dtype), var.to(dtype)) for mean, var in pairs] if self.running else None

    def forward(self, named: Named, running: Running | None, backend: str, **others: Any) -> tuple[Tensor, ...]:
        layers = range(len(self.D))
        weights, norms = [named[f"w{i}"] for i in layers], [(named[f"scale{i}"], named[f"shift{i}"]) for i in layers]
        settings = {"strides": self.strides, "outputs": self.outputs, "training": self.training, "momentum": 0.2, "eps": 1e-4}
        return conv_bn_chain(named["x"], weights, norms, running, backend=backend, **settings | others)

    def grads(self, outs: tuple[Tensor, ...]) -> list[Tensor]:
        g = torch.Generator().manual_seed(2)
        return [torch.randn(out.shape, generator=g, dtype=torch.float64).to(out.dtype) for out in outs]

    def run(self, named: Named, backend: str, dtype: torch.dtype) -> Named:
        running = self.buffers(dtype)
        outs = self.forward(named, running, backend)
        moved = {f"moved{i}.{j}": b for i, pair in enumerate(running or []) for j, b in enumerate(pair)}
        one, by = _joined(outs), _joined(self.grads(outs))
        return {f"out{i}": out.detach() for i, out in enumerate(outs)} | moved | gradients(one, by, named)


def _joined(tensors: Any) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


IMAGENET = {"N": 2, "D": (24, 48, 48), "strides": (2, 2, 2), "H": 64, "W": 48}


@needs_native
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("training", "running"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        IMAGENET,
        {**IMAGENET, "D": (8, 16, 16), "N": 9, "outputs": 3, "channels_last": False},
        {"D": (48,), "strides": (1,), "H": 32, "W": 32, "outputs": 1},
        {"N": 17, "C": 1, "D": (4, 20), "strides": (1, 2), "H": 9, "W": 5, "channels_last": False},
        {"N": 1, "C": 5, "D": (7, 33), "strides": (2, 1), "H": 11, "W": 13, "outputs": 1},
        {"N": 2, "C": 16, "D": (64, 40), "strides": (1, 1), "H": 4, "W": 56},
        {"C": 4, "D": (12, 8), "strides": (2, 2), "shift": 1e3},  # in float64 the definition is no better there
    ],
    ids=str,
)
def test_as_exact_as_eager(sizes: dict[str, Any], training: bool, running: bool, dtype: torch.dtype) -> None:
    call = ChainCall(**sizes, training=training, running=running)
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
def test_odd_sizes_are_as_exact_as_eager(isa: str) -> None:
    """By each instruction set."""
    for N, C, D, strides, H, W in (
        (2, 5, (7, 3), (2, 2), 3, 5),
        (3, 1, (1,), (1,), 1, 1),
        (1, 2, (3, 9), (2, 1), 1, 9),
        (3, 20, (12, 17), (1, 2), 7, 6),
        (2, 3, (24, 48), (2, 2), 20, 36),
    ):
        call = ChainCall(N, C, D, strides, H, W, outputs=1)
        named = call.tensors(torch.float64)
        assert_exact(call.run(named, "cpu", torch.float64), [], call.run(named, "definition", torch.float64), torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_result_matches_hand_computation(backend: str) -> None:
    """Ones under a kernel of ones count pixels within the border; the ReLU is between the layers, not after the last."""
    x = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    ones, one = torch.ones(1, 1, 3, 3, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    still = (torch.zeros(1, dtype=torch.float64), torch.full((1,), 1 - 1e-5, dtype=torch.float64))
    first, last = conv_bn_chain(
        x, [ones, ones], [(one, -6 * one), (-one, one)], [still, still], strides=[1, 2], outputs=2, training=False,
        backend=backend,
    )  # fmt: skip
    naive.assert_close(first, torch.tensor([[[[-2, 0, -2], [0, 3, 0], [-2, 0, -2]]]], dtype=torch.float64))
    naive.assert_close(last, torch.full((1, 1, 2, 2), 1 - 3.0, dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck_and_gradgradcheck(training: bool, backend: str) -> None:
    call = ChainCall(2, 2, (3, 2), (2, 1), 5, 4, training=training)
    named = call.tensors(torch.float64)

    def forward(*tensors: Tensor) -> Tensor:
        return _joined(call.forward(dict(zip(named, tensors, strict=True)), call.buffers(torch.float64), backend))

    assert torch.autograd.gradcheck(forward, tuple(named.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(forward, tuple(named.values()), fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", [{"x"}, {"w0"}, {"scale1"}, {"shift2", "x", "w1"}])
def test_requested_gradients_only_in_any_layout(wanted: set[str], backend: str) -> None:
    call = ChainCall()
    named = call.tensors()
    everything = call.run(named, backend, torch.float32)
    for name, tensor in named.items():
        tensor.requires_grad_(name in wanted)
    outs = call.forward(named, call.buffers(), backend)
    asked = {name: named[name] for name in sorted(wanted)}
    got = torch.autograd.grad(outs, list(asked.values()), call.grads(outs), retain_graph=True)
    assert all(torch.equal(g, everything[f"d {name}"]) for name, g in zip(asked, got, strict=True))
    rows = [g[:1, :, :, :1].expand(g.shape) for g in call.grads(outs)]
    whole = [g.contiguous() for g in rows]
    ours, same = (torch.autograd.grad(outs, list(asked.values()), by, retain_graph=True) for by in (rows, whole))
    for a, b in zip(ours, same, strict=True):
        torch.testing.assert_close(a, b, rtol=0 if backend == "cpu" else 1e-3, atol=0 if backend == "cpu" else 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_output_has_gradients(backend: str) -> None:
    call = ChainCall()
    named = call.tensors(torch.float64)
    first, last = call.forward(named, call.buffers(torch.float64), backend)
    of_first = torch.autograd.grad(first.square().sum(), list(named.values()), allow_unused=True, materialize_grads=True)
    cut = replace(call, D=call.D[:2], strides=call.strides[:2], outputs=1)
    (again,) = cut.forward(named, cut.buffers(torch.float64), "definition")
    want = torch.autograd.grad(again.square().sum(), list(named.values()), allow_unused=True, materialize_grads=True)
    for got, w in zip(of_first, want, strict=True):
        naive.assert_close(got, w)
    assert last.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_may_be_modified_in_place(backend: str) -> None:
    call = ChainCall()
    named = call.tensors(torch.float64)
    results = []
    for change in (torch.relu_, torch.relu):
        outs = call.forward(named, call.buffers(torch.float64), backend)
        results.append(torch.autograd.grad(change(outs[-1]).sum(), list(named.values())))
    for a, b in zip(*results, strict=True):
        naive.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_running_statistics_update_once_per_training_forward(backend: str) -> None:
    call = ChainCall(D=(6,), strides=(2,), outputs=1)
    named = call.tensors(torch.float64)
    running = call.buffers(torch.float64)
    y = torch.nn.functional.conv2d(named["x"], named["w0"], stride=2, padding=1).detach()
    want = [b.clone() for b in running[0]]
    for _ in range(2):
        call.forward(named, running, backend)
        moved = y.mean((0, 2, 3)), y.var((0, 2, 3))
        want = [0.8 * old + 0.2 * new for old, new in zip(want, moved, strict=True)]
        for buffer, w in zip(running[0], want, strict=True):
            naive.assert_close(buffer, w)
    with torch.no_grad():
        replace(call, training=False).forward(named, running, backend)
    for buffer, w in zip(running[0], want, strict=True):
        naive.assert_close(buffer, w)


@needs_native
def test_bitwise_identical_for_any_number_of_threads() -> None:
    call = ChainCall(N=5, D=(24, 48, 48), strides=(2, 2, 2), H=40, W=24)
    named = call.tensors()
    first, *others = on_threads(lambda: call.run(named, "cpu", torch.float32))
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


@needs_native
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "call", [ChainCall(), ChainCall(outputs=3, training=False), ChainCall(D=(5,), strides=(1,), outputs=1)], ids=str
)
def test_opcheck(call: ChainCall, dtype: torch.dtype) -> None:
    named = {name: t.detach() for name, t in call.tensors(dtype).items()}
    x, layers = named["x"].contiguous(memory_format=torch.channels_last), range(len(call.D))
    parameters = [[named[f"{kind}{i}"] for i in layers] for kind in ("w", "scale", "shift")]
    running = ([], []) if call.training else tuple(map(list, zip(*call.buffers(dtype), strict=True)))
    args = x, *parameters, *running, list(call.strides), call.outputs, 1e-5, 0
    torch.library.opcheck(OP.default, args)
    outs, ys, statistics = OP(*args)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (*outs, *ys))
    assert statistics.dtype == torch.float64
    for needs in ((True, True), (False, True), (True, False)):
        grads = [torch.ones_like(out) for out in outs]
        given = grads, x, *parameters, ys, statistics, list(call.strides), 1e-5, call.training, *needs, 0
        torch.library.opcheck(torch.ops.fastdarts.conv_bn_chain_backward.default, given)


@needs_native
@pytest.mark.parametrize("wrong", ["norm_biases", "one norm_bias", "running_means", "running_vars", "outputs", "statistics"])
def test_registered_ops_check_bounds(wrong: str) -> None:
    """Called by themselves, without conv_bn_chain's own checks."""
    call = ChainCall(training=False)
    named = {name: t.detach() for name, t in call.tensors().items()}
    weights, scales, shifts = ([named[f"{kind}{i}"] for i in range(3)] for kind in ("w", "scale", "shift"))
    x = named["x"].contiguous(memory_format=torch.channels_last)
    means, variances = map(list, zip(*call.buffers(), strict=True))
    outs, ys, statistics = OP(x, weights, scales, shifts, means, variances, [2, 2, 1], 2, 1e-5, 0)
    short = shifts[:2] if wrong == "norm_biases" else [*shifts[:2], shifts[2][:3]] if wrong == "one norm_bias" else shifts
    means, variances = means[: 2 if wrong == "running_means" else 3], variances[: 2 if wrong == "running_vars" else 3]
    op, given = OP, (x, weights, scales, short, means, variances, [2, 2, 1], 4 if wrong == "outputs" else 2, 1e-5, 0)
    if wrong == "statistics":
        op = torch.ops.fastdarts.conv_bn_chain_backward
        given = outs, x, weights, scales, shifts, ys, statistics[:, :5], [2, 2, 1], 1e-5, False, True, True, 0
    with pytest.raises(RuntimeError, match="conv_bn_chain"):
        op(*given)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_graph_break(backend: str) -> None:
    call = ChainCall()
    named = call.tensors(torch.float64)

    def forward(tensors: Named, running: Running) -> tuple[Tensor, ...]:
        return call.forward(tensors, running, backend)

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager", dynamic=False)
    results = []
    for function in (compiled, forward):
        running = call.buffers(torch.float64)
        outs = function(named, running)
        found = gradients(_joined(outs), _joined(call.grads(outs)), named)
        results.append([*outs, *found.values(), *(b for pair in running for b in pair)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_matches_definition() -> None:
    call = ChainCall()
    named = call.tensors()
    with torch.autocast("cpu", torch.bfloat16):
        assert call.forward(named, None, "auto")[0].dtype == torch.bfloat16
        with pytest.raises(BackendUnavailable, match="not for bfloat16"):
            call.forward(named, None, "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": lambda t: t[0]}, r"x must be floating point \(N, C, H, W\)"),
        ({"x": lambda t: t.long()}, "x must be floating point"),
        ({"x": lambda t: t[:0]}, "not empty"),
        ({"x": lambda t: t[:, :2]}, r"layer 0: the weight must be \(D, 2, 3, 3\)"),
        ({"x": lambda t: t.double()}, "layer 0: the weight must be float64 on cpu, as the input is, got float32"),
        ({"w1": lambda t: t[:, :, :2]}, r"layer 1: the weight must be \(D, 6, 3, 3\), got \(8, 6, 2, 3\)"),
        ({"scale1": lambda t: t[:3]}, r"layer 1: the norm's weight must be \(8,\)"),
        ({"shift2": lambda t: t.to("meta")}, "layer 2: the norm's bias must be float32 on cpu"),
        ({"running": lambda r: [(r[0][0][:1], r[0][1]), *r[1:]]}, r"running mean must be torch.float32 \(6,\)"),
        ({"running": lambda r: r[:2]}, "every layer has a weight, a norm, a stride"),
        ({"strides": lambda s: (2, 2)}, "got 3 weights, 3 norms, 2 strides"),
        ({"strides": lambda s: (2, 3, 1)}, r"strides must be 1 or 2, got \[2, 3, 1\]"),
        ({"outputs": lambda n: 4}, "outputs = 4: of 3 layers the last 1 to 3"),
        ({"outputs": lambda n: 0}, "outputs = 0"),
        ({"momentum": lambda m: -0.1}, "momentum"),
        ({"eps": lambda e: -1.0}, "eps above 0"),
        ({"backend": lambda b: "cuda9"}, "conv_bn_chain has no backend 'cuda9'; it has auto, cpu, definition"),
    ],
)
def test_invalid_arguments_are_named(change: dict[str, Any], message: str, backend: str) -> None:
    call = ChainCall()
    named = call.tensors()
    given = {"running": call.buffers(), "strides": call.strides, "outputs": 2, "momentum": 0.1, "eps": 1e-5, "backend": backend}
    for name, changed in change.items():
        holder = named if name in named else given
        holder[name] = changed(holder[name])
    with pytest.raises(ValueError, match=message):
        call.forward(named, given.pop("running"), given.pop("backend"), **given)


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_value_per_channel_is_rejected(backend: str) -> None:
    call = ChainCall(1, 3, (2, 2), (2, 2), 4, 3)
    with pytest.raises(ValueError, match="more than 1 value per channel when training"):
        call.run(call.tensors(), backend, torch.float32)
    replace(call, training=False).run(call.tensors(), backend, torch.float32)
