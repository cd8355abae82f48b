"""Captured steps without a GPU: when they are refused, and everything around the graphs, with two stand-ins for them.

One runs the work again at each replay: what is not copied in, put back or read from the device shows as a difference from
the uncaptured run. The other replays a tape of the operators, as a graph its kernels: what Python decided while recording
shows too. The graphs themselves: tests/gpu/test_cuda_graph_gpu.py.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdarts.engine import World
from fastdarts.optim.optimizers import set_rate
from fastdarts.search import Bilevel
from fastdarts.steps import CapturedSteps, CaptureError, cuda_graph, no_gpu
from fastdarts.steps.cuda_graph import WARM_UP, Recording, State, refusal
from tests.support.bilevels import MADE_OF, batch, differing, everything, make, number
from tests.support.recorders import Averages, Repeats, Tapes

pytestmark = pytest.mark.usefixtures("one_thread")


def tensor_rates(bilevel: Bilevel) -> Bilevel:
    """As on a GPU."""
    for optimizer in (bilevel.weight_optimizer, bilevel.arch_optimizer):
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float32)
    return bilevel


VARIANTS: dict[str, dict[str, Any]] = {
    "masked": {},
    "supervised": {"masked": False, "k": 1},
    "second order": {"unrolled": True, "arch_grad_clip": 5.0},
    "second order, supervised": {"unrolled": True, "masked": False},
    "random channels": {"sampling": "random", "weights_first": True},
}


@pytest.mark.parametrize("rates", ["numbers", "tensors"])
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_captured_run_is_bitwise_identical(settings: dict[str, Any], rates: str, repeats: type[Repeats]) -> None:
    """Six steps, alpha from the third on, a rate that changes: the same bits, losses included."""
    captured, plain = make(**settings), make(**settings)
    if rates == "tensors":
        captured, plain = tensor_rates(captured), tensor_rates(plain)
    run = CapturedSteps(captured, "on")
    rng = torch.get_rng_state()
    for step in range(6):
        rate = 2.0 ** -(5 + step // 2)
        for bilevel in (captured, plain):
            bilevel.weight_optimizer.param_groups[0]["lr"] = rate if rates == "numbers" else torch.tensor(rate)
        val = batch(2 * step + 1) if step >= 2 else None
        ours, theirs = (take(number(step), batch(2 * step), val) for take in (run, plain))
        assert ours == theirs
        assert differing(everything(captured), everything(plain)) == []
        assert (repeats.made[0].pieces, repeats.made[0].warmed) == ((1, WARM_UP) if step < 2 else (2, 2 * WARM_UP))
    assert run.captured and run.reason is None and len(repeats.made) == 1
    assert torch.equal(torch.get_rng_state(), rng)
    assert captured.skipped.tolist() == [0, 0]


@pytest.mark.parametrize("begin", [0, 2])
@pytest.mark.parametrize("settings", (VARIANTS | MADE_OF).values(), ids=VARIANTS | MADE_OF)
def test_taped_run_is_bitwise_identical(settings: dict[str, Any], begin: int, tapes: None) -> None:
    """Five steps, alpha from the first or the third on, a rate that changes in place: the same bits, losses included."""
    captured, plain = (tensor_rates(make(**settings)) for _ in range(2))
    run = CapturedSteps(captured, "on")
    for step in range(5):
        for bilevel in (captured, plain):
            set_rate(bilevel.weight_optimizer, 2.0 ** -(5 + step // 2))
        val = batch(2 * step + 1) if step >= begin else None
        rng = torch.get_rng_state()
        ours = run(number(step), batch(2 * step), val)
        drawn = torch.get_rng_state()
        torch.set_rng_state(rng)  # what either draws, noise or dropout, is the same
        theirs = plain(number(step), batch(2 * step), val)
        assert ours == theirs and torch.equal(torch.get_rng_state(), drawn)
        assert differing(everything(captured), everything(plain)) == []
    assert run.captured and captured.skipped.tolist() == [0, 0]


@pytest.mark.parametrize("begin", [0, 2])
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_updates_are_split_at_rank_averages(settings: dict[str, Any], begin: int, tapes: None) -> None:
    """Graph, average, graph: five steps on tape are the five steps; a graph more for each average of an update."""
    averages = Averages(), Averages()
    captured, plain = (tensor_rates(make(reduce=reduce, **settings)) for reduce in averages)
    run = CapturedSteps(captured, "on")
    for step in range(5):
        val = batch(2 * step + 1) if step >= begin else None
        ours, theirs = (take(number(step), batch(2 * step), val) for take in (run, plain))
        assert ours == theirs
        assert differing(everything(captured), everything(plain)) == []
    assert averages[0].sizes == averages[1].sizes  # the warm-up and the capture average nothing
    pieces = {part: len(graphs) for part, graphs in run._graphs.items()}
    assert pieces == {"weights": 2, "alpha": 4 if settings.get("unrolled") else 2}
    assert len(averages[0].sizes) == 5 + (5 - begin) * (pieces["alpha"] - 1)
    weights = sum(w.numel() for w in captured.weights)
    assert max(averages[0].sizes) > weights  # all gradients of the weights travel at once


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_failed_capture_of_later_piece_is_undone(
    fails_at: int, tapes: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the weights placed elsewhere for the second order: nothing of the half-captured update remains."""
    caplog.set_level(logging.INFO, "fastdarts")
    captured, plain = (tensor_rates(make(reduce=Averages(), unrolled=True)) for _ in range(2))
    original = Tapes.capture

    def fails(self: Tapes, work: Callable[[], Tensor]) -> Recording:
        if self.pieces + 1 == 2 + fails_at:  # after the two pieces of the weights
            work()  # a capture runs nothing; what is left behind is garbage
            raise RuntimeError("operation not permitted when stream is capturing")
        return original(self, work)

    monkeypatch.setattr(Tapes, "capture", fails)
    run = CapturedSteps(captured)
    for step in range(3):
        arguments = number(step), batch(2 * step), batch(2 * step + 1)
        assert run(*arguments) == plain(*arguments)
        assert differing(everything(captured), everything(plain)) == []
    assert "capturing the update of alpha failed" in run.reason and not run.captured


def test_synchronised_batch_norm_is_not_captured(repeats: type[Repeats]) -> None:
    bilevel = make()
    bilevel.supernet.synchronise(World())
    assert refusal(bilevel) == "BatchNorm's sums are synchronised between the ranks within the forward pass"


def test_skipped_update_in_replay_changes_no_state(tapes: None) -> None:
    """NaN comes from the device, after the capture: nothing remains of that step."""
    captured, factor = tensor_rates(make(unrolled=True)), torch.ones(())
    captured.supernet.cells[0].register_forward_hook(lambda _, __, out: out * factor)
    run = CapturedSteps(captured, "on")
    run(number(0), batch(0), batch(1))
    before = everything(captured)
    factor.fill_(torch.nan)
    assert not any(map(torch.isfinite, run(number(1), batch(2), batch(3))))
    assert differing(everything(captured), before) == [] and captured.skipped.tolist() == [1, 1]
    factor.fill_(1.0)
    assert all(map(torch.isfinite, run(number(1), batch(2), batch(3))))


def test_synchronisation_during_capture_is_rejected(tapes: None) -> None:
    bilevel = make()
    hook = bilevel.supernet.cells[0].register_forward_hook(lambda _, __, out: out * float(out.isfinite().all()))
    run = CapturedSteps(bilevel)
    run(number(0), batch(0), batch(1))
    hook.remove()
    assert "operation not permitted when stream is capturing" in run.reason and not run.captured


def test_losses_are_copied_per_step(repeats: type[Repeats]) -> None:
    """A graph writes its loss to one place; a search keeps an epoch's losses."""
    run = CapturedSteps(make())
    losses = [run(number(step), batch(2 * step), batch(2 * step + 1)) for step in range(3)]
    assert len({float(loss) for pair in losses for loss in pair}) == 6


def test_batch_of_other_size_runs_uncaptured(repeats: type[Repeats], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastdarts")
    captured, plain = make(), make()
    run = CapturedSteps(captured)
    for step, count in enumerate((6, 4, 4, 6)):
        arguments = number(step), batch(2 * step, count), batch(2 * step + 1, count)
        assert run(*arguments) == plain(*arguments)
    assert differing(everything(captured), everything(plain)) == []
    assert sum("batch of 4 images does not have the captured size" in m for m in caplog.messages) == 1


def test_skipped_update_inside_replay(repeats: type[Repeats]) -> None:
    """A non-finite loss in a replayed step changes no parameters, buffers or optimizer state."""
    captured = make()
    run = CapturedSteps(captured)
    run(number(0), batch(0), batch(1))
    before = everything(captured)
    hook = captured.supernet.cells[0].register_forward_hook(lambda _, __, out: out * torch.nan)
    losses = run(number(1), batch(2), batch(3))
    hook.remove()
    assert not any(map(torch.isfinite, losses))
    assert differing(everything(captured), before) == [] and captured.skipped.tolist() == [1, 1]
    assert all(map(torch.isfinite, run(number(1), batch(2), batch(3))))


def test_capturable_flag_is_set_only_during_capture(repeats: type[Repeats], monkeypatch: pytest.MonkeyPatch) -> None:
    bilevel = make()
    group = bilevel.arch_optimizer.param_groups[0]
    seen = []
    plain = Repeats.capture
    monkeypatch.setattr(Repeats, "capture", lambda *args: (seen.append(group["capturable"]), plain(*args))[1])
    CapturedSteps(bilevel)(number(0), batch(0), batch(1))
    assert seen == [True, True] and group["capturable"] is False


# -------------------------------------------------------------------------------------------------------- refusals


def test_missing_gpu_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastdarts")
    captured, plain = make(), make()
    run = CapturedSteps(captured)
    for step in range(3):
        arguments = number(step), batch(2 * step), batch(2 * step + 1)
        assert run(*arguments) == plain(*arguments)
    assert differing(everything(captured), everything(plain)) == []
    assert [m for m in caplog.messages if "graph" in m.lower()] == [
        "steps are not captured in CUDA graphs: CUDA graphs need a GPU, this runs on cpu"
    ]
    assert run.reason == no_gpu(torch.device("cpu")) and not run.captured


def test_cuda_graph_on_without_gpu_raises() -> None:
    with pytest.raises(CaptureError, match="cannot be captured in a CUDA graph: CUDA graphs need a GPU, this runs on cpu"):
        CapturedSteps(make(), "on")(number(0), batch(0), batch(1))


def test_cuda_graph_off_logs_nothing(caplog: pytest.LogCaptureFixture, repeats: type[Repeats]) -> None:
    caplog.set_level(logging.INFO, "fastdarts")
    run = CapturedSteps(make(), "off")
    run(number(0), batch(0), batch(1))
    assert not run.captured and not repeats.made and not [m for m in caplog.messages if "graph" in m.lower()]


def test_gpu_gives_no_refusal() -> None:
    assert no_gpu(torch.device("cuda:1")) is None


def test_unknown_optimizer_is_not_captured(repeats: type[Repeats]) -> None:
    bilevel = make()
    assert refusal(bilevel) is None
    bilevel.arch_optimizer = torch.optim.RMSprop(bilevel.relaxation.parameters())
    assert refusal(bilevel).startswith("the optimizer of alpha (torch's RMSprop) is not torch's fused SGD or Adam")
    bilevel = make()
    bilevel.weight_optimizer = torch.optim.SGD(bilevel.weights, 0.1, foreach=True)
    assert "the optimizer of the weights (torch's SGD)" in refusal(bilevel)
    run = CapturedSteps(bilevel)
    run(number(0), batch(0), batch(1))
    assert not repeats.made and "fused SGD" in run.reason


@pytest.mark.parametrize("broken", ["warm_up", "capture"])
@pytest.mark.parametrize("part", ["alpha", "weights"])
def test_failed_capture_continues_uncaptured(
    part: str, broken: str, repeats: type[Repeats], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it is noticed in the warm-up or only by the capture, in the first graph or in the second: the run is the run."""
    caplog.set_level(logging.INFO, "fastdarts")
    captured, plain = make(unrolled=True), make(unrolled=True)
    which = 1 if part == "weights" else 2  # the second order wants the weights' update first

    def waits(self: Repeats, work: Callable[[], Tensor]) -> str | None:
        self.calls = getattr(self, "calls", 0) + 1
        work()
        return "something in the step waits for the device" if self.calls == which else None

    def fails(self: Repeats, work: Callable[[], Tensor]) -> Recording:
        if self.pieces + 1 < which:
            return original(self, work)
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")  # as torch.cuda.graph ends

    original = Repeats.capture
    monkeypatch.setattr(Repeats, broken, waits if broken == "warm_up" else fails)
    run = CapturedSteps(captured)
    for step in range(3):
        arguments = number(step), batch(2 * step), batch(2 * step + 1)
        assert run(*arguments) == plain(*arguments)
    assert differing(everything(captured), everything(plain)) == []
    why = "waits for the device" if broken == "warm_up" else f"the update of {part} failed: operation not permitted when stream"
    assert why in run.reason and "\n" not in run.reason and not run.captured
    assert sum("steps are not captured" in m for m in caplog.messages) == 1
    assert all(p.grad is None for p in [*captured.weights, *captured.relaxation.parameters()])
    with pytest.raises(CaptureError, match="cannot be captured"):
        CapturedSteps(make(unrolled=True), "on")(*arguments)


@pytest.mark.parametrize("ended", [False, True])
def test_aborted_capture_is_cleaned_up(ended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is given back once, and a capture that ends well comes after it; nothing where this one had ended."""
    recorder = object.__new__(cuda_graph.Recorder)
    recorder.device, recorder.stream, recorder.pool = torch.device("cpu"), None, (0, 7)
    done = []

    def end(*pool: Any) -> None:
        if ended:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        done.append("end")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *pool: done.append("release"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda _, **how: done.append("capture") or nullcontext())
    recorder._abandon()
    assert done == ([] if ended else ["end", "release", "capture"])


def test_failed_warm_up_changes_no_state(repeats: type[Repeats]) -> None:
    """Out of memory, say: that is the step's own failure, and the user's to hear of."""
    bilevel = make()
    bilevel(number(0), batch(0), batch(1))
    before, calls = everything(bilevel), []
    plain = bilevel.objective.forward

    def failing(*args: Any) -> Tensor:
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return plain(*args)

    bilevel.objective.forward = failing
    run = CapturedSteps(bilevel)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(number(1), batch(2), batch(3))
    assert differing(everything(bilevel), before) == [] and run.reason is None


def test_too_little_memory_for_both_graphs_continues_uncaptured(
    tapes: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first update's graph keeps what a step takes: the second one's warm-up may not find as much."""
    captured, plain = (tensor_rates(make()) for _ in range(2))
    run = CapturedSteps(captured)
    for take in (run, plain):
        take(number(0), batch(0), None)
    assert run.captured
    monkeypatch.setattr(Tapes, "warm_up", lambda self, work: _out_of_memory())
    with caplog.at_level(logging.INFO, "fastdarts"):
        for step in (1, 2):
            ours, theirs = (take(number(step), batch(2 * step), batch(2 * step + 1)) for take in (run, plain))
            assert ours == theirs and differing(everything(captured), everything(plain)) == []
    assert not run.captured
    assert caplog.text.count("not enough memory for the update of alpha in addition to the other update's graph") == 1
    with pytest.raises(torch.OutOfMemoryError):  # the step itself does not fit
        CapturedSteps(make())(number(0), batch(0), None)


def _out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_state_is_restored_exactly() -> None:
    bilevel = make(amp="fp16")
    bilevel.weight_step(number(0), batch(0))
    state, before = State(bilevel), everything(bilevel)
    scale, rng = bilevel.precision.scale.value.clone(), torch.get_rng_state()
    addresses = {n: t.data_ptr() for n, t in bilevel.supernet.state_dict().items()}
    with torch.no_grad():
        torch.rand(3)
        bilevel.precision.scale.value.mul_(0.25)
        bilevel.skipped.add_(3)
        for p in [*bilevel.weights, *bilevel.relaxation.parameters(), *bilevel.supernet.buffers()]:
            p.add_(1)
    bilevel.arch_step(number(1), batch(2), batch(3))
    state.put_back()
    assert differing(everything(bilevel), before) == []
    assert torch.equal(bilevel.precision.scale.value, scale) and bilevel.skipped.tolist() == [0, 0]
    assert torch.equal(torch.get_rng_state(), rng)
    assert addresses == {n: t.data_ptr() for n, t in bilevel.supernet.state_dict().items()}
