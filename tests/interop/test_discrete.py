"""Discrete networks of other codebases, converted: what is fused equals the original, and what differs runs its own forward."""

import logging
import pickle
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastdarts.interop import ConvertError, convert, revert
from fastdarts.interop.classes import PLAN
from fastdarts.interop.discrete import FusedDiscreteCell
from fastdarts.interop.stand_ins import NotFused
from fastdarts.interop.tree import own_class
from fastdarts.logs import say_once
from tests.interop import discrete
from tests.interop.discrete import Cell, Network, network, outcome
from tests.support.backends import needs_native
from tests.zoo.operations import Zero

pytestmark = needs_native


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Up to 1e-10 of the largest number of each tensor."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        scale = value.abs().max().item() if value.is_floating_point() else 0.0
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-10 * max(scale, 1e-3), msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def once() -> Network:
    """A converted network, which tests copy."""
    model = network()
    convert(model)
    return model


@pytest.fixture
def converted(once: Network) -> Network:
    return deepcopy(once)


def strict(model: nn.Module, value: bool = True) -> None:
    """Make calls raise that are not fused."""
    for cell in model.cells:
        cell.__dict__[PLAN].strict = value


@pytest.mark.parametrize(("training", "p", "N"), [(True, 0.0, 4), (True, 0.4, 4), (True, 0.9, 1), (False, 0.4, 4)])
def test_outputs_gradients_and_statistics_match(converted: Network, training: bool, p: float, N: int) -> None:
    """With the masks that the class' own code draws; also where it drops whole edges."""
    strict(converted)
    assert_same(outcome(converted, training, p, N), outcome(network(), training, p, N))


def test_report_and_names(converted: Network) -> None:
    own = network()
    before = [(name, type(m)) for name, m in own.named_modules()]
    assert [tuple(line) for line in convert(own)] == [(f"cells.{i}", "cell", "") for i in range(3)]
    assert all(isinstance(m, FusedDiscreteCell) and isinstance(m, Cell) for m in own.cells)
    assert list(own.state_dict()) == list(network().state_dict())
    revert(own)
    assert [(name, type(m)) for name, m in own.named_modules()] == before


def test_copies_and_pickles_are_fused(converted: Network) -> None:
    copied = pickle.loads(pickle.dumps(converted))
    strict(copied)
    assert_same(outcome(copied), outcome(network()))


def test_channels_last_and_single_precision(converted: Network) -> None:
    own = network().float().to(memory_format=torch.channels_last)
    converted.float().to(memory_format=torch.channels_last)
    strict(converted)
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    for a, b in zip(converted.eval()(x)[:1], own.eval()(x)[:1], strict=True):
        torch.testing.assert_close(a, b)


def halve_node(cell: Cell, terms: list[Tensor]) -> Tensor:
    return (terms[0] + terms[1]) / 2


def test_scaled_nodes_are_fused() -> None:
    """A factor of a node is one of its operations."""

    class Mean(Cell):
        join = halve_node

    own, model = network(Mean), network(Mean)
    convert(model)
    strict(model)
    assert_same(outcome(model), outcome(own))


def test_zero_and_parallel_operations() -> None:
    """`none`, and two operations between the same states."""
    genes = {"normal": (("none", 0), ("sep_conv_3x3", 1), ("max_pool_3x3", 2), ("avg_pool_3x3", 2))}
    own, model = network(**genes), network(**genes)
    convert(model)
    strict(model)
    assert_same(outcome(model), outcome(own))


Change = Callable[[Cell], object]
FUSED: dict[str, Change] = {
    "two operations change places": lambda cell: cell.ops.__setitem__(0, discrete.OPS["dil_conv_5x5"](4, 1).double()),
    "a pool becomes another": lambda cell: cell.ops.__setitem__(2, nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
    "norms have other settings": lambda cell: [
        setattr(m, "eps", 0.1) for m in cell.ops.modules() if isinstance(m, nn.BatchNorm2d)
    ],
}
RUN_ALONE: dict[str, tuple[Change, str]] = {
    "a hook": (lambda cell: cell.ops[3].register_forward_hook(lambda m, x, y: 2 * y), "layer 5, Sequential, has hooks"),
    "a hook within": (lambda cell: cell.ops[3][1].register_forward_hook(lambda m, x, y: 2 * y), "layer 5"),
    "a hook before": (lambda cell: cell.before0[1].register_forward_hook(lambda m, x, y: 2 * y), "layer 0"),
    "a bias": (lambda cell: cell.ops[3].__setitem__(2, nn.Conv2d(4, 4, 1).double()), "layer 5"),
    "another layer": (lambda cell: cell.ops[3].append(nn.Hardtanh(-0.1, 0.1)), "layer 5"),
    "an unverified kind": (lambda cell: cell.ops.__setitem__(1, Zero(1)), "layer 3, Zero"),
    "a norm of other settings": (lambda cell: setattr(cell.ops[3][3], "momentum", 0.3), "BatchNorms differ"),
    "other sources": (lambda cell: setattr(cell, "sources", [0, 0, 2, 1]), "what its forward reads has changed"),
    "another forward of the class": (lambda cell: setattr(own_class(cell), "join", halve_node), "what its forward reads"),
    "a layer less": (lambda cell: setattr(cell, "before0", nn.Identity()), "layer 0, Identity"),
}


@pytest.mark.parametrize("change", FUSED)
def test_known_changes_stay_fused(converted: Network, change: str) -> None:
    own = network()
    for model in (own, converted):
        torch.manual_seed(2)
        FUSED[change](model.cells[0])
    strict(converted)
    assert_same(outcome(converted), outcome(own))


@pytest.mark.parametrize("change", RUN_ALONE)
def test_other_changes_run_own_forward(
    change: str, converted: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Which is logged, once."""
    act, why = RUN_ALONE[change]
    monkeypatch.setattr(Cell, "join", Cell.join)
    own = network()
    for model in (own, converted):
        torch.manual_seed(2)
        act(model.cells[0])
    say_once.cache_clear()
    with caplog.at_level(logging.INFO, "fastdarts"):
        results = [outcome(model) for model in (converted, own) for _ in range(2)]
    assert_same(results[1], results[3])
    said = [message for message in caplog.messages if "runs its own forward" in message]
    assert len(said) == 1 and "a converted Cell runs its own forward" in said[0] and why in said[0]


def test_global_function_replaced(converted: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discrete, "drop_path", lambda x, p: x * (1 - p))
    assert_same(outcome(converted), outcome(network()))
    strict(converted)
    with pytest.raises(NotFused, match="what its forward reads has changed"):
        outcome(converted)


def test_unknown_operation_leaves_its_cell_alone() -> None:
    own = network()
    own.cells[0].ops[3][2] = nn.Conv2d(4, 4, 1).double()
    model = deepcopy(own)
    report = {line.name: line for line in convert(model)}
    assert report["cells.0"][1:] == ("left alone", "layer 5, Sequential: its convolution has a bias")
    assert report["cells.1"].became == report["cells.2"].became == "cell"
    assert_same(outcome(model), outcome(own))


def test_arguments_beyond_numbers_run_own_forward(converted: Network) -> None:
    s, own = torch.randn(2, 4, 8, 8, dtype=torch.float64), network()
    cells = [model.cells[0].eval() for model in (converted, own)]
    torch.testing.assert_close(*[cell(s, s.flip(0), torch.tensor(0.4)) for cell in cells], rtol=0, atol=1e-12)
    for cell in cells:
        with pytest.raises(TypeError, match="probability"):
            cell(s, s)


def test_random_numbers_are_restored_before_own_forward(converted: Network) -> None:
    """Where the stand-ins have drawn some already."""
    torch.manual_seed(0)
    s, own = torch.randn(2, 4, 8, 8, dtype=torch.float64), network()
    monkey = [model.cells[0] for model in (converted, own)]
    monkey[0].__dict__[PLAN].structure = monkey[0].__dict__[PLAN].structure._replace(nodes=(0, 0, 1, 1), rows=(0, 0, 0, 0))
    results = []
    for cell in monkey:
        torch.manual_seed(1)
        results.append(cell(s, s, 0.4))
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
def test_checkpointing_and_tracing(converted: Network) -> None:
    own = network()
    s = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    grads = []
    for model in (converted, own):
        torch.manual_seed(1)
        out = checkpoint(model.cells[0], s, s, 0.4, use_reentrant=False)
        out.square().sum().backward()
        grads.append({n: p.grad for n, p in model.cells[0].named_parameters()} | dict(model.cells[0].named_buffers()))
    assert_same(*grads)
    cells = [model.cells[0].eval().requires_grad_(False) for model in (converted, own)]
    traced = torch.jit.trace(lambda a, b: cells[0](a, b, 0.0), (s, s), check_trace=False)
    torch.testing.assert_close(traced(s + 1, s), cells[1](s + 1, s, 0.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"backend": "definition"}, "cells.0: discrete cells need .* backend 'definition' does not"),
        ({"level": "op"}, "no mixed operation was recognised"),
    ],
)
def test_wrong_use_is_named(options: dict[str, str], why: str) -> None:
    with pytest.raises(ConvertError, match=why):
        convert(network(), **options)
