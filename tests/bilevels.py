"""A small bilevel search on any device, as `Search` sets one up, for tests of what a step leaves behind."""

from typing import Any

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.objectives import Classification, MaskedReconstruction, Objective
from fastdarts.search import Bilevel, Precision, SoftmaxRelaxation
from fastdarts.search.optimizers import arch_optimizer, weight_optimizer
from fastdarts.spaces import Space
from fastdarts.supernet import Supernet

SPACE = Space.uniform("few", ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5"))
CLASSES = 4


def make(
    *,
    masked: bool = True,
    sampling: str = "first",
    k: int = 2,
    amp: str = "off",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    space: Space = SPACE,
    **settings: Any,
) -> Bilevel:
    """Three cells of 4k channels; learning rates that float32 holds exactly."""
    torch.manual_seed(3)
    supernet = Supernet(
        space, C=4 * k, layers=3, partial_channels=k, channel_sampling=sampling if k > 1 else "first", backend=backend
    )
    objective: Objective = (
        MaskedReconstruction(supernet.tap_channels, patch_size=4, mask_token="learned", backend=backend)
        if masked
        else Classification(supernet, CLASSES)
    )
    supernet.to(device, dtype, memory_format=torch.channels_last)
    objective.to(device, dtype)
    relaxation = SoftmaxRelaxation(space, edge_normalization=k > 1, device=device, dtype=dtype)
    weights = list(dict.fromkeys([*supernet.parameters(), *objective.parameters()]))
    return Bilevel(
        supernet,
        objective,
        relaxation,
        weight_optimizer(weights, 2**-5, momentum=0.9, weight_decay=3e-4),
        arch_optimizer(relaxation.parameters(), 2**-8, weight_decay=1e-3),
        precision=Precision(amp, torch.empty(0, device=device).device),
        **settings,
    )


def batch(seed: int, count: int = 6, side: int = 16, device: str = "cpu") -> Batch:
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, side, side, 3), generator=g, dtype=torch.uint8)
    labels, index = (torch.randint(0, high, (count,), generator=g) for high in (CLASSES, 10**6))
    return Batch(images, labels, index, torch.rand(count, generator=g) < 0.5).to(device)


def number(step: int, device: str = "cpu") -> Tensor:
    return torch.tensor([step], device=device)


def everything(bilevel: Bilevel) -> dict[str, Tensor]:
    """Copies of all that a step may change, by name; the counter of skipped updates apart."""
    named = {f"supernet {n}": t for n, t in bilevel.supernet.state_dict().items()}
    named |= {f"objective {n}": t for n, t in bilevel.objective.state_dict().items()}
    named |= {f"alpha {i}": p for i, p in enumerate(bilevel.relaxation.parameters())}
    for role, optimizer in (("SGD", bilevel.weight_optimizer), ("Adam", bilevel.arch_optimizer)):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for i, p in enumerate(parameters):
            named |= {f"{role} {i} {n}": t for n, t in optimizer.state.get(p, {}).items()}
    return {n: t.detach().clone() for n, t in named.items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """The names whose tensors are not equal to the bit; state that one side has not made yet counts as zeros."""
    names = [n for n in a.keys() | b.keys() if not torch.equal(a.get(n, torch.zeros(())), b.get(n, torch.zeros(())))]
    return sorted(n for n in names if (n in a and n in b) or bool((a | b)[n].any()))
