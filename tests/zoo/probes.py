"""Events that ask a network something in the midst of its steps: other modes, other weights, second derivatives."""

import torch
from torch import Tensor, nn

from tests.zoo.driver import Event, default_dtype, loss_of


def eval_gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """dL/dalpha and dL/dx through running statistics."""
    model.eval()
    x = x.clone().requires_grad_()
    gradients = torch.autograd.grad(loss_of(model, x, y), [x, *model.arch_parameters()])
    model.train()
    return {f"eval gradient {i}": g for i, g in enumerate(gradients)}


def second_order(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """dL/dalpha at theta + R v and at theta - R v, written through `.data`: DARTS' finite differences (v = theta here)."""
    theta = [p for p in model.parameters() if all(p is not a for a in model.arch_parameters())]
    v = [p.detach().clone() for p in theta]
    seen = {}
    for name, factor in (("plus", 0.01), ("minus", -0.02)):
        for p, direction in zip(theta, v, strict=True):
            p.data.add_(direction, alpha=factor)
        gradients = torch.autograd.grad(loss_of(model, x, y), model.arch_parameters())
        seen |= {f"{name} {i}": g for i, g in enumerate(gradients)}
    for p, before in zip(theta, v, strict=True):
        p.data.copy_(before)
    return seen


def replaced_by_new(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The validation loss of `model.new()` after it has loaded the state_dict."""
    with default_dtype(x.dtype):
        model_new = model.new()
    model_new.load_state_dict(model.state_dict())
    return {"loss of new()": loss_of(model_new, x, y)}


def hessian_product(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The Hessian of the validation loss in alpha, times a random vector: a double backward."""
    alpha = model.arch_parameters()
    gradients = torch.autograd.grad(loss_of(model, x, y), alpha, create_graph=True)
    product = sum((g * torch.randn_like(g)).sum() for g in gradients)
    return {f"Hessian product {i}": h for i, h in enumerate(torch.autograd.grad(product, alpha))}


EVAL = Event(1, "gradients in eval mode", eval_gradients)
NEW = Event(1, "new()", replaced_by_new)
SECOND_ORDER = Event(2, "finite differences", second_order)
HESSIAN = Event(2, "Hessian", hessian_product)
