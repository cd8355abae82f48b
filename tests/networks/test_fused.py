"""Discrete cells as fused calls: the same numbers as their modules, and the modules where the kernels do not serve."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdarts.kernels import mixed_cell_launches
from fastdarts.module_hooks import SLOW
from fastdarts.networks import DiscreteNetwork, NetworkShape, architecture_of, build
from fastdarts.networks.cell import DiscreteCell
from fastdarts.networks.operations import SepConv
from fastdarts.ops import backend, mixed_cell, relu_conv_bn
from tests.ops.exactness import uninitialised_memory_is_nan
from tests.support.backends import needs_native

pytestmark = [needs_native, pytest.mark.usefixtures("one_thread")]

NB201 = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"
TRIPLES = (  # none, one or several genes a node
    "Genotype(normal=[('sep_conv_3x3', 2, 0), ('max_pool_3x3', 2, 0), ('skip_connect', 3, 1), ('dil_conv_5x5', 5, 3)], "
    "normal_concat=range(2, 6), reduce=[('sep_conv_5x5', 2, 0), ('skip_connect', 2, 1), ('avg_pool_3x3', 4, 2)], "
    "reduce_concat=range(2, 6))"
)


def network_of(architecture: str, kind: str = "cifar", dtype: torch.dtype = torch.float64) -> DiscreteNetwork:
    """3 cells of 4 channels with affine parameters, running statistics and drop path unlike the initial ones."""
    torch.manual_seed(0)
    layers = 1 if kind == "nasbench201" else 3
    shape = NetworkShape(kind, 4, layers, 5, kind != "nasbench201", auxiliary_pool="adaptive", image_size=32)
    network = build(architecture_of(architecture), shape).to(dtype)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    network.drop_path_rate.fill_(0.4)
    return network


def results(network: DiscreteNetwork, x: Tensor) -> dict[str, Tensor]:
    """Logits, gradients, running statistics and counters of a forward and a backward."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)  # drop path draws from it
    logits, auxiliary = network(x)
    (logits.square().sum() + (0 if auxiliary is None else auxiliary.sin().sum())).backward()
    found = {"logits": logits.detach(), "d x": x.grad} | {f"d {n}": p.grad for n, p in network.named_parameters()}
    return {name: t for name, t in (found | dict(network.named_buffers())).items() if t is not None}


def calls_of(monkeypatch: pytest.MonkeyPatch, backend: str = "cpu") -> list[str]:
    """Names of the fused ops that are called by a backend from now on."""
    called: list[str] = []
    for op in (mixed_cell, relu_conv_bn):
        real = op._registered

        def counted(*args: Any, real: Callable = real, name: str = op.__name__) -> Any:
            called.append(name.rpartition(".")[2])
            return real(*args)

        backends = op.backends._ops[op.__name__.rpartition(".")[2]]
        monkeypatch.setitem(backends, backend, replace(backends[backend], run=counted))
    return called


IMAGE = (3, 3, 32, 32)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("DARTS_V2", "cifar"), ("NASNet", "cifar"), ("PC_DARTS_image", "imagenet"), (TRIPLES, "cifar"), (NB201, "nasbench201")],
    ids=["darts", "nasnet", "imagenet", "triples", "nasbench201"],
)
def test_fused_cells_equal_their_modules(architecture: str, kind: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = network_of(architecture, kind).train(training)
    theirs = deepcopy(ours)
    theirs.set_backend("definition")
    x = torch.randn(IMAGE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    called = calls_of(monkeypatch)
    with uninitialised_memory_is_nan():
        got = results(ours, x)
    cells = [m for m in ours.modules() if getattr(m, "fused", None)]
    assert called.count("mixed_cell") == len(cells) and ours.computed_by("cpu") == "cells fused in C++"
    want = results(theirs, x)
    assert theirs.computed_by("cpu") == "cells in plain PyTorch" and called.count("mixed_cell") == len(cells)
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-9, atol=1e-9 * (1 + float(tensor.abs().max())), msg=name)


def test_unsupported_operations_run_in_their_cells_alone() -> None:
    network = network_of("AmoebaNet")
    assert network.computed_by("cpu") == (
        "2 of 3 cells in plain PyTorch (no kernel computes conv_7x1_1x7), the others fused in C++"
    )
    other = deepcopy(network)
    other.set_backend("definition")
    x = torch.randn(IMAGE, dtype=torch.float64)
    got, want = results(network, x), results(other, x)
    torch.testing.assert_close(got["logits"], want["logits"], rtol=1e-9, atol=1e-9)


def test_cells_too_wide_for_triton_run_their_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice alone: Triton's backend calls the registered ops, which are the C++ ones here."""
    monkeypatch.setattr(mixed_cell_launches, "WIDEST", 4)
    network = network_of("DARTS_V2")  # cells of 4, 8 and 16 channels
    x = torch.randn(IMAGE, dtype=torch.float64)
    want = results(deepcopy(network), x)
    monkeypatch.setattr(backend, "choose", lambda op, *_: "triton")
    called = calls_of(monkeypatch, "triton")
    got = results(network, x)
    assert called.count("mixed_cell") == 1 and called.count("relu_conv_bn") == 3
    torch.testing.assert_close(got["logits"], want["logits"], rtol=1e-9, atol=1e-9)
    why = "its kernels support at most 4 channels per candidate, got 8"
    monkeypatch.setattr(mixed_cell_launches, "WIDEST", 1)
    narrow = network_of("DARTS_V2")
    assert narrow.computed_by("cuda") == "cells in plain PyTorch (its kernels support at most 1 channels per candidate, got 4)"
    assert network.computed_by("cuda") == f"2 of 3 cells in plain PyTorch ({why}), the others fused by Triton"


def _hook(cell: DiscreteCell) -> None:
    cell._ops[0].register_forward_hook(lambda *_: None)


def _identity(cell: DiscreteCell) -> None:
    cell._ops[0].op[3] = nn.Identity()


def _activation(cell: DiscreteCell) -> None:
    cell._ops[0].op[0] = nn.GELU()


def _bias(cell: DiscreteCell) -> None:
    cell._ops[0].op[2] = nn.Conv2d(4, 4, 1)


def _dilation(cell: DiscreteCell) -> None:
    cell._ops[0].op[1].dilation, cell._ops[0].op[1].padding = (2, 2), (2, 2)


def _operation(cell: DiscreteCell) -> None:
    cell._ops[0] = nn.Tanh()


def _preprocess(cell: DiscreteCell) -> None:
    cell.preprocess1 = nn.Conv2d(12, 4, 1)


def _frozen_norm(cell: DiscreteCell) -> None:
    cell._ops[0].op[3].eval()


def _momentum(cell: DiscreteCell) -> None:
    for module in cell.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None


CHANGES = [_hook, _identity, _activation, _bias, _dilation, _operation, _preprocess, _frozen_norm, _momentum]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_modules_compute_themselves(change: Callable[[DiscreteCell], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks fire, replaced layers act, a BatchNorm of another mode is not the others'."""
    network, fresh = network_of("DARTS_V2"), network_of("DARTS_V2")
    assert isinstance(network.cells[0]._ops[0], SepConv)
    for each in (network, fresh):
        torch.manual_seed(3)
        change(each.double().cells[0])
        each.double()
    fresh.set_backend("definition")
    x = torch.randn(IMAGE, dtype=torch.float64)
    called = calls_of(monkeypatch)
    got, want = results(network, x), results(fresh, x)
    assert called.count("mixed_cell") + called.count("relu_conv_bn") in (4, 5)  # the other cells', and this one's other call
    torch.testing.assert_close(got["logits"], want["logits"], rtol=1e-9, atol=1e-9)


def test_global_hooks_see_every_module(caplog: pytest.LogCaptureFixture) -> None:
    network, seen = network_of("DARTS_V2"), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        network(torch.randn(IMAGE, dtype=torch.float64))
    finally:
        handle.remove()
    assert SepConv in seen and "fused modules run" in SLOW


def test_traced_and_empty_calls_run_modules() -> None:
    network = network_of("DARTS_V2", dtype=torch.float32).eval().requires_grad_(False)
    x = torch.randn(2, 3, 32, 32)
    traced = torch.jit.trace(lambda images: network(images).logits, x)
    torch.testing.assert_close(traced(x[:1]), network(x[:1]).logits)
    assert network(x[:0]).logits.shape == (0, 5)


def test_forward_without_gradient_keeps_statistics_in_eval_mode() -> None:
    network = network_of("DARTS_V2", dtype=torch.float32).eval()
    before = {name: t.clone() for name, t in network.named_buffers()}
    with torch.no_grad():
        network(torch.randn(IMAGE))
    assert all(torch.equal(t, before[name]) for name, t in network.named_buffers())
