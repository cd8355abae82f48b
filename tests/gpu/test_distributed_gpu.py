"""Ranks on a GPU: NCCL in a world of one, captured between its averages, and two gloo ranks that share the GPU."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastdarts.engine import RankInfo, World
from fastdarts.steps import CapturedSteps
from tests.support import bilevels
from tests.support.bilevels import differing, everything
from tests.support.ranks import Pool, bilevel, pool, share
from tests.support.runs import free_port

pytestmark = pytest.mark.gpu

STEPS = 5
VARIANTS: dict[str, dict[str, Any]] = {
    "masked": {"sampling": "random"},
    "second order": {"unrolled": True, "arch_grad_clip": 5.0},
    "supervised": {"masked": False, "k": 1},
}


def run(world: World, capture: bool, settings: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list[float], str | None]:
    """STEPS steps of a rank's shares in float64, alpha from the third on: what they changed, losses, why not captured."""
    made, losses = bilevel(world, False, device="cuda", dtype=torch.float64, **settings), []
    if made.reduce is None:
        made.reduce = world.average  # a world of one averages, too: the same pieces
    steps = CapturedSteps(made, "on" if capture else "off")
    for step in range(STEPS):
        train, val = (share(bilevels.batch(2 * step + i, 8), world).to("cuda") for i in range(2))
        given = steps(bilevels.number(step, "cuda"), train, val if step >= 2 else None)
        losses += [float(loss) for loss in given if loss is not None]
    return {n: t.cpu() for n, t in everything(made).items()}, losses, steps.reason


def by_nccl(settings: dict[str, Any], port: int) -> list[str]:
    """What a captured run between NCCL's averages leaves otherwise than an uncaptured one, beyond rounding."""
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    world = World(RankInfo(), backend="nccl")
    (captured, mine, why), (plain, theirs, _) = (run(world, capture, settings) for capture in (True, False))
    dist.destroy_process_group()
    assert why is None and mine == pytest.approx(theirs, rel=1e-9)
    return [
        name
        for name, want in plain.items()
        if want.numel() and not torch.allclose(captured[name].double(), want.double(), rtol=1e-9, atol=1e-12)
    ]


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_captured_steps_with_nccl_averages(settings: dict[str, Any]) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        assert process.submit(by_nccl, settings, free_port()).result() == []


@pytest.fixture(scope="module")
def two() -> Iterator[Pool]:
    with pool(2) as made:
        yield made


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_two_gloo_ranks_on_one_gpu_are_bitwise_equal(settings: dict[str, Any], capture: bool, two: Pool) -> None:
    (mine, losses, _), (theirs, others, why) = two(2, run, capture, settings)
    assert differing(mine, theirs) == [] and losses == others
    assert (why is None) == capture


def synchronised(world: World) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Two steps in float32 through the Triton kernels, BatchNorm over the images of all ranks."""
    made, losses = bilevel(world, True, device="cuda", backend="triton"), []
    for step in range(2):
        train, val = (share(bilevels.batch(2 * step + i, 8), world).to("cuda") for i in range(2))
        losses += [float(loss) for loss in made(bilevels.number(step, "cuda"), train, val) if loss is not None]
    return {n: t.cpu() for n, t in everything(made).items()}, losses


def test_synchronised_kernels_of_two_gloo_ranks_on_one_gpu(two: Pool) -> None:
    (mine, losses), (theirs, others) = two(2, synchronised)
    assert differing(mine, theirs) == [] and losses == others
    _, alone = synchronised(World())
    assert losses == pytest.approx(alone, rel=1e-4)
