"""A whole search on a few generated pixels: determinism, resuming, updates of alpha, order of batches."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.objectives import Classification, MaskedReconstruction
from fastdarts.optim import OptimizerUnavailable, learning_rate
from fastdarts.optim.precision import LossScale
from fastdarts.search import DivergedError, Hooks, Search, StepReport, collapse_figures, dominant_eigenvalue
from fastdarts.settings import SearchSettings
from fastdarts.spaces import KINDS, Space
from fastdarts.spaces.genotype import Genotype
from fastdarts.supernet import Supernet
from tests.support import naive
from tests.support.naive import assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

SPACE = Space.uniform("few", ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3"))
NET = naive.Net(C=4, layers=3, k=2, candidates={"normal": SPACE.normal, "reduce": SPACE.reduce})
CLOCK = ("seconds", "input_seconds", "images_per_s")


class Loader:
    """An endless loader over `batches` batches of `size` images that never repeats an epoch's order; notes what it gave."""

    def __init__(self, split: int, batches: int, size: int = 4) -> None:
        g = torch.Generator().manual_seed(split)
        self.images = torch.randint(0, 256, (batches * size, 8, 8, 3), generator=g, dtype=torch.uint8)
        self.labels = torch.randint(0, 3, (batches * size,), generator=g)
        self.split, self.batches, self.size, self.given = split, batches, size, 0

    def __len__(self) -> int:
        return self.batches

    def __next__(self) -> Batch:
        epoch, number = divmod(self.given, self.batches)
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(97 * self.split + epoch))
        rows = order[number * self.size : (number + 1) * self.size]
        self.given += 1
        return Batch(self.images[rows], self.labels[rows], rows, rows % 2 == 0)

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]


def finite(batches: int, size: int = 4) -> list[Batch]:
    loader = Loader(2, batches, size)
    return [next(loader) for _ in range(batches)]


def settings(**changes: Any) -> SearchSettings:
    base = {"epochs": 3, "begin": 0, "warmup_epochs": 0, "learning_rate": 0.05, "grad_clip": 1.0}
    return SearchSettings(**(base | changes))


def make(
    s: SearchSettings,
    objective: str = "mae",
    sampling: str = "first",
    weights_seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> Search:
    torch.manual_seed(s.seed if weights_seed is None else weights_seed)
    supernet = Supernet(SPACE, C=4, layers=3, partial_channels=2, channel_sampling=sampling, seed=s.seed)
    goal = (
        MaskedReconstruction(supernet.tap_channels, patch_size=2, mask_token="learned", seed=s.seed)
        if objective == "mae"
        else Classification(supernet, 3)
    )
    loaders = {"train_loader": Loader(0, 2), "val_loader": Loader(1, 3), "eval_loader": finite(2)}
    return Search(supernet.to(dtype), goal.to(dtype), settings=s, **(loaders | kwargs))


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    assert all(r[name] > 0 for r in records for name in CLOCK)
    return [{n: v for n, v in r.items() if n not in CLOCK} for r in records]


def tensors(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested dicts and lists by path."""
    if isinstance(value, dict):
        return {k: v for key, x in value.items() for k, v in tensors(x, f"{name}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, x in enumerate(value) for k, v in tensors(x, f"{name}/{i}").items()}
    return {name: value}


def same(a: Any, b: Any) -> bool:
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) if isinstance(a[n], Tensor) else a[n] == b[n] for n in a)


VARIANTS = {
    "mae": ({}, "mae", "first"),
    "supervised-second-order": ({"unrolled": True, "edge_normalization": False}, "supervised", "first"),
    "random-channels": ({"step_order": "weights-first", "hessian_every": 2, "eval_every": 2, "begin": 1}, "mae", "random"),
}


@pytest.mark.parametrize(("changes", "objective", "sampling"), VARIANTS.values(), ids=VARIANTS)
def test_search_is_reproducible_by_seed(changes: dict[str, Any], objective: str, sampling: str) -> None:
    searches = [make(settings(seed=seed, **changes), objective, sampling) for seed in (3, 3, 4)]
    records = [timeless(list(search.epochs())) for search in searches]
    states = [search.state_dict() for search in searches]
    assert len(records[0]) == 3
    assert records[0] == records[1]
    assert same(states[0], states[1])
    for mine, other in zip(records[0], records[2], strict=True):
        for name in ("train_loss", "ops"):
            assert mine[name] != other[name]
    assert not same(states[0], states[2])


@pytest.mark.parametrize(("changes", "objective", "sampling"), VARIANTS.values(), ids=VARIANTS)
def test_resume_after_first_epoch_is_bitwise_identical(
    changes: dict[str, Any], objective: str, sampling: str, tmp_path: Path
) -> None:
    s = settings(seed=3, **changes)
    whole = make(s, objective, sampling)
    want = timeless(list(whole.epochs()))

    first = make(s, objective, sampling)
    records = [first.run_epoch()]
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    second = make(s, objective, sampling, weights_seed=1234)  # whatever it starts with must not matter
    with torch.no_grad():
        for p in second.relaxation.parameters():
            p.fill_(7.0)
    second.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    records += list(second.epochs())
    assert timeless(records) == want
    assert same(second.state_dict(), whole.state_dict())
    assert second.genotype() == whole.genotype()


@pytest.mark.parametrize(("changes", "objective", "sampling"), VARIANTS.values(), ids=VARIANTS)
def test_resume_after_any_step_is_bitwise_identical(
    changes: dict[str, Any], objective: str, sampling: str, tmp_path: Path
) -> None:
    s = settings(seed=3, **changes)
    states: list[Path] = []

    def save(report: StepReport) -> None:
        states.append(tmp_path / f"{report.step}.pt")
        torch.save(whole.state_dict(), states[-1])

    whole = make(s, objective, sampling)
    want = timeless(list(whole.epochs(Hooks(save))))
    assert len(states) == 6
    for number, path in enumerate(states, 1):
        second = make(s, objective, sampling, weights_seed=1234)
        second.load_state_dict(torch.load(path, weights_only=True))
        assert (second.epoch, second.part.steps, int(second.step)) == ((number - 1) // 2, (number - 1) % 2 + 1, number)
        assert timeless(list(second.epochs())) == want[(number - 1) // 2 :]
        assert same(second.state_dict(), whole.state_dict())


@pytest.mark.parametrize("where", ["train_loader", "val_loader", "eval_loader", "on_step", "batches"])
def test_resume_after_exception_is_bitwise_identical(where: str) -> None:
    """Waiting for either batch, in the evaluation, or in a hook: no batch is lost or taken twice."""

    class Broken(Exception):
        pass

    class Breaking(Loader):
        def __next__(self) -> Batch:
            if self.given == 3:
                raise Broken
            return super().__next__()

    def evaluation() -> Any:
        yield finite(1)[0]
        raise Broken

    class Once:
        def __iter__(self) -> Any:
            return evaluation()

    def fail(report: StepReport) -> None:
        if report.step == 4:
            raise Broken

    whole = make(settings())
    want = timeless(list(whole.epochs()))
    loaders = {"train_loader": Breaking(0, 2), "val_loader": Breaking(1, 3), "eval_loader": Once()}
    hooks = {"on_step": fail, "batches": lambda _: evaluation()}
    first, records = make(settings(), **{name: loader for name, loader in loaders.items() if name == where}), []
    with pytest.raises(Broken):
        records.extend(first.epochs(Hooks(**{name: hook for name, hook in hooks.items() if name == where})))
    second = make(settings(), weights_seed=1234)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    records += list(second.epochs())
    assert timeless(records) == want
    assert same(second.state_dict(), whole.state_dict())


def test_non_finite_losses_are_excluded_from_means() -> None:
    plain = make(settings(epochs=1, begin=1), train_loader=Loader(0, 3))
    take, losses = plain.bilevel, []

    def poisoned(step: Tensor, train: Batch, val: Batch | None) -> tuple[Tensor, Tensor | None]:
        loss, alpha = take(step, train, val)
        losses.append(float(loss))
        return (loss * torch.nan if len(losses) == 2 else loss), alpha

    plain.take_step = poisoned
    record = plain.run_epoch()
    assert record["not_finite"] == [1, 0]
    assert record["train_loss"] == pytest.approx((losses[0] + losses[2]) / 2, rel=1e-6)


def test_loading_state_keeps_parameter_objects() -> None:
    search = make(settings())
    search.run_epoch()
    held = [*search.supernet.parameters(), *search.objective.parameters(), *search.relaxation.parameters()]
    search.load_state_dict(copy.deepcopy(search.state_dict()))
    now = [*search.supernet.parameters(), *search.objective.parameters(), *search.relaxation.parameters()]
    assert all(a is b for a, b in zip(held, now, strict=True))


@pytest.mark.parametrize("objective", ["mae", "supervised"])
def test_every_weight_is_trained_once(objective: str) -> None:
    """The classifier lives in the supernet, the decoder in the objective: both are the optimizer's, nothing is twice."""
    search = make(settings(), objective)
    named = {**dict(search.supernet.named_parameters()), **dict(search.objective.named_parameters())}
    assert ("classifier.weight" in named) == (objective == "supervised")
    assert ("decoder.linear.weight" in named) == (objective == "mae")
    (group,) = search.bilevel.weight_optimizer.param_groups
    assert sorted(map(id, group["params"])) == sorted(map(id, named.values()))
    before = {n: p.detach().clone() for n, p in named.items()}
    search.run_epoch()
    assert not [n for n, p in named.items() if torch.equal(before[n], p)]


@pytest.mark.parametrize("begin", [0, 1, 2, 5])
def test_alpha_is_unchanged_before_begin(begin: int) -> None:
    search = make(settings(begin=begin))
    parameters = search.relaxation.parameters()
    for epoch in range(3):
        before = [p.detach().clone() for p in parameters]
        record = search.run_epoch()
        moved = [not torch.equal(p, b) for p, b in zip(parameters, before, strict=True)]
        assert moved == [epoch >= begin] * 4  # alpha and beta of both kinds
        assert (record["alpha_loss"] is None) == (epoch < begin)
    assert search.train_loader.given == 6
    assert search.val_loader.given == 2 * max(0, 3 - begin)


def test_validation_batches_continue_across_epochs() -> None:
    """Two steps an epoch, three validation batches: 0 1 | 2 0 | 1 2, each pass in its own order."""
    taken: list[list[int]] = []
    search = make(settings())
    plain = search.val_loader.__next__

    class Noted:
        def __len__(self) -> int:
            return 3

        def __next__(self) -> Batch:
            b = plain()
            taken.append(sorted(b.index.tolist()))
            return b

        def state_dict(self) -> dict[str, Any]:
            return {}

    search.val_loader = Noted()
    list(search.epochs())
    fresh = Loader(1, 3)
    assert taken == [sorted(next(fresh).index.tolist()) for _ in range(6)]
    assert sorted(i for batch in taken[:3] for i in batch) == list(range(12))
    assert taken[:3] != taken[3:]


def test_epoch_records_are_plain_values() -> None:
    """What an epoch's record says is what the search holds, and nothing in it needs torch to be read."""
    s = settings(learning_rate=0.05, learning_rate_min=0.01, warmup_epochs=2, hessian_every=2, eval_every=2)
    search = make(s)
    for epoch, record in enumerate(search.epochs()):
        assert (record["epoch"], record["step"]) == (epoch + 1, 2 * (epoch + 1))
        assert search.step.tolist() == [2 * (epoch + 1)]
        rate = learning_rate(epoch, 3, 0.05, 0.01, 2)
        assert record["lr"] == rate == search.bilevel.weight_optimizer.param_groups[0]["lr"]
        assert (record["valid"] is not None) == (epoch in (1, 2))  # every second epoch, and the last
        assert ("hessian" in record) == (epoch == 1)
        with torch.no_grad():
            weights = search.relaxation.weights()
        assert record["ops"] == {kind: weights[kind].ops.tolist() for kind in KINDS}
        assert record["edges"] == {kind: weights[kind].edges.tolist() for kind in KINDS}
        genotype = Genotype.from_text(record["genotype"])
        assert genotype == search.genotype()
        products = {kind: (weights[kind].ops * weights[kind].edges[:, None]).tolist() for kind in KINDS}
        assert [list(genotype.normal), list(genotype.reduce)] == [
            naive.derive(products[kind], SPACE.candidates(kind)) for kind in KINDS
        ]
        assert record["cells"] == collapse_figures(SPACE, weights, genotype)
        assert not [n for n, v in tensors(record).items() if not isinstance(v, int | float | str | None)]
    assert search.run() == search.genotype()  # nothing is left to run
    assert search.epoch == 3


def test_record_losses_are_means_over_steps() -> None:
    reports: list[StepReport] = []
    search = make(settings(begin=1))
    records = list(search.epochs(Hooks(reports.append)))
    assert [(r.epoch, r.step, r.steps) for r in reports] == [
        *[(1, 1, 6), (1, 2, 6)],
        *[(2, 3, 6), (2, 4, 6)],
        *[(3, 5, 6), (3, 6, 6)],
    ]
    assert [r.images for r in reports] == [4, 4, 8, 8, 8, 8]
    assert [r.losses[1] is None for r in reports] == [True] * 2 + [False] * 4
    assert search.done == search.total == (3, 6, 10)
    for epoch, record in enumerate(records):
        mine = reports[2 * epoch : 2 * epoch + 2]
        assert record["train_loss"] == pytest.approx(sum(float(r.losses[0]) for r in mine) / 2, rel=1e-6)
        if epoch:
            assert record["alpha_loss"] == pytest.approx(sum(float(r.losses[1]) for r in mine) / 2, rel=1e-6)


def test_evaluation_and_hessian_do_not_change_search() -> None:
    """With and without them the search is the same to the bit."""
    plain = make(settings(), eval_loader=None)
    watched = make(settings(eval_every=1, hessian_every=1))
    few = list(plain.epochs())
    many = list(watched.epochs())
    for a, b in zip(timeless(few), timeless(many), strict=True):
        assert a.pop("valid") is None
        assert set(b.pop("valid")) == {"loss", "baseline"}
        assert isinstance(b.pop("hessian"), float)
        assert a == b
    assert same(plain.state_dict(), watched.state_dict())


def test_evaluation_is_mean_over_images() -> None:
    """Batches of 4, 4 and 2 images, batch norm with its running statistics; twice the same."""
    batches = [*finite(2), Batch(*(t[:2] for t in finite(1)[0]))]
    search = make(settings(), "supervised", eval_loader=batches)
    search.run_epoch()
    got = search.evaluate()
    state = {n: t.clone() for n, t in search.supernet.state_dict().items()}
    assert search.evaluate() == got
    assert same(search.supernet.state_dict(), state)
    search.supernet.eval()
    with torch.no_grad():
        weights = search.relaxation.weights()
        each = [search.objective.evaluate(search.supernet, weights, b) for b in batches]
    for name, value in got.items():
        want = sum(len(b.index) * float(e[name]) for b, e in zip(batches, each, strict=True)) / 10
        assert value == pytest.approx(want, rel=1e-6)


def test_missing_eval_loader_raises() -> None:
    search = make(settings(), eval_loader=None)
    for call in (search.evaluate, search.hessian):
        with pytest.raises(ValueError, match="eval_loader"):
            call()


def test_hessian_eigenvalue_matches_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """The eigenvalue that power iteration on the formulas' loss finds from a direction of its own.

    Both with differences of 1e-5: with the default 1e-2 the kinks of a net this small weigh more than its curvature.
    """
    monkeypatch.setattr("fastdarts.search.evaluation.dominant_eigenvalue", partial(dominant_eigenvalue, radius=1e-5))
    batches = [next(Loader(2, 1, 3))]
    search = make(settings(seed=2), "supervised", dtype=torch.float64, eval_loader=batches)
    theta, stats = naive.split(search.supernet.state_dict())
    x = naive.normalised(batches[0].images, search.objective.mean, search.objective.std, batches[0].flip.tolist())
    start = torch.cat([a.detach().flatten() for a in search.relaxation.alpha.values()])
    betas = {kind: naive.edge_betas(b.detach()) for kind, b in search.relaxation.beta.items()}

    def gradient(flat: Tensor) -> Tensor:
        flat = flat.clone().requires_grad_()
        alpha = dict(zip(KINDS, flat.view(2, 14, 4), strict=True))
        rows = {kind: naive.edge_rows(alpha[kind], NET, kind) for kind in KINDS}
        last = naive.Run(theta, stats).network(NET, x, rows, betas)[-1]
        logits = naive.head(last, theta["classifier.weight"], theta["classifier.bias"])
        return torch.autograd.grad(naive.cross_entropy(logits, batches[0].labels), flat)[0]

    v = torch.randn(len(start), generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    for _ in range(10):
        v = v / v.norm()
        product = (gradient(start + 1e-5 * v) - gradient(start - 1e-5 * v)) / 2e-5
        largest, v = float(v @ product), product
    assert search.hessian() == pytest.approx(largest, rel=1e-5)


def test_search_step_matches_bilevel_formulas() -> None:
    """One epoch of one step: the same losses as the formulas give at the first weights, with the mask of step 0."""
    search = make(settings(epochs=1), dtype=torch.float64, train_loader=Loader(0, 1), val_loader=Loader(1, 1))
    theta, stats = naive.split(search.supernet.state_dict())
    w = {n: t.detach().clone() for n, t in search.objective.named_parameters()}
    with torch.no_grad():
        start = search.relaxation.weights()
    b = next(Loader(1, 1))
    target = naive.normalised(b.images, search.objective.mean, search.objective.std, b.flip.tolist())
    pixels = naive.pixel_mask(naive.masked_patches(0, naive.VAL, 0, b.index.tolist(), 4, 0.5), 2)
    x = torch.where(pixels[:, None], w["mask_token"].reshape(1, 3, 1, 1), target)
    mix = {kind: start[kind].ops for kind in KINDS}, {kind: start[kind].edges for kind in KINDS}
    taps = naive.Run(theta, stats).taps(NET, x, *mix)
    aligns = [(w[f"decoder.align.{i}.weight"], w[f"decoder.align.{i}.bias"]) for i in range(3)]
    prediction = naive.decoder(taps, aligns, (w["decoder.linear.weight"], w["decoder.linear.bias"]), 8)
    want = naive.masked_loss(prediction, target, pixels, 1)
    reports: list[StepReport] = []
    search.run_epoch(Hooks(reports.append))
    assert_close(reports[0].losses[1], want.detach(), "validation loss")


@pytest.mark.parametrize("begin", [0, 1])
def test_non_finite_losses_stop_search(begin: int) -> None:
    search = make(settings(begin=begin, learning_rate=1e30, grad_clip=0.0))
    with pytest.raises(DivergedError, match=r"epoch 1.*not finite"):
        search.run()


def break_steps(search: Search, steps: set[int], what: str) -> None:
    """In these steps (from 1) the gradient of one weight, or of alpha, is NaN, the losses finite."""
    target = search.bilevel.weights[0] if what == "weights" else search.relaxation.parameters()[0]
    target.register_hook(lambda g: g * torch.nan if int(search.step) + 1 in steps else g)


def test_skipped_updates_are_logged_and_search_continues(caplog: pytest.LogCaptureFixture) -> None:
    reports: list[list[int]] = []
    search = make(settings())
    break_steps(search, {3}, "weights")
    records = list(search.epochs(Hooks(lambda report: reports.append(report.skipped.tolist()))))
    assert ["skipped" in r for r in records] == [False, True, False]
    assert records[1]["skipped"] == [1, 0]
    assert reports == [[0, 0], [0, 0], [1, 0], [1, 0], [0, 0], [0, 0]]  # counted anew in each epoch
    (message,) = [m for m in caplog.messages if "skipped" in m]
    assert message == "epoch 2: 1 of 2 updates of the weights were skipped because of non-finite gradients"
    assert all(torch.isfinite(t).all() for t in tensors(search.state_dict()).values() if isinstance(t, Tensor))


@pytest.mark.parametrize("what", ["weights", "alpha"])
def test_epoch_without_updates_stops_search(what: str) -> None:
    search = make(settings())
    break_steps(search, {3, 4}, what)
    search.run_epoch()
    before = copy.deepcopy(search.state_dict())
    printed = f"epoch 2: 2 of 2 updates of {'the weights' if what == 'weights' else 'alpha'} had non-finite gradients"
    with pytest.raises(DivergedError, match=printed):
        search.run_epoch()
    assert search.epoch == 1
    part = "supernet" if what == "weights" else "relaxation"
    if what == "alpha":
        assert same(search.state_dict()[part], before[part])
    parameters = dict(search.supernet.named_parameters())
    assert all(torch.isfinite(p).all() for p in parameters.values())


def test_float16_search_may_seek_initial_scale() -> None:
    search = make(settings(epochs=1))
    search.precision.scale = LossScale("cpu")
    break_steps(search, {1, 2}, "weights")
    assert search.run_epoch()["skipped"] == [2, 0]
    assert float(search.precision.scale.value) == 2.0**14
    search = make(settings(epochs=1))
    search.precision.scale = LossScale("cpu")
    search.precision.scale.value.fill_(1.0)
    break_steps(search, {1, 2}, "weights")
    with pytest.raises(DivergedError):
        search.run_epoch()


def test_loss_scale_is_saved() -> None:
    first, second = (make(settings(amp="fp16")) for _ in range(2))
    assert "loss_scale" not in make(settings(amp="bf16")).state_dict()
    first.precision.scale.value.fill_(4.0)
    second.load_state_dict(first.state_dict())
    assert float(second.precision.scale.value) == 4.0
    second.load_state_dict(make(settings()).state_dict())  # of a run without one
    assert float(second.precision.scale.value) == 4.0


def test_custom_step_is_used() -> None:
    search, plain = make(settings()), make(settings())
    taken: list[int] = []

    def take(step: Tensor, train: Batch, val: Batch | None) -> tuple[Tensor, Tensor | None]:
        taken.append(int(step))
        return search.bilevel(step, train, val)

    search.take_step = take
    assert timeless(list(search.epochs())) == timeless(list(plain.epochs()))
    assert taken == list(range(6))


def test_missing_apex_is_rejected_by_name() -> None:
    with pytest.raises(OptimizerUnavailable, match="apex"):
        make(settings(optimizer_backend="apex"))
