"""Several ranks search as one process would: equal to the bit among themselves, to rounding with a single process.

By gloo on the CPU. tests/gpu/test_distributed_gpu.py has NCCL; speed on several GPUs is nobody's claim here.
"""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.engine import PeerError, RankInfo, RankLost, RanksDisagree, World, WorldError
from fastdarts.engine.distributed import _of_this_start, checksum
from fastdarts.ops.batch_norm import batch_norm
from fastdarts.runs import plans
from fastdarts.search import Hooks, Search
from fastdarts.settings import SearchImagenetSettings, SearchSettings
from tests.ops.exactness import assert_exact
from tests.support import ranks
from tests.support.backends import needs_native
from tests.support.bilevels import batch, differing, everything, make, number
from tests.support.ranks import SMALL, Pool, bilevel, pool, share, steps
from tests.support.runs import free_port

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = {"dtype": torch.float64, "backend": "definition", "space": SMALL}


@pytest.fixture(scope="module")
def four() -> Iterator[Pool]:
    with pool(4) as made:
        yield made


FUSED = {"dtype": torch.float64, "backend": "cpu"}
VARIANTS: dict[str, dict[str, Any]] = {
    "masked, random channels": FUSED | {"sampling": "random", "arch_grad_clip": 5.0},
    "masked, second order": FUSED | {"unrolled": True, "weights_first": True},
    "supervised, second order, by the definitions": EXACT | {"unrolled": True, "masked": False, "k": 1},
}


def check_number_of_ranks(settings: dict[str, Any], four: Pool, count: int, tolerance: float) -> None:
    """float64, BatchNorm over all ranks: weights, alpha, momenta, running statistics and losses after `count` steps."""
    want, losses = steps(World(), count, 2, True, settings)
    for size in (2, 4):
        results = four(size, steps, count, 2, True, settings)
        for got, _ in results[1:]:
            assert differing(got, results[0][0]) == []
        got, mine = results[0]
        assert got.keys() == want.keys()
        for name, tensor in want.items():
            if tensor.is_floating_point():
                scale = float(tensor.abs().max().clamp(min=1.0)) if tensor.numel() else 1.0
                assert not tensor.numel() or float((got[name] - tensor).abs().max()) <= tolerance * scale, name
            else:
                assert torch.equal(got[name], tensor), name
        assert mine == pytest.approx(losses, rel=tolerance)


@needs_native
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_search_does_not_depend_on_number_of_ranks(settings: dict[str, Any], four: Pool) -> None:
    """After two updates of weights only and two of weights and alpha."""
    check_number_of_ranks(settings, four, 4, 1e-12)


@needs_native
@pytest.mark.campaign
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_twenty_steps_do_not_depend_on_number_of_ranks(settings: dict[str, Any], four: Pool) -> None:
    check_number_of_ranks(settings, four, 20, 1e-9)


@needs_native
@pytest.mark.parametrize("unrolled", [False, True])
def test_ranks_are_bitwise_equal(unrolled: bool, four: Pool) -> None:
    """float32 through the fused kernels, BatchNorm over each rank's own images; alone, the same code goes another way."""
    for size in (2, 4):
        results = four(size, steps, 3, 1, False, {"unrolled": unrolled})
        for got, losses in results[1:]:
            assert differing(got, results[0][0]) == [] and losses == results[0][1]
    alone, _ = steps(World(), 3, 1, False, {"unrolled": unrolled})
    assert differing(alone, results[0][0])


def test_float32_step_is_as_exact_as_eager(four: Pool) -> None:
    """Gradients of both updates (as momentum and Adam's moment hold them) of two ranks, of one, and in float64."""
    settings = EXACT | {"dtype": torch.float32}

    def moments(named: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: t for n, t in named.items() if n.endswith(("momentum_buffer", "exp_avg")) and t.numel()}

    reference = moments(steps(World(), 1, 0, True, EXACT)[0])
    eager = moments(steps(World(), 1, 0, True, settings)[0])
    mine = moments(four(2, steps, 1, 0, True, settings)[0][0])
    assert_exact(mine, [eager], reference, torch.float32)


def gradients_of_shares(world: World, size: int) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Of the weights, each share of the batch on its own; the mean of the losses; the running statistics after each."""
    grads, losses, statistics = [], [], []
    for rank in range(size):
        one = make(**EXACT)
        mine = share(batch(0, 8), World(RankInfo(rank, size)))
        loss = one._train_loss(number(0), mine)
        loss.backward(inputs=one.weights)
        grads.append(torch.cat([w.grad.flatten() for w in one.weights if w.grad is not None]))
        losses.append(loss.detach())
        statistics.append(torch.cat([b.flatten() for b in one.supernet.buffers() if b.is_floating_point()]))
    return grads, torch.stack(losses).mean(), statistics


def one_step(world: World) -> tuple[Tensor, Tensor, Tensor]:
    made, seen = bilevel(world, False, grad_clip=0.0, **EXACT), []
    made.weight_optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([w.grad.flatten() for w in made.weights if w.grad is not None]))
    )
    loss, _ = made(number(0), share(batch(0, 8), world), None)
    return seen[0], loss, torch.cat([b.flatten() for b in made.supernet.buffers() if b.is_floating_point()])


def test_gradient_is_mean_over_shares(four: Pool) -> None:
    """Against shares that are differentiated one by one; so are loss and running statistics."""
    grads, loss, statistics = gradients_of_shares(World(), 4)
    for got, mine, buffers in four(4, one_step):
        torch.testing.assert_close(got, torch.stack(grads).mean(0), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(buffers, torch.stack(statistics).mean(0), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(mine, loss, rtol=1e-12, atol=0)
    assert float((grads[0] - grads[1]).abs().max()) > 1e-3  # the shares do differ


def normalised(world: World) -> dict[str, Tensor]:
    """BatchNorm of this rank's images, its gradients, and the gradient of a function of those, running statistics too."""
    g = torch.Generator().manual_seed(5)
    x, by, again = (torch.randn(8, 3, 4, 2, generator=g, dtype=torch.float64) for _ in range(3))
    x, by, again = (t[world.rank :: world.size].contiguous() for t in (3 * x + 7, by, again))
    scale, shift = (torch.randn(3, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2))
    running = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    x.requires_grad_()
    out = batch_norm(x, running, True, 0.1, 1e-5, None if world.is_single else world, scale, shift)
    first = torch.autograd.grad((out * by).square().sum(), [x, scale, shift], create_graph=True)
    (second,) = torch.autograd.grad((first[0] * again).square().sum(), x)
    named = dict(zip(("d x", "d scale", "d shift"), first, strict=True)) | {"out": out, "d d x": second}
    return {n: t.detach() for n, t in named.items()} | {"mean": running[0], "var": running[1]}


def test_synchronised_batch_norm_covers_all_images(four: Pool) -> None:
    want = normalised(World())
    for size in (2, 4):
        results = four(size, normalised)
        for name in ("out", "d x", "d d x"):
            got = torch.stack([r[name] for r in results], 1).flatten(0, 1)
            torch.testing.assert_close(got, want[name], rtol=1e-11, atol=1e-11)
        for name in ("d scale", "d shift"):
            torch.testing.assert_close(sum(r[name] for r in results), want[name], rtol=1e-11, atol=1e-11)
        for result in results:
            for name in ("mean", "var"):
                torch.testing.assert_close(result[name], want[name], rtol=1e-13, atol=0)


class Shares:
    """An endless loader of this rank's shares."""

    def __init__(self, first: int, world: World) -> None:
        self.given, self.world = first, world

    def __len__(self) -> int:
        return 2

    def __next__(self) -> Batch:
        self.given += 2
        return share(batch(self.given, 8), self.world)

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}


def searched(world: World) -> tuple[list[dict[str, Any]], int]:
    """The records of a search of two epochs, and the images that its steps report."""
    made, images = bilevel(world, True, **EXACT), []
    evaluation = [share(batch(100 + count, count), world) for count in (8, 5)]
    search = Search(
        made.supernet,
        made.objective,
        Shares(0, world),
        Shares(1, world),
        SearchSettings(epochs=2, begin=1, warmup_epochs=0, learning_rate=0.02, hessian_every=1),
        eval_loader=evaluation,
        ranks=None if world.is_single else world,
    )
    clock, hooks = ("seconds", "input_seconds", "images_per_s"), Hooks(lambda report: images.append(report.images))
    return [{n: v for n, v in record.items() if n not in clock} for record in search.epochs(hooks)], sum(images)


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict | list):
        return [leaf for part in (value.values() if isinstance(value, dict) else value) for leaf in leaves(part)]
    return [value]


def test_epoch_record_covers_all_images(four: Pool) -> None:
    """Losses, evaluation over unequal shares, the Hessian's eigenvalue, alpha: the same on all ranks, and as on one."""
    want, images = searched(World())
    results = four(2, searched)
    assert results[0] == results[1] and results[0][1] == images == 6 * 8
    for got, record in zip(results[0][0], want, strict=True):
        assert got.keys() == record.keys() and got["valid"].keys() == {"loss", "baseline"}
        for mine, theirs in zip(leaves(got), leaves(record), strict=True):
            assert mine == (pytest.approx(theirs, rel=1e-6, abs=1e-9) if isinstance(theirs, float) else theirs)


def nan_on_rank_one(world: World, unrolled: bool) -> tuple[list[str], list[int], bool]:
    made, factor = bilevel(world, False, unrolled=unrolled), torch.ones(())
    made.supernet.cells[0].register_forward_hook(lambda _, __, out: out * factor)
    made(number(0), share(batch(0, 8), world), share(batch(1, 8), world))
    before = everything(made)
    if world.rank == 1:
        factor.fill_(torch.nan)
    losses = made(number(1), share(batch(2, 8), world), share(batch(3, 8), world))
    return differing(everything(made), before), made.skipped.tolist(), any(map(bool, map(torch.isfinite, losses)))


@pytest.mark.parametrize("unrolled", [False, True])
def test_non_finite_update_on_one_rank_is_skipped_on_all(unrolled: bool, four: Pool) -> None:
    assert four(2, nan_on_rank_one, unrolled) == [([], [1, 1], False)] * 2


def meetings(world: World) -> list[Any]:
    """What each rank gets of the ways to meet."""

    def outcome(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except (ValueError, PeerError, WorldError) as error:
            return type(error).__name__, str(error)

    def fails(where: bool, message: str) -> int:
        if where:
            raise ValueError(message)
        return world.rank

    weights = [torch.full((2, 3), float(world.rank)), torch.full((), world.rank)]
    world.broadcast(weights)
    total = torch.tensor([float(world.rank)])
    world.average(total)
    return [
        world.agree(15 * (world.rank == 2), world.rank == 0),
        world.agree(0, world.rank == 2),
        world.gather(10 * world.rank),
        world.on_rank_zero(lambda: "found", lambda text: text.upper()),
        outcome(lambda: world.on_rank_zero(lambda: fails(True, "no such folder"))),
        outcome(lambda: world.on_all_ranks(lambda: world.rank)),
        outcome(lambda: world.on_all_ranks(lambda: fails(world.rank in (1, 2), "no GPU"))),
        outcome(lambda: world.on_all_ranks(lambda: fails(world.rank > 0, f"of {world.rank}"))),
        outcome(lambda: world.compare({"--seed": 3, "--momentum": 0.9 - 0.1 * (world.rank == 2)})),
        sum(float(w.sum()) for w in weights),
        float(total),
    ]


def test_barriers_and_gathers(four: Pool) -> None:
    """Results and errors of agree, gather, on_rank_zero, on_all_ranks and compare on three ranks."""
    elsewhere = ("PeerError", "another rank could not start")
    differ = ("WorldError", "rank 2 was started differently from rank 0: --momentum is 0.8 there, 0.9 on rank 0")
    for rank, got in enumerate(four(3, meetings)):
        assert got[:4] == [(15, True), (0, False), [0, 10, 20], "FOUND" if rank else "found"]
        assert got[4] == (("PeerError", "rank 0 could not start") if rank else ("ValueError", "no such folder"))
        assert got[5] == rank
        assert got[6] == (("ValueError", "no GPU") if rank == 1 else elsewhere)  # the same error is said once
        assert got[7] == (("ValueError", f"of {rank}") if rank else elsewhere)
        assert got[8:] == [differ, 0.0, 1.0]


def may_take(world: World) -> int:
    """Of ranks 0 and 1, which share a GPU with 80 bytes, and rank 2, which has one with 60."""
    planned_with, plans.steps = plans.steps, SimpleNamespace(free_bytes=lambda _: (80, 80, 60)[world.rank])
    try:
        return plans.free_for(SearchImagenetSettings(device=("cuda:0", "cuda:0", "cuda:1")[world.rank]), world).bytes
    finally:
        plans.steps = planned_with


def test_ranks_on_one_device_share_its_memory(four: Pool) -> None:
    assert four(3, may_take) == [40, 40, 40]


def drift(world: World) -> tuple[int, str]:
    """Rank 1 changes the last bit of one weight and of alpha before the third step; every second one is compared."""
    made = bilevel(world, False)
    named = dict(made.supernet.named_parameters()) | {"alpha normal": made.relaxation.alpha["normal"]}
    for step in range(5):
        if world.rank == 1 and step == 2:
            for name in ("cells.0._ops.weights", "alpha normal"):
                with torch.no_grad():
                    named[name].view(-1).view(torch.int32)[1] ^= 1
        made(number(step), share(batch(step, 8), world), None)
        try:
            if step % 2:
                world.check_equal(named, f"after step {step + 1}")
        except RanksDisagree as error:
            return step, str(error)
    return -1, ""


def test_diverged_ranks_are_named(four: Pool) -> None:
    for step, message in four(3, drift):
        assert step == 3
        assert message.startswith("after step 4, ranks hold different values: rank 1 in ")
        assert "cells.0._ops.weights" in message or " more of " in message  # the next step carried it everywhere
        assert "rank 2" not in message and "rank 0" not in message


def test_checksum_detects_any_changed_word() -> None:
    t = torch.randn(3, 4, 5, 5).to(memory_format=torch.channels_last)
    before = checksum(t)
    assert torch.equal(checksum(t.contiguous()), before)
    t[1, 2, 3, 4] = torch.nextafter(t[1, 2, 3, 4], torch.tensor(9.0))
    assert not torch.equal(checksum(t), before)
    assert not torch.equal(checksum(torch.tensor([1.0, 2.0])), checksum(torch.tensor([2.0, 1.0])))
    assert torch.equal(checksum(torch.empty(0)), torch.zeros((), dtype=torch.int64))


def waits_for_the_other(world: World, seconds: float) -> tuple[str, float]:
    started = time.monotonic()
    if world.rank == 1:
        time.sleep(seconds)
        return "", 0.0
    try:
        world.average(torch.ones(1000))
    except RankLost as error:
        return str(error), time.monotonic() - started
    return "", 0.0


def test_unresponsive_rank_is_lost_within_timeout() -> None:
    with pool(2, timeout=2.0) as two:
        message, seconds = two(2, waits_for_the_other, 4.0)[0]
    assert message.startswith("rank 0 of 2 lost the others while summing over the ranks: a rank has exited, or the network")
    assert 1.0 < seconds < 4.0


def test_ended_rank_is_not_waited_for() -> None:
    store = dist.HashStore()
    one, two = (World(RankInfo(rank, 2), store=store) for rank in range(2))
    two._leave()
    with pytest.raises(RankLost, match=r"rank 0 of 2 lost the others while meeting: .*\(rank 1 has ended\)"):
        one.on_all_ranks(lambda: 5)


def test_single_process_does_not_communicate() -> None:
    world, flat = World(), torch.arange(3.0)
    world.average(flat)
    assert flat.tolist() == [0.0, 1.0, 2.0] and world.is_single and world.is_main
    assert world.on_rank_zero(lambda: 5) == world.on_all_ranks(lambda: 5) == 5 and world.gather(7) == [7]
    assert world.agree(15, True) == (15, True)
    world.wait()
    world.compare({})


def test_rank_info_follows_torchrun_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert RankInfo.of_environment() == RankInfo() and RankInfo().threads() == torch.get_num_threads()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(WorldError, match="not LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT: start several"):
        RankInfo.of_environment()
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    assert RankInfo.of_environment() == RankInfo(3, 4, 1, 1) and RankInfo.of_environment().prefix == "[rank 3] "
    monkeypatch.setenv("RANK", "three")
    with pytest.raises(WorldError, match="must be integers"):
        RankInfo.of_environment()
    assert RankInfo(0, 64, 0, 64).threads() == max(1, len(os.sched_getaffinity(0)) // 64)


def test_missing_ranks_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with (
        pytest.raises(WorldError, match=r"2 ranks did not all connect to 127\.0\.0\.1:\d+ within 1 seconds"),
        World.join(RankInfo(0, 2, 0, 2), "cpu", 1.0),
    ):
        pass
    with pytest.raises(WorldError, match="NCCL needs GPUs"), World.join(RankInfo(0, 2, 0, 2), "cpu", 1.0, "nccl"):
        pass


def test_keys_of_earlier_start_are_ignored() -> None:
    """Two starts over one store, in threads: each has a part of its own, and the second is not met by the first one's rank."""
    store, limit, names = dist.HashStore(), timedelta(seconds=20), []
    for _ in range(2):
        with ThreadPoolExecutor(3) as threads:
            parts = list(threads.map(lambda rank: _of_this_start(store, RankInfo(rank, 3), limit), range(3)))
        parts[0].set("address", "mine")
        assert [part.get("address") for part in parts] == [b"mine"] * 3
        names.append(parts[0])
    names[0].set("address", "old")
    assert names[1].get("address") == b"mine"
    with pytest.raises(dist.DistStoreError, match="some ranks did not arrive"):
        _of_this_start(store, RankInfo(0, 3), timedelta(seconds=0.2))


def test_harness_reports_errors_of_ranks(four: Pool) -> None:
    """The harness: an error on a rank is an error of the test."""
    with pytest.raises(AssertionError, match="'str' object has no attribute 'skeleton'"):
        four(2, ranks.steps, 1, 0, False, {"space": "no space"})
