"""Random numbers of torch's generators: the same where losses are compared, and none that the search would miss."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastdarts.engine import RankInfo, World
from fastdarts.objectives import Classification
from fastdarts.optim import seeded
from fastdarts.runs.search import draw_apart
from fastdarts.search import Search
from fastdarts.spaces import Space
from fastdarts.supernet import Supernet
from fastdarts.supernet.eager_candidates import Noise, RandomModule, SkipDropout
from tests.search.test_search import Loader, finite, settings

pytestmark = pytest.mark.usefixtures("one_thread")

NOISY = Space.uniform("noisy", ("noise", "skip_connect"), nodes=2)


def make() -> Search:
    torch.manual_seed(5)
    supernet = Supernet(NOISY, C=4, layers=3, skip_dropout=True)
    supernet.drop_skips(0.5)
    how = settings(unrolled=True, edge_normalization=False)
    loaders = Loader(0, 2), Loader(1, 2)
    return Search(supernet, Classification(supernet, 3), *loaders, how, eval_loader=finite(2))


def watched(search: Search, kind: type[Noise | SkipDropout]) -> list[list[tuple[Tensor, Tensor]]]:
    """Of each such module what it reads and gives, in every forward to come."""
    outs = []
    for module in [m for m in search.supernet.modules() if isinstance(m, kind)]:
        outs.append([])
        module.register_forward_hook(lambda _, args, out, its=outs[-1]: its.append((args[0], out)))
    return outs


def test_finite_differences_share_noise_and_dropout() -> None:
    search = make()
    noise, skips = watched(search, Noise), watched(search, SkipDropout)
    search.bilevel.unrolled_gradient(search.step, next(search.train_loader), next(search.val_loader))
    for forwards in noise:
        train, val, plus, minus = (out for _, out in forwards)  # the virtual step, the loss after it, the two sides
        assert torch.equal(plus, minus)
        assert not torch.equal(train, plus) and not torch.equal(val, plus)
    for forwards in skips:
        plus, minus = ((out == 0) & (x != 0) for x, out in forwards[2:])
        assert torch.equal(plus, minus) and plus.any()
    assert not any(m.repeats or m._drawn is not None for m in search.supernet.modules() if isinstance(m, RandomModule))


@pytest.mark.parametrize("figure", [Search.evaluate, Search.hessian], ids=["evaluate", "hessian"])
def test_evaluation_noise_is_reproducible_and_generator_unchanged(figure: Callable[[Search], object]) -> None:
    search = make()
    before = torch.get_rng_state()
    first = figure(search)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert figure(search) == first


@pytest.mark.parametrize("size", [1, 2])
def test_ranks_draw_different_reproducible_numbers(size: int) -> None:
    def draws(rank: int) -> list[float]:
        torch.manual_seed(3)
        draw_apart(World(RankInfo(rank, size)))
        return torch.rand(4).tolist()

    assert draws(0) == draws(0) and (draws(0) == draws(1)) == (size == 1)
    alone = torch.rand(4, generator=torch.Generator().manual_seed(3)).tolist()
    assert (draws(0) == alone) == (size == 1)


def test_seeded_restores_generator_after_error() -> None:
    def interrupted() -> None:
        torch.rand(3)
        raise KeyboardInterrupt

    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt), seeded(torch.device("cpu")):
        interrupted()
    assert torch.equal(torch.get_rng_state(), before)
