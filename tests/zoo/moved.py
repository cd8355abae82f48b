"""What the zoo's tests share: networks that have been moved already, and small inputs."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import ZOO, Entry, bilevel_steps, images

BY_NAME = {entry.name: entry for entry in ZOO}


@cache
def moved(name: str) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """(the network after `entry.length` steps, all that moved, what it was before)."""
    entry = BY_NAME[name]
    model = entry.make(1)
    before = model.state_dict() | {f"alpha {i}": a for i, a in enumerate(entry.arch(model))}
    before = {key: value.detach().clone() for key, value in before.items()}
    return model, bilevel_steps(model, entry, entry.length, seed=2), before


def loss(model: nn.Module, entry: Entry) -> Tensor:
    x, y = images(7, entry.side, torch.float64)
    return F.cross_entropy(model(x), y)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def double(make: type[nn.Module], *arguments: object) -> nn.Module:
    torch.manual_seed(0)
    return make(*arguments).double()
