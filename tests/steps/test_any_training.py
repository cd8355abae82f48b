"""A step that is no bilevel one, captured, timed and planned: one network, one optimizer, a moving average."""

import logging
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdarts.optim import Precision
from fastdarts.optim.optimizers import set_rate
from fastdarts.optim.rmsprop import RMSpropTF
from fastdarts.steps import CapturedSteps, allocate_state, meta_batch, step_bytes
from fastdarts.steps.cuda_graph import refusal
from fastdarts.steps.memory import PROCESS_DEFINITION
from fastdarts.steps.memory_counter import Counted
from fastdarts.steps.stage_timer import StageTimer
from fastdarts.training.update import WeightUpdate
from tests.support import trained
from tests.support.bilevels import batch, differing, number
from tests.support.recorders import Averages, Tapes
from tests.support.trainings import Training, everything, make, network

pytestmark = pytest.mark.usefixtures("one_thread")


def tf_rmsprop(weights: list[Tensor]) -> RMSpropTF:
    return RMSpropTF(weights, 2.0**-6, weight_decay=0.01)


def on_device(training: Training | WeightUpdate) -> None:
    """Make the learning rates tensors, as on a GPU."""
    for group in training.optimizer.param_groups:
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)


# ------------------------------------------------------------------------------------------------------- captured


@pytest.mark.parametrize("optimizer", [None, tf_rmsprop], ids=["SGD", "RMSprop"])
@pytest.mark.parametrize(("recorder", "ranks"), [("repeats", False), ("tapes", False), ("tapes", True)])
def test_captured_training_is_bitwise_identical(
    recorder: str, ranks: bool, optimizer: Callable[..., Any] | None, request: pytest.FixtureRequest
) -> None:
    """Five steps with a rate that changes: the same bits, losses and moving average included."""
    request.getfixturevalue(recorder)
    averages = [Averages() if ranks else None for _ in range(2)]
    captured, plain = (make(reduce=average, optimizer=optimizer) for average in averages)
    for training in (captured, plain):
        on_device(training)
    run, losses = CapturedSteps(captured, "on"), []
    for step in range(5):
        for training in (captured, plain):
            set_rate(training.optimizer, 2.0 ** -(4 + step // 2))
        ours, theirs = (take(number(step), batch(step), None) for take in (run, plain))
        assert ours == theirs and ours[1] is None
        assert differing(everything(captured), everything(plain)) == []
        losses.append(float(ours[0]))
    assert run.captured and captured.skipped.tolist() == [0] and len(set(losses)) == 5
    assert {update: len(pieces) for update, pieces in run._graphs.items()} == {"weights": 2 if ranks else 1}
    assert differing(everything(captured), everything(make(optimizer=optimizer))) != []


@pytest.mark.parametrize("optimizer", [None, tf_rmsprop], ids=["SGD", "RMSprop"])
@pytest.mark.parametrize("ranks", [False, True], ids=["alone", "ranks"])
def test_captured_retraining_is_bitwise_identical(ranks: bool, optimizer: Callable[..., Any] | None, tapes: None) -> None:
    """A cell's network with drop path and auxiliary head, clipping and a moving average: four steps have the same bits."""
    updates = []
    for _ in range(2):
        net = trained.network(auxiliary=True)
        net.drop_path_rate.fill_(0.25)
        update = trained.update(net, 0.9, reduce=Averages() if ranks else None)
        update.optimizer = update.optimizer if optimizer is None else optimizer(update.weights)
        on_device(update)
        updates.append(update)
    captured, plain = updates
    run = CapturedSteps(captured, "on")
    for step, images in enumerate(trained.batches(4)):
        rng = torch.get_rng_state()
        ours = run(number(step), images, None)
        torch.set_rng_state(rng)  # both draw the same paths
        assert ours == plain(number(step), images, None) and bool(ours[0].isfinite())
        assert all(map(torch.equal, changed(captured), changed(plain)))
    assert run.captured and captured.skipped.tolist() == [0]


def changed(update: WeightUpdate) -> list[Tensor]:
    """Return everything that a step may change."""
    state = [t for w in update.weights for _, t in sorted(update.optimizer.state[w].items())]
    return [*update.tensors(), *state]


def test_state_created_by_warm_up_is_reset(tapes: None, caplog: pytest.LogCaptureFixture) -> None:
    """Capture alone leaves no trace: weights, momentum, statistics, moving average and the counter."""
    caplog.set_level(logging.INFO, "fastdarts")
    training = make()
    before, run = everything(training), CapturedSteps(training, "on")
    run._begin(number(0), batch(0))
    assert run._fits(batch(0), None)
    run._copy(number(0), batch(0), None)
    run._record("weights")
    assert differing(everything(training), before) == [] and training.skipped.tolist() == [0]
    assert caplog.messages == ["the update of weights is captured in a CUDA graph"]


def test_obstacles_and_unknown_optimizers_are_named(tapes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    training = make(optimizer=lambda weights: torch.optim.SGD(weights, 0.1, foreach=True))
    assert "the optimizer of the weights (torch's SGD) is not torch's fused SGD or Adam" in refusal(training)
    training = make()
    assert refusal(training) is None
    monkeypatch.setattr(training, "obstacle", lambda: "the network waits")
    run = CapturedSteps(training)
    run(number(0), batch(0), None)
    assert run.reason == "the network waits" and not Tapes.made


# ---------------------------------------------------------------------------------------------------------- timed


def test_stages_of_a_training(tapes: None) -> None:
    """Uncaptured and captured alike: a replay is its update's, the average between its pieces is no part of it."""
    for mode in ("off", "on"):
        stages, average = StageTimer(), Averages()
        training = stages.follow(make(reduce=average))
        run = CapturedSteps(training, mode)
        for step in range(2):
            run(number(step), batch(step), None)
        seconds = stages.drain()
        assert seconds.keys() == {"weights", "optimizer", "reduce"}
        assert run.captured == (mode == "on") and len(average.sizes) == 2 and min(seconds.values()) > 0


# -------------------------------------------------------------------------------------------------------- planned


class Counting(Training):
    """Training whose update allocates nothing, and whose forwards are reported."""

    counted: Counted

    def loss(self, train: Any) -> Tensor:
        self.counted.pass_begins()
        loss = super().loss(train)
        self.counted.pass_ends(loss)
        return loss

    def update(self, bad: Tensor, before: Any) -> None:
        self.optimizer.zero_grad()


def sgd(weights: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, 0.1, momentum=0.9)


def planned(
    count: int,
    *,
    width: int = 16,
    size: int = 16,
    device: str = "cuda",
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] = sgd,
    averaged: bool = False,
    ranks: bool = False,
    amp: Any = "off",
    prefetched: int = 0,
) -> int:
    """Bytes of steps with `count` images; of a GPU, where no holes of a heap come on top, unless said otherwise."""

    def made(*given: Any) -> list[Training]:
        *networks, counted = given
        state = allocate_state(optimizer(list(networks[0].parameters())))
        training = Counting(networks[0], state, *networks[1:], reduce=(lambda flat: None) if ranks else None)
        training.precision, training.counted = Precision(amp, training.device), counted
        return [lambda step, train: training(step, train, None)]

    with torch.device("meta"):
        net = network(width, 4)
    parts = [net, deepcopy(net).requires_grad_(False)] if averaged else [net]
    return step_bytes(parts, made, meta_batch(count, size), device, fused=False, amp=amp, prefetched=prefetched)


def bytes_of(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def test_training_needs_more_than_weights_and_activations() -> None:
    """Weights, gradients, momentum; pixels as numbers, and of each image two outputs of both convolutions and a ReLU."""
    weights, each = bytes_of(network(16, 4).parameters()), 4 * (3 * 16**2 + 16 * (3 * 16**2 + 2 * 7**2))
    sizes = {count: planned(count) for count in (8, 16, 32)}
    assert all(taken > 3 * weights + count * each for count, taken in sizes.items())
    assert sizes[32] < 3 * weights + 2 * 32 * each
    assert sizes[32] - sizes[16] == pytest.approx(2 * (sizes[16] - sizes[8]), rel=0.01)
    assert planned(32, device="cpu") > sizes[32]  # in a heap with holes, and the process' own


@pytest.mark.parametrize(
    ("optimizer", "tensors"),
    [
        (lambda weights: torch.optim.SGD(weights, 0.1), 0),
        (sgd, 1),
        (lambda weights: torch.optim.RMSprop(weights, 0.1), 1),
        (lambda weights: torch.optim.RMSprop(weights, 0.1, momentum=0.9), 2),
        (lambda weights: torch.optim.RMSprop(weights, 0.1, momentum=0.9, centered=True), 3),
        (lambda weights: torch.optim.AdamW(weights, 0.1), 2),
        (lambda weights: torch.optim.Adam(weights, 0.1, amsgrad=True), 3),
    ],
)
def test_optimizer_state_is_counted(optimizer: Callable[..., Any], tensors: int) -> None:
    """As many tensors like each weight as torch's optimizer makes in its first step."""
    net = network(16, 4)
    weights = list(net.parameters())
    real = optimizer(weights)
    for w in weights:
        w.grad = torch.ones_like(w)
    real.step()
    assert [sum(t.shape == w.shape for t in real.state[w].values()) for w in weights] == [tensors] * len(weights)
    stateless = planned(8, optimizer=lambda weights: torch.optim.SGD(weights, 0.1))
    assert planned(8, optimizer=optimizer) - stateless == tensors * bytes_of(weights)


def test_initial_optimizer_state_is_kept() -> None:
    class Unknown(torch.optim.Optimizer):
        def __init__(self, weights: list[Tensor]) -> None:
            super().__init__(weights, {})

    stateless = planned(8, optimizer=lambda weights: torch.optim.SGD(weights, 0.1))
    assert planned(8, optimizer=tf_rmsprop) - stateless == 2 * bytes_of(network(16, 4).parameters())
    with pytest.raises(ValueError, match=r"the state of Unknown is not known: take SGD, Adam, RMSprop, or allocate it"):
        planned(8, optimizer=Unknown)


def test_averages_prefetch_and_rank_buffers_are_counted() -> None:
    """A moving average, prefetched batches, the flat tensor that travels between ranks; half the bits take less."""
    plain, net = planned(8), network(16, 4)
    assert planned(8, averaged=True) - plain == bytes_of([*net.parameters(), *net.buffers()])
    assert planned(8, prefetched=3) - plain == 3 * bytes_of(meta_batch(8, 16))
    few = {"width": 256, "size": 4}  # pixels, so that gradients outweigh activations
    assert planned(2, ranks=True, **few) - planned(2, **few) > 0.8 * bytes_of(network(256, 4).parameters())
    assert planned(512, device="cpu", amp="bf16") < 0.75 * planned(512, device="cpu")


def test_copies_made_for_a_step_are_counted_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    """As a moving average copies its network: the parts are fake tensors under autocast."""

    def made(copy: nn.Module, counter: Counted) -> list[Callable[..., object]]:
        deepcopy(copy)
        return [lambda step, train: None]

    with torch.device("meta"):
        net = network(64, 4)
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        taken = step_bytes([net], made, meta_batch(1, 1), "cpu", fused=False, amp="bf16")
    finally:
        torch.set_warn_always(always)
    assert taken > PROCESS_DEFINITION + 2 * bytes_of(net.parameters()) and not recwarn.list


def test_prediction_keeps_parts() -> None:
    with torch.device("meta"):
        net = network(4, 4)

    def made(copy: nn.Module, counted: Counted) -> list[Callable[..., Any]]:
        assert copy is not net and next(copy.parameters()) is not next(net.parameters())
        return [lambda step, train: copy(train.images.permute(0, 3, 1, 2).float()).sum().backward()]

    assert step_bytes([net], made, meta_batch(2, 8), "cpu", fused=False) > 0
    assert all(type(p) is nn.Parameter and p.is_meta and p.grad is None for p in net.parameters())
