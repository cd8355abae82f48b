"""convert, revert and verify: what stays, what a report says, wrong use, and what a converted network is put through."""

import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import fastdarts
from fastdarts.interop import ConvertError, convert, revert, verify
from fastdarts.interop.mixture import FusedMixture
from fastdarts.ops.backend import BackendUnavailable
from tests.support.backends import needs_native
from tests.zoo import ZOO, images
from tests.zoo.driver import loss_of

pytestmark = needs_native
BY_NAME = {entry.name: entry for entry in ZOO}


def network(name: str = "darts", dtype: torch.dtype = torch.float64) -> nn.Module:
    return BY_NAME[name].make(0, dtype)


def outcome(model: nn.Module, name: str = "darts") -> dict[str, Tensor]:
    """Logits, gradients and buffers of one forward and backward."""
    x, y = images(5, BY_NAME[name].side, next(model.parameters()).dtype)
    for p in model.parameters():
        p.grad = None
    out = model(x)
    nn.functional.cross_entropy(out, y).backward()
    named = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return named | {"out": out.detach()} | {f"buffer {n}": b.clone() for n, b in model.named_buffers()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-9, atol=1e-10)


def test_convert_keeps_parameters_names_classes_and_random_state() -> None:
    model = network()
    parameters, names = [id(p) for p in model.parameters()], list(model.state_dict())
    before = {n: t.clone() for n, t in model.state_dict().items()}
    classes, generator = [type(m).__name__ for m in model.modules()], torch.get_rng_state()
    mode = [m.training for m in model.modules()]
    first = next(m for m in model.modules() if hasattr(m, "_ops") and not hasattr(m, "preprocess0"))
    own = type(first)
    convert(model)
    assert [id(p) for p in model.parameters()] == parameters and list(model.state_dict()) == names
    assert [type(m).__name__ for m in model.modules()] == classes and isinstance(first, own)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator) and [m.training for m in model.modules()] == mode
    fresh = network()
    fresh.load_state_dict(model.state_dict())
    model.load_state_dict(fresh.state_dict())


def test_earlier_optimizer_updates_converted_network() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    convert(model)
    outcome(model)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert not any(
        torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True) if p.grad is not None and p.grad.any()
    )


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copy_is_converted_and_independent(how: str, tmp_path: Path) -> None:
    model = network()
    convert(model)
    want = outcome(deepcopy(model))
    if how == "deepcopy":
        copied = deepcopy(model)
    elif how == "pickle":
        copied = pickle.loads(pickle.dumps(model))
    else:
        torch.save(model, tmp_path / "model.pt")
        copied = torch.load(tmp_path / "model.pt", weights_only=False)
    assert any(isinstance(m, FusedMixture) for m in copied.modules())
    assert_same(outcome(copied), want)
    with torch.no_grad():
        for p in copied.parameters():
            p.zero_()
    assert all(p.any() for n, p in model.named_parameters() if n.endswith("weight") and p.dim() == 4)


def test_revert_restores_network() -> None:
    model, own = network(), network()
    classes = [type(m) for m in model.modules()]
    convert(model)
    assert_same(outcome(model), outcome(own))
    revert(model)
    assert [type(m) for m in model.modules()] == classes and not any("_fastdarts" in vars(m) for m in model.modules())
    assert_same(outcome(model), outcome(own))
    with pytest.raises(ConvertError, match="is not converted"):
        revert(model)
    convert(model)


def test_new_returns_converted_network() -> None:
    model = network("darts_second_order")
    convert(model, level="op")
    made = model.new()
    assert any(isinstance(m, FusedMixture) for m in made.modules())
    assert not {id(p) for p in made.parameters()} & {id(p) for p in model.parameters()}
    made.new()


def test_verify_reports_differences_and_times(capsys: pytest.CaptureFixture) -> None:
    model = network()
    convert(model)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    comparison = verify(model, images(5, 16, torch.float64)[0], rounds=1)
    printed = capsys.readouterr().out
    assert (
        comparison.output < 1e-12
        and max(comparison.parameters.values()) < 1e-9
        and len(comparison.arch) == 2
        and max(comparison.arch) < 1e-9
    )
    assert comparison.parameters.keys() == dict(model.named_parameters()).keys() and max(comparison.statistics.values()) < 1e-12
    assert "times faster" in printed and "gradient of weights 1" in printed and comparison.ratio > 0
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with pytest.raises(ConvertError, match="is not converted"):
        verify(network(), images(5, 16, torch.float64)[0])


def test_verify_detects_difference() -> None:
    model = network()
    convert(model)
    edge = next(m for m in model.modules() if isinstance(m, FusedMixture))
    edge._fastdarts.layouts[1], edge._fastdarts.layouts[2] = edge._fastdarts.layouts[2], edge._fastdarts.layouts[1]
    assert verify(model, images(5, 16, torch.float64)[0], rounds=1, show=False).output > 1e-6


def test_report_names_every_module_with_reason() -> None:
    report = convert(network("darts_pt"))
    partly = [line for line in report if line.became == "partly"]
    assert partly and all("Noise is not a layer of a known candidate" in line.why for line in partly)
    alone = [line for line in report if line.became == "left alone"]
    assert alone and all("not all its operations" in line.why for line in alone)
    assert "partly: " in str(report)
    whole = convert(network())
    assert {line.became for line in whole} == {"cell", "preprocess"}
    assert [line.name for line in whole if line.became == "cell"] == [f"cells.{i}" for i in range(len(network().cells))]


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize(
    ("model", "how", "error", "message"),
    [
        (Plain, {}, ConvertError, "no mixed operation was recognised"),
        (nn.ReLU, {}, ConvertError, "has no parameters"),
        (network, {"level": "edge"}, ConvertError, "level 'edge': expected 'cell' or 'op'"),
        (network, {"backend": "triton"}, BackendUnavailable, "triton"),
        (network, {"backend": "fast"}, ValueError, "fast"),
    ],
    ids=["no mixed operation", "no parameters", "level", "a GPU's backend", "no backend"],
)
def test_invalid_use_raises_without_change(model: Any, how: dict, error: type, message: str) -> None:
    made = model()
    with pytest.raises(error, match=message):
        convert(made, **how)
    assert not any("_fastdarts" in vars(m) for m in made.modules())


def test_converted_network_is_not_converted_again() -> None:
    model = network()
    fastdarts.convert(model)
    with pytest.raises(ConvertError, match=r"already converted; fastdarts\.revert"):
        fastdarts.convert(model)


def test_hooks_on_candidates_are_called() -> None:
    model, own, seen = network(), network(), []
    convert(model)
    candidate = next(m for m in model.modules() if isinstance(m, FusedMixture))._ops[4]
    candidate.register_forward_hook(lambda *_: seen.append(1))
    assert_same(outcome(model), outcome(own))
    assert seen == [1]


def test_norms_without_running_statistics_are_fused() -> None:
    model, own = network(), network()
    for each in (model, own):
        for m in each.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.track_running_stats, m.running_mean, m.running_var, m.num_batches_tracked = False, None, None, None
    convert(model)
    assert_same(outcome(model), outcome(own))
    assert_same(outcome(model.eval()), outcome(own.eval()))


def test_second_derivatives_match() -> None:
    """The Hessian in alpha times a vector, by double backward."""
    products = []
    for converted in (False, True):
        model = network()
        if converted:
            convert(model)
        x, y = images(5, 16, torch.float64)
        alpha = model.arch_parameters()
        first = torch.autograd.grad(loss_of(model, x, y), alpha, create_graph=True)
        products.append(torch.autograd.grad(sum((g * g.detach()).sum() for g in first), alpha))
    for a, b in zip(*products, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


def test_autocast_is_as_exact_as_original() -> None:
    """bfloat16 on a CPU, which the definitions serve: as near to float32 as the original."""
    x, _ = images(5, 16, torch.float32)
    exact, own, model = (network("darts", torch.float32) for _ in range(3))
    convert(model)
    with torch.no_grad():
        want = exact(x)
        with torch.autocast("cpu", torch.bfloat16):
            eager, mine = own(x), model(x)
    assert mine.dtype == eager.dtype
    assert (mine - want).abs().max() <= 2 * (eager - want).abs().max()


def test_distributed_data_parallel_matches(tmp_path: Path) -> None:
    model, own = network(), network()
    convert(model)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        x, y = images(5, 16, torch.float64)
        nn.functional.cross_entropy(wrapped(x), y).backward()
    finally:
        dist.destroy_process_group()
    nn.functional.cross_entropy(own(x), y).backward()
    for p, q in zip(model.parameters(), own.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)


def test_output_may_be_modified_in_place() -> None:
    model, own = network(), network()
    convert(model, level="op")
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    grads = []
    for each in (model, own):
        edge = each.cells[0]._ops[0]
        row = torch.linspace(-1, 1, 8, dtype=torch.float64, requires_grad=True)
        out = edge(x, row)
        out.mul_(2.0).add_(1.0)
        grads.append(torch.autograd.grad(out.square().sum(), row)[0])
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_uncopyable_operation_is_reported_and_not_fused() -> None:
    """Old weight_norm keeps a tensor that is no leaf, once it has run: torch cannot copy that."""
    model = network()
    edge = next(m for m in model.modules() if hasattr(m, "_ops") and not hasattr(m, "preprocess0"))
    edge.scale = torch.ones((), dtype=torch.float64, requires_grad=True) * 2
    report = convert(model)
    (line,) = [line for line in report if "it cannot be copied" in line.why]
    assert line.became == "left alone" and line.name == "cells.0._ops.0"
    assert outcome(model)["out"].isfinite().all()


def test_further_tensor_argument_runs_own_forward() -> None:
    class Scaled(type(network().cells[0])):
        def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, scale: Tensor | float = 1.0) -> Tensor:
            return super().forward(s0, s1, weights) * scale

    model = network()
    for cell in model.cells:
        cell.__class__ = Scaled
    own = deepcopy(model)
    assert {line.became for line in convert(model)} == {"cell", "preprocess"}
    s, rows = torch.randn(2, 12, 8, 8, dtype=torch.float64), torch.rand(14, 8, dtype=torch.float64)
    for scale in ((), (1.0,), (2.0,), (torch.rand(1, 16, 1, 1, dtype=torch.float64),)):
        torch.testing.assert_close(model.cells[0](s, s, rows, *scale), own.cells[0](s, s, rows, *scale), rtol=1e-9, atol=1e-10)


def test_interrupted_conversion_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    model = network()
    classes = [type(m) for m in model.modules()]
    monkeypatch.setattr("fastdarts.interop.conversion._Converter.cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(model)
    assert [type(m) for m in model.modules()] == classes and not any("_fastdarts" in vars(m) for m in model.modules())
