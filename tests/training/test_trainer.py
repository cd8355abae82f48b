"""A retraining: loss by hand, guarded updates, moving average, exact resume, ranks, evaluation."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastdarts.engine import World
from fastdarts.optim import Precision
from fastdarts.protocols import DivergedError, Hooks, StepReport
from fastdarts.training.evaluation import evaluate
from fastdarts.training.moving_average import MovingAverage
from fastdarts.training.results import results
from tests.support.ranks import Pool, pool
from tests.support.trained import CLASSES, batches, network, tensors, trainer, update

pytestmark = pytest.mark.usefixtures("one_thread")

STEP = torch.tensor([0])


@pytest.fixture(scope="module")
def ranks() -> Iterator[Pool]:
    with pool(2) as made:
        yield made


class Interrupted(Exception):
    pass


def after(steps: int) -> Hooks:
    """Return hooks that interrupt after that step."""

    def on_step(report: StepReport) -> None:
        if report.step == steps:
            raise Interrupted

    return Hooks(on_step)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_loss_and_update_match_hand_computation(auxiliary: bool) -> None:
    """Smoothed cross entropy plus 0.4 times the auxiliary head's; one clipped SGD step with decay on everything."""
    net = network(auxiliary, torch.float64)
    plain = copy.deepcopy(net).train()
    made = update(net.train(), label_smoothing=0.1, grad_clip=0.5)
    (batch,) = batches()
    out = plain(made.prepare.train(batch, STEP, torch.float64))
    loss = F.cross_entropy(out.logits, batch.labels, label_smoothing=0.1)
    if auxiliary:
        loss = loss + 0.4 * F.cross_entropy(out.auxiliary, batch.labels, label_smoothing=0.1)
    assert (out.auxiliary is not None) == auxiliary
    parameters = list(plain.parameters())
    grads = torch.autograd.grad(loss, parameters)
    norm = torch.stack([g.norm() for g in grads]).norm()
    found, _ = made(STEP, batch)
    assert torch.allclose(found, loss, rtol=1e-12)
    for now, before, g in zip(net.parameters(), parameters, grads, strict=True):
        moved = before - 0.05 * (g * min(1.0, 0.5 / float(norm + 1e-6)) + 3e-4 * before)
        assert torch.allclose(now, moved, rtol=1e-9, atol=1e-12)


def test_non_finite_loss_skips_update_without_trace() -> None:
    """Weights, momentum and BatchNorm's statistics keep their values; the count says one."""
    made = trainer(1)
    made.network.train()
    (batch,) = batches()
    made.update(STEP, batch)
    before = {name: t.clone() for name, t in tensors(made).items()}
    made.update.prepare = made.update.prepare._replace(mean=(float("nan"), 0.5, 0.5))
    made.update(STEP, batch)
    assert made.skipped.tolist() == [1]
    assert all(torch.equal(t, before[name]) for name, t in tensors(made).items())


def test_moving_average_matches_hand_computation() -> None:
    """A <- d a + (1 - d) w for weights and statistics, with TensorFlow's limit (1 + n) / (10 + n); counters are copied."""
    net = network(dtype=torch.float64)
    moving = MovingAverage(net, 0.9, warmup=True)
    expected = {name: t.clone() for name, t in net.state_dict().items()}
    for n in (1, 2, 3):
        with torch.no_grad():
            for t in net.state_dict().values():
                t.add_(n)
        moving.update(torch.zeros(()))
        d = min(0.9, (1 + n) / (10 + n))
        for name, t in net.state_dict().items():
            expected[name] = d * expected[name] + (1 - d) * t if t.is_floating_point() else t.clone()
    moving.update(torch.ones(()))  # of a skipped step: nothing moves
    averaged = moving.network.state_dict()
    assert float(moving.updates) == 3
    assert all(torch.allclose(averaged[name], t, rtol=1e-12) for name, t in expected.items())
    assert not any(p.requires_grad for p in moving.network.parameters()) and not moving.network.training


@pytest.mark.parametrize("at", [1, 4, 5, 7, 10])
def test_resume_is_bitwise_identical(at: int) -> None:
    """Interrupted after any step, saved with torch's generator, loaded into a fresh trainer: the same end and records."""
    torch.manual_seed(5)
    whole = trainer()
    records = list(whole.epochs())
    torch.manual_seed(5)
    first = trainer()
    seen: list[dict[str, Any]] = []
    with pytest.raises(Interrupted):
        seen.extend(first.epochs(after(at)))
    state, generator = copy.deepcopy(first.state_dict()), torch.get_rng_state()
    second = trainer()
    torch.set_rng_state(generator)
    second.load_state_dict(state)
    seen += list(second.epochs())
    ends, expected = tensors(second), tensors(whole)
    assert ends.keys() == expected.keys()
    assert all(torch.equal(t, expected[name]) for name, t in ends.items())
    timing = ("seconds", "input_seconds", "images_per_s")
    strip = [{k: v for k, v in r.items() if k not in timing} for r in (seen[-1], records[-1])]
    assert strip[0] == strip[1]


def test_drop_path_grows_from_zero() -> None:
    """Rate e / epochs of the last one's, 0 in the first epoch, in records and on the network."""
    made = trainer(4)
    assert [record["drop_path"] for record in made.epochs()] == pytest.approx([0, 0.05, 0.1, 0.15])
    assert float(made.network.drop_path_rate) == pytest.approx(0.15)


def test_records_tell_the_evaluations_apart() -> None:
    """Held-back and test images, the network and its average; None in an epoch without evaluation."""
    first, second = trainer(2, eval_every=2).epochs()
    assert first["valid"] is None and first["test"] is None and "test_ema" not in first
    assert {"loss", "top1", "top5"} == set(second["valid"]) == set(second["test"]) == set(second["valid_ema"])
    assert second["test_ema"] != second["test"]


def test_training_learns() -> None:
    """Brightness tells the label: above 90 % of the held-back images after a few epochs."""
    made = trainer(12, drop_path=0.0, ema=0.0)
    *_, record = made.epochs()
    assert record["valid"]["top1"] > 0.9


def test_divergence_raises() -> None:
    made = trainer(1)
    made.update.prepare = made.update.prepare._replace(mean=(float("nan"), 0.5, 0.5))
    with pytest.raises(DivergedError, match="epoch 1: the losses are not finite"):
        list(made.epochs())


def share(world: World) -> dict[str, Any]:
    """Train as one of the ranks with synchronised BatchNorm, in float64; return the tensors and the last record."""
    torch.manual_seed(5)
    where = {"rank": world.rank, "size": world.size}
    if not world.is_single:
        where |= {"ranks": world, "sync": world}
    made = trainer(2, auxiliary=True, drop_path=0.0, dtype=torch.float64, **where)
    *_, record = made.epochs()
    return {"tensors": tensors(made), "record": record}


def test_two_ranks_equal_one(ranks: Pool) -> None:
    """Synchronised BatchNorm, float64, no drop path, whose draws are of each rank: weights, averages, figures to 1e-9."""
    alone = share(World())
    for each in ranks(2, share):
        for name, tensor in alone["tensors"].items():
            assert torch.allclose(each["tensors"][name].double(), tensor.double(), rtol=1e-9, atol=1e-11), name
        for name in ("valid", "test", "test_ema"):
            assert each["record"][name] == pytest.approx(alone["record"][name], rel=1e-9)


def test_evaluation_counts_each_class() -> None:
    """Scores of ten images against plain arithmetic; an image of a class that nobody predicts counts as wrong."""
    net = network(dtype=torch.float64)
    made = update(net)
    scores = evaluate(net, made.prepare, batches(2, 5), CLASSES, precision=Precision())
    logits, labels = [], []
    for batch in batches(2, 5):
        logits.append(net(made.prepare.evaluate(batch, torch.float64)).logits)
        labels.append(batch.labels)
    every, truth = torch.cat(logits), torch.cat(labels)
    assert scores.loss == pytest.approx(float(F.cross_entropy(every, truth)), rel=1e-12)
    assert scores.top1 == pytest.approx(float((every.argmax(1) == truth).double().mean()))
    assert scores.top5 == 1 and scores.images == 10 and not net.training
    for label in range(CLASSES):
        correct = int(((every.argmax(1) == truth) & (truth == label)).sum())
        assert scores.by_class[label] == (correct, int((truth == label).sum()))
    with pytest.raises(ValueError, match="no images"):
        evaluate(net, made.prepare, [], CLASSES, precision=Precision())


def test_best_epoch_is_chosen_on_held_back_images() -> None:
    """By held-back accuracy, the first of equals, with its test accuracy; on test images only where asked for."""
    figures = [(0.5, 0.9), (0.7, 0.6), (0.7, 0.8), (0.6, 0.7)]
    epochs = [
        {"epoch": n, "valid": {"top1": v}, "test": {"top1": t}, "test_ema": {"top1": 0.65}}
        for n, (v, t) in enumerate(figures, start=1)
    ]
    found = results(epochs, best_on_test=False)
    assert found["last"]["top1"] == 0.7 and found["last, EMA"]["top1"] == 0.65
    assert (found["best"]["top1"], found["best"]["epoch"], found["best"]["chosen_on"]) == (0.6, 2, "valid")
    assert results(epochs, best_on_test=True)["best"]["epoch"] == 1
    assert "best" not in results([epoch | {"valid": None} for epoch in epochs], best_on_test=False)
    assert results([{"epoch": 1, "valid": None, "test": None}], best_on_test=False) == {}


def test_synchronised_statistics_are_an_obstacle_to_capture() -> None:
    net = network()
    made = update(net)
    assert made.obstacle() is None

    net.synchronise(World())
    assert "BatchNorm" in (made.obstacle() or "")
