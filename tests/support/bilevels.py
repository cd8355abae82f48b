"""A small bilevel search on any device, as `Search` sets one up, for tests of what a step leaves behind."""

from typing import Any

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.objectives import Classification, MaskedReconstruction, Objective, make_objective
from fastdarts.optim import Precision
from fastdarts.optim.optimizers import arch_optimizer, weight_optimizer
from fastdarts.search import Bilevel, SoftmaxRelaxation
from fastdarts.spaces import NASBENCH201, S4, Space
from fastdarts.supernet import NASBench201Supernet, Network, Supernet

SPACE = Space.uniform("few", ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5"))
CLASSES = 4
SIDE = 16  # pixels of an image
# what a step may be made of besides: by name the arguments of `make`
MADE_OF: dict[str, dict[str, Any]] = {
    "S4's noise": {"space": S4, "masked": False, "k": 1},
    "S4's noise, second order": {"space": S4, "masked": False, "k": 1, "unrolled": True},
    "skips with dropout": {"skip_dropout": 0.5, "masked": False, "k": 1},
    "NAS-Bench-201": {"space": NASBENCH201, "k": 1},
    **{name: {"objective": name, "k": 1} for name in ("joint", "rotation", "colourisation", "supervised+jigsaw")},
}


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
    objective: str = "",
    skip_dropout: float = 0.0,
    **settings: Any,
) -> Bilevel:
    """Three cells of 4k channels; learning rates that float32 holds exactly.

    objective     of OBJECTIVES, in place of `masked`
    skip_dropout  rate
    """
    torch.manual_seed(3)
    supernet = _supernet(space, k, sampling, backend, skip_dropout)
    objective: Objective = (
        make_objective(objective, supernet, num_classes=CLASSES, image_size=SIDE, patch_size=4, backend=backend)
        if objective
        else MaskedReconstruction(supernet.tap_channels, patch_size=4, mask_token="learned", backend=backend)
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


def _supernet(space: Space, k: int, sampling: str, backend: str, skip_dropout: float) -> Network:
    if space.skeleton == "nasbench201":
        return NASBench201Supernet(space, C=4 * k, cells_per_stage=1, backend=backend)
    supernet = Supernet(
        space,
        C=4 * k,
        layers=3,
        partial_channels=k,
        channel_sampling=sampling if k > 1 else "first",
        backend=backend,
        skip_dropout=skip_dropout > 0,
    )
    if skip_dropout:
        supernet.drop_skips(skip_dropout)
    return supernet


def batch(seed: int, count: int = 6, side: int = SIDE, device: str = "cpu") -> Batch:
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
