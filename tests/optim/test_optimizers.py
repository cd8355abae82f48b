"""The optimizers' backends: which is taken, why apex is refused, and state that loads across."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdarts.optim import OptimizerUnavailable
from fastdarts.optim.optimizers import (
    BETAS,
    arch_optimizer,
    check_backend,
    load_optimizer,
    optimizer_state,
    set_rate,
    weight_optimizer,
)

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
OPTIMIZERS = {"apex/optimizers/__init__.py": "class FusedSGD: ...\nclass FusedAdam: ...\n"}
KERNELS = {"amp_C.py": "multi_tensor_sgd = None"}


def install(monkeypatch: pytest.MonkeyPatch, root: Path, files: dict[str, str]) -> None:
    """Put these modules first on the path; nothing of apex that was imported before, or is now, outlives the test."""
    for name in [n for n in sys.modules if n.partition(".")[0] in ("apex", "amp_C")]:
        monkeypatch.delitem(sys.modules, name)
    for name, text in ({"apex/__init__.py": ""} | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(root)
    for name in ("apex", "apex.optimizers", "amp_C"):
        monkeypatch.setitem(sys.modules, name, sys)
        monkeypatch.delitem(sys.modules, name)


def test_torch_backend_needs_nothing() -> None:
    check_backend("torch", CPU)
    check_backend("torch", GPU, torch.float64)


def test_missing_apex_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdarts.provenance.find_spec", lambda _: None)
    with pytest.raises(OptimizerUnavailable, match=r"apex is not installed; build NVIDIA's from github.com/NVIDIA/apex"):
        check_backend("apex", GPU)


def test_unrelated_apex_package_is_rejected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, {"apex/__init__.py": "raise RuntimeError('must not be imported')"})
    with pytest.raises(OptimizerUnavailable, match=r"apex is an unrelated package.*build NVIDIA's.*torch") as error:
        check_backend("apex", GPU)
    assert "\n" not in str(error.value) and "apex" not in sys.modules


def test_apex_rejects_cpu_and_float64(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, OPTIMIZERS | KERNELS)
    with pytest.raises(OptimizerUnavailable, match="support float32 on a GPU, not float32 on cpu"):
        check_backend("apex", CPU)
    with pytest.raises(OptimizerUnavailable, match="not float64 on cuda:0"):
        check_backend("apex", GPU, torch.float64)
    for make in (weight_optimizer, arch_optimizer):
        how = {"momentum": 0.9} if make is weight_optimizer else {}
        with pytest.raises(OptimizerUnavailable, match="on a GPU"):
            make([torch.zeros(1, requires_grad=True)], 0.1, weight_decay=0.0, backend="apex", **how)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (OPTIMIZERS, r"not usable \(No module named 'amp_C'\)"),
        (OPTIMIZERS | {"amp_C.py": "raise ImportError('undefined symbol: x')"}, r"not usable \(undefined symbol: x\)"),
        (KERNELS | {"apex/optimizers/__init__.py": "class FusedSGD: ..."}, "has no FusedAdam"),
        (KERNELS | {"apex/optimizers/__init__.py": ""}, "has no FusedSGD and no FusedAdam"),
    ],
)
def test_incomplete_apex_is_reported(files: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, files)
    with pytest.raises(OptimizerUnavailable, match=says):
        check_backend("apex", GPU)


def test_complete_apex_is_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, OPTIMIZERS | KERNELS)
    check_backend("apex", GPU)


def test_cpu_learning_rates_are_numbers() -> None:
    p = [torch.zeros(2, requires_grad=True)]
    sgd = weight_optimizer(p, 0.5, momentum=0.9, weight_decay=3e-4)
    adam = arch_optimizer(p, 6e-3, weight_decay=1e-3)
    assert (sgd.param_groups[0]["lr"], adam.param_groups[0]["lr"]) == (0.5, 6e-3)
    assert all(o.param_groups[0]["fused"] for o in (sgd, adam))
    assert (adam.param_groups[0]["betas"], adam.param_groups[0]["weight_decay"]) == (BETAS, 1e-3)
    set_rate(sgd, 0.25)
    assert sgd.param_groups[0]["lr"] == 0.25


def test_tensor_learning_rate_is_filled_in_place() -> None:
    rate = torch.tensor(0.5)
    optimizer = torch.optim.SGD([torch.zeros(2, requires_grad=True)], rate, fused=True)
    set_rate(optimizer, 0.125)
    assert optimizer.param_groups[0]["lr"] is rate and float(rate) == 0.125
    assert optimizer_state(optimizer)["param_groups"][0]["lr"] == 0.125


class LikeApex(torch.optim.Optimizer):
    """Adam with L2 decay whose state is stored like apex' capturable FusedAdam's."""

    def __init__(self, params: list[Tensor], lr: float, weight_decay: float) -> None:
        defaults = {"lr": torch.tensor(lr), "bias_correction": True, "betas": BETAS, "eps": 1e-8, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.adam_w_mode = 0

    @torch.no_grad()
    def step(self) -> None:
        (group,) = self.param_groups
        group["step"] = group["step"] + 1 if "step" in group else torch.tensor([1], dtype=torch.int32)
        t, (b1, b2) = int(group["step"]), group["betas"]
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            for name in ("exp_avg", "exp_avg_sq") if not state else ():
                state[name] = torch.zeros_like(p)
            g = p.grad + group["weight_decay"] * p
            state["exp_avg"].lerp_(g, 1 - b1)
            state["exp_avg_sq"].mul_(b2).addcmul_(g, g, value=1 - b2)
            mean, square = state["exp_avg"] / (1 - b1**t), state["exp_avg_sq"] / (1 - b2**t)
            p -= group["lr"] * mean / (square.sqrt() + group["eps"])


def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return arch_optimizer(parameters, 0.125, weight_decay=0.01)


def like_apex(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return LikeApex(parameters, 0.125, 0.01)


def walk(optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
    parameters = optimizer.param_groups[0]["params"]
    for step in steps:
        g = torch.Generator().manual_seed(step)
        for p in parameters[:2]:
            p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in parameters]


def parameters() -> list[Tensor]:
    return [torch.ones(shape, dtype=torch.float64).requires_grad_() for shape in ((3, 4), (5,), (2,))]


@pytest.mark.parametrize("first", [adam, like_apex])
@pytest.mark.parametrize("second", [adam, like_apex])
def test_run_continues_with_other_backend(first: Any, second: Any, tmp_path: Path) -> None:
    whole = walk(adam(parameters()), range(6))
    one = first(parameters())
    middle = walk(one, range(3))
    torch.save(optimizer_state(one), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert saved["param_groups"][0]["lr"] == 0.125 and "step" not in saved["param_groups"][0]
    assert {float(s["step"]) for s in saved["state"].values()} == {3.0} and len(saved["state"]) == 2
    continued = [p.requires_grad_() for p in middle]
    other = second(continued)
    load_optimizer(other, saved)
    ends = walk(other, range(3, 6))
    for a, b in zip(ends, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=0)


@pytest.mark.parametrize("make", [adam, like_apex])
def test_loaded_state_keeps_addresses(make: Any) -> None:
    """A captured graph reads these addresses. Loading a fresh state empties them."""
    optimizer = make(parameters())
    fresh = copy.deepcopy(optimizer_state(optimizer))
    walk(optimizer, range(2))
    saved = copy.deepcopy(optimizer_state(optimizer))
    walk(optimizer, range(2, 4))
    tensors = {(id(p), n): t for p, s in optimizer.state.items() for n, t in s.items()}
    rate, count = optimizer.param_groups[0]["lr"], optimizer.param_groups[0].get("step")
    load_optimizer(optimizer, saved)
    assert all(optimizer.state[p][n] is tensors[id(p), n] for p, s in optimizer.state.items() for n in s)
    assert not isinstance(rate, Tensor) or optimizer.param_groups[0]["lr"] is rate
    assert count is None or (optimizer.param_groups[0]["step"] is count and int(count) == 2)
    again = optimizer_state(optimizer)
    assert all(torch.equal(t, saved["state"][i][n]) for i, s in again["state"].items() for n, t in s.items())
    load_optimizer(optimizer, fresh)
    assert not any(t.any() for t in tensors.values())


def test_sgd_resumes_with_own_implementation_flags() -> None:
    weights = [torch.ones(3, requires_grad=True)]
    saved = optimizer_state(torch.optim.SGD(weights, 0.25, momentum=0.5, foreach=True))
    mine = weight_optimizer(weights, 0.5, momentum=0.9, weight_decay=0.0)
    load_optimizer(mine, saved)
    (group,) = mine.param_groups
    assert (group["fused"], group["foreach"], group["lr"], group["momentum"]) == (True, None, 0.25, 0.5)


def test_other_parameter_count_is_rejected() -> None:
    saved = optimizer_state(adam(parameters()))
    with pytest.raises(ValueError, match="parameter group"):
        load_optimizer(adam(parameters()[:2]), saved)
