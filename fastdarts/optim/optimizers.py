"""Optimizers of the weights and of alpha: torch's fused ones, or NVIDIA apex' if it is installed with its kernels.

Both backends save their state in torch's format, so a run may continue with the other one.
"""

import importlib
from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor

from fastdarts import provenance

OptimizerBackend = Literal["torch", "apex"]
BETAS = (0.5, 0.999)  # of alpha's Adam (DARTS)
OWN = {"params", "lr", "step", "fused", "foreach", "capturable", "differentiable"}  # not restored from a saved group


class OptimizerUnavailable(RuntimeError):
    """The requested optimizer backend is not available; the message says why and what to do."""


def weight_optimizer(
    weights: list[Tensor],
    lr: float,
    *,
    momentum: float,
    weight_decay: float,
    nesterov: bool = False,
    backend: OptimizerBackend = "torch",
    undecayed: Collection[Tensor] = (),
) -> torch.optim.Optimizer:
    """Return SGD over the weights. On a GPU its learning rate is a float32 tensor, which a CUDA graph can read.

    undecayed  weights without decay, in a second group; without any there is one group
    Raises OptimizerUnavailable.
    """
    groups = parameter_groups(weights, undecayed)
    options: dict[str, Any] = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    if backend == "apex":
        return _apex(weights).FusedSGD(groups, lr, **options)
    return torch.optim.SGD(groups, on_device(lr, weights), fused=True, **options)


def parameter_groups(weights: list[Tensor], undecayed: Collection[Tensor]) -> list[dict[str, Any]]:
    """Return the weights in one group, or in two of which the second, `undecayed`, has no weight decay."""
    exempt = {id(w) for w in undecayed}
    groups: list[dict[str, Any]] = [{"params": [w for w in weights if id(w) not in exempt]}]
    if exempt:
        groups.append({"params": [w for w in weights if id(w) in exempt], "weight_decay": 0.0})
    return groups


def arch_optimizer(
    parameters: list[Tensor], lr: float, *, weight_decay: float, backend: OptimizerBackend = "torch"
) -> torch.optim.Optimizer:
    """Return Adam over alpha and beta, with L2 decay. Raises OptimizerUnavailable."""
    if backend == "apex":
        adam = _apex(parameters).FusedAdam
        return adam(parameters, lr, betas=BETAS, weight_decay=weight_decay, adam_w_mode=False, capturable=True)
    return torch.optim.Adam(parameters, on_device(lr, parameters), betas=BETAS, weight_decay=weight_decay, fused=True)


def check_backend(backend: OptimizerBackend, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Raise OptimizerUnavailable unless the backend supports parameters of that device and dtype."""
    if backend == "torch":
        return
    found = provenance.apex()
    if not found.startswith(provenance.NVIDIAS):
        remedy = "build NVIDIA's from github.com/NVIDIA/apex with its CUDA extensions, or use torch's fused ones"
        raise OptimizerUnavailable(f"apex is {found}; {remedy} (--optimizer_backend torch)")
    if device.type != "cuda" or dtype != torch.float32:
        served = f"float32 on a GPU, not {str(dtype).removeprefix('torch.')} on {device}"
        raise OptimizerUnavailable(f"apex' fused optimizers support {served}: use --optimizer_backend torch")
    try:
        module = importlib.import_module("apex.optimizers")
        importlib.import_module("amp_C")  # its kernels: without them the optimizers can be imported but not constructed
    except provenance.BROKEN as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OptimizerUnavailable(f"apex is installed but not usable ({why}): build it with its CUDA extensions") from error
    if missing := [name for name in ("FusedSGD", "FusedAdam") if not hasattr(module, name)]:
        raise OptimizerUnavailable(f"apex.optimizers has no {' and no '.join(missing)}: install a newer apex")


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group; a tensor is filled in place."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state as torch's optimizer saves it: learning rates as numbers, Adam's step with each parameter's moments."""
    saved = optimizer.state_dict()
    state, groups = {n: dict(s) for n, s in saved["state"].items()}, []
    for group in saved["param_groups"]:
        groups.append(group | {"lr": float(group["lr"])})
        if "step" in groups[-1]:  # apex keeps one count per group
            step = torch.as_tensor(groups[-1].pop("step")).detach().float().reshape(())
            for n in group["params"]:
                if "exp_avg" in state.get(n, {}):
                    state[n]["step"] = step.clone()
    return {"state": state, "param_groups": groups}


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load the result of optimizer_state, from this optimizer or from the other backend's.

    Existing tensors are filled in place, so captured graphs stay valid. Implementation options (fused, capturable) keep this
    optimizer's values. Raises ValueError if the number of parameters differs.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    old = {p: dict(s) for p, s in optimizer.state.items()}
    counts = [group.get("step") for group in optimizer.param_groups]
    groups = []
    for own, theirs in zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True):
        taken = {k: v for k, v in theirs.items() if k in own and k not in OWN}
        groups.append(own | taken | {"params": theirs["params"]})
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    for group, theirs, rate, count in zip(optimizer.param_groups, saved["param_groups"], rates, counts, strict=True):
        group["lr"] = rate.fill_(theirs["lr"]) if isinstance(rate, Tensor) else float(theirs["lr"])
        if getattr(optimizer, "adam_w_mode", None) is not None:
            _count_by_group(optimizer, group, count)
    for p in [p for group in optimizer.param_groups for p in group["params"]]:
        now, before = optimizer.state.get(p, {}), old.get(p, {})
        for name, tensor in before.items():
            if isinstance(tensor, Tensor):
                tensor.copy_(now[name]) if name in now else tensor.zero_()
                optimizer.state[p][name] = tensor


def _count_by_group(optimizer: torch.optim.Optimizer, group: dict[str, Any], count: Tensor | None) -> None:
    """Move Adam's step counts from the parameters' state to the group, where apex keeps them; `count` is the group's tensor."""
    steps = [optimizer.state[p].pop("step") for p in group["params"] if "step" in optimizer.state.get(p, {})]
    first = group["params"][0]
    step = max((int(s) for s in steps), default=0)
    group["step"] = torch.zeros(1, dtype=torch.int32, device=first.device) if count is None else count
    group["step"].fill_(step)


def _apex(parameters: list[Tensor]) -> Any:
    check_backend("apex", parameters[0].device, parameters[0].dtype)
    return importlib.import_module("apex.optimizers")


def on_device(rate: float, parameters: list[Tensor]) -> float | Tensor:
    """Return a learning rate as an optimizer of these parameters takes it: on a GPU a tensor, which a CUDA graph can read."""
    device = parameters[0].device
    return torch.tensor(rate, dtype=torch.float32, device=device) if device.type == "cuda" else rate
