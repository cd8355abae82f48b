"""The table of methods: settings of each row, and precedence of explicit ones."""

from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributions
from torch.distributions import kl_divergence
from torch.nn.functional import elu

from fastdarts.ops.philox import Stream
from fastdarts.search import METHODS, Method, Search, SoftmaxRelaxation, settings_of
from fastdarts.search.methods import in_proportion
from fastdarts.search.selection import argmax_genotype
from fastdarts.search_imagenet import main
from fastdarts.settings import ConfigError, SearchImagenetSettings
from fastdarts.spaces import Kind, Space
from fastdarts.spaces.genotype import Genotype
from fastdarts.supernet import CellWeights, Supernet
from tests.search.test_progressive import NAMES, SPACE, Loader, masked, settings
from tests.support.runs import SPLIT, TINY, write_tree

PUBLISHED = {  # epochs, begin, batch, learning rates, alpha's, clip of alpha's gradient, cells, k, edge weights, second order
    "darts-1st": (50, 0, 64, 0.025, 0.001, 3e-4, 0.0, 8, 1, False, False),
    "darts-2nd": (50, 0, 64, 0.025, 0.001, 3e-4, 0.0, 8, 1, False, True),
    "pc-darts": (50, 15, 256, 0.1, 0.0, 6e-4, 0.0, 8, 4, True, False),
    "sdarts-rs": (50, 0, 64, 0.025, 0.001, 3e-4, 0.0, 8, 1, False, False),
    "sdarts-adv": (50, 0, 64, 0.025, 0.001, 3e-4, 0.0, 8, 1, False, False),
    "drnas-progressive": (50, 10, 64, 0.1, 0.0, 6e-4, 0.0, 20, 6, False, False),
    "drnas": (50, 0, 64, 0.025, 0.001, 3e-4, 0.0, 8, 1, False, False),
    "sgas-1": (50, 0, 64, 0.025, 0.001, 3e-4, 0.0, 8, 1, False, False),
    "sgas-2": (50, 0, 64, 0.025, 0.001, 3e-4, 0.0, 8, 1, False, False),
    "p-darts": (75, 10, 96, 0.025, 0.0, 6e-4, 5.0, 5, 1, False, False),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_have_published_settings(name: str) -> None:
    s = SearchImagenetSettings.make(settings_of(name))
    rates = s.learning_rate, s.learning_rate_min, s.arch_learning_rate, s.arch_grad_clip
    method = s.layers, s.partial_channels, s.edge_normalization, s.unrolled
    assert (s.epochs, s.begin, s.batch_size, *rates, *method) == PUBLISHED[name]
    assert (s.momentum, s.weight_decay, s.arch_weight_decay, s.grad_clip) == (0.9, 3e-4, 1e-3, 5.0)
    assert (s.init_channels, s.warmup_epochs) == (36 if name == "drnas-progressive" else 16, 0)
    tricks = (True, True, 2) if name == "p-darts" else (name == "drnas-progressive", False, 0)
    assert (s.progressive, s.skip_dropout, s.skip_limit) == tricks


def test_row_values_are_settings() -> None:
    known = {f.name for f in fields(SearchImagenetSettings)}
    for row in METHODS.values():
        assert row.settings.keys() <= known


def test_begin_scales_with_epochs() -> None:
    assert in_proportion(settings_of("pc-darts"), 10) == {"begin": 3, "warmup_epochs": 0}
    assert in_proportion(settings_of("p-darts"), 30)["begin"] == 4  # of 10 in each stage
    assert in_proportion(settings_of("darts-1st"), 10)["begin"] == 0
    assert in_proportion({"epochs": 50, "begin": 35, "warmup_epochs": 5}, 20) == {"begin": 14, "warmup_epochs": 2}


def test_rows_are_not_modified() -> None:
    settings_of("p-darts")["skip_limit"] = 0
    assert METHODS["p-darts"].settings["skip_limit"] == 2


def test_pc_darts_is_default_on_imagenet() -> None:
    assert SearchImagenetSettings.make(settings_of("pc-darts", "imagenet")) == SearchImagenetSettings()
    plain = SearchImagenetSettings.make(settings_of("darts-2nd", "imagenet") | {"batch_size": 64})
    assert (plain.partial_channels, plain.edge_normalization, plain.unrolled) == (1, False, True)
    assert (plain.epochs, plain.learning_rate, plain.batch_size) == (50, 0.5, 64)


def test_unknown_method_is_rejected() -> None:
    with pytest.raises(ConfigError, match=f"--method darts: known are {', '.join(METHODS)}"):
        settings_of("darts")


class Sharp(SoftmaxRelaxation):
    """What a new row may bring."""

    def weights(self, stream: Stream = Stream.EVAL) -> dict[Kind, CellWeights]:
        return {kind: CellWeights(self._sharp(alpha)) for kind, alpha in self.alpha.items()}

    def _sharp(self, alpha: Tensor) -> Tensor:
        return (100 * alpha).softmax(-1)


class Dirichlet(SoftmaxRelaxation):
    """As DrNAS': weights are samples while something is trained, and its distance to the anchor joins alpha's loss."""

    def weights(self, stream: Stream = Stream.EVAL) -> dict[Kind, CellWeights]:
        laws = {kind: self._law(alpha) for kind, alpha in self.alpha.items()}
        return {kind: CellWeights(law.mean if stream is Stream.EVAL else law.rsample()) for kind, law in laws.items()}

    def penalty(self) -> Tensor:
        return sum(kl_divergence(self._law(alpha), self._law(torch.zeros_like(alpha))).sum() for alpha in self.alpha.values())

    def _law(self, alpha: Tensor) -> distributions.Dirichlet:
        return distributions.Dirichlet(elu(alpha) + 1, validate_args=False)  # which would wait for the device


class Smoothed(SoftmaxRelaxation):
    """As SDARTS' random smoothing: the weights of the network, and they alone, are trained with noise on alpha."""

    def weights(self, stream: Stream = Stream.EVAL) -> dict[Kind, CellWeights]:
        noise = 0.3 if stream is Stream.TRAIN else 0.0
        return {
            kind: CellWeights((alpha + noise * (2 * torch.rand_like(alpha) - 1)).softmax(-1))
            for kind, alpha in self.alpha.items()
        }


class Greedy(SoftmaxRelaxation):
    """As SGAS: after each epoch the next edge is decided for good."""

    def epoch_ended(self, epoch: int) -> None:
        with torch.no_grad():
            for alpha in self.alpha.values():
                alpha[epoch - 2] += torch.where(torch.arange(alpha.shape[1]) == 1, 2.0, -2.0)


def searched(relaxation: type[SoftmaxRelaxation], epochs: int = 1, skip_limit: int = 0, **more: Any) -> Search:
    torch.manual_seed(0)
    row, supernet = Method("nobody", relaxation=relaxation, **more), Supernet(SPACE, C=4, layers=3)
    s = settings(progressive=False, epochs=epochs, begin=1 if epochs > 1 else 0, skip_limit=skip_limit)
    return Search(supernet, masked(supernet), Loader(0), Loader(1), s, method=row)


def test_custom_method_needs_row_and_class() -> None:
    cell = (("skip_connect", 0), ("skip_connect", 1)) * 2
    fixed = Genotype(cell, (2, 3), cell, (2, 3))
    search = searched(Sharp, selection=lambda space, weights: fixed, edge={"edge_normalization": False})
    record = search.run_epoch()
    assert record["genotype"] == str(search.genotype()) == str(fixed)
    assert record["cells"]["normal"]["skips"] == 4
    with torch.no_grad():
        want = (100 * search.relaxation.alpha["reduce"]).softmax(-1).tolist()
    assert record["ops"]["reduce"] == want


def test_skip_limit_applies_to_row_selection() -> None:
    """This one never takes a pool."""

    def selection(space: Space, weights: dict[Kind, CellWeights]) -> Genotype:
        pool = NAMES.index("max_pool_3x3")
        without = {kind: CellWeights(w.ops.index_fill(1, torch.tensor(pool), 0.0)) for kind, w in weights.items()}
        return argmax_genotype(space, without)

    search = searched(SoftmaxRelaxation, skip_limit=1, selection=selection)
    with torch.no_grad():
        search.relaxation.alpha["normal"].copy_(torch.tensor([0.0, 8.0, 9.0, 1.0, 0.0]).expand(5, 5))
    assert sorted(op for op, _ in search.genotype().normal) == ["dil_conv_3x3"] * 3 + ["skip_connect"]


@pytest.mark.parametrize(("relaxation", "streams"), [(Dirichlet, (Stream.TRAIN, Stream.VAL)), (Smoothed, (Stream.TRAIN,))])
def test_relaxation_may_sample_per_stream(relaxation: type[SoftmaxRelaxation], streams: tuple[Stream, ...]) -> None:
    search = searched(relaxation)
    asked: list[Stream] = []
    mixing, weights = search.relaxation, search.relaxation.weights

    def listened(stream: Stream = Stream.EVAL) -> dict[Kind, CellWeights]:
        asked.append(stream)
        return weights(stream)

    mixing.weights = listened
    alpha = mixing.alpha["normal"].detach().clone()
    record = search.run_epoch()
    steps = len(search.train_loader)
    assert asked[: 2 * steps] == [Stream.VAL, Stream.TRAIN] * steps and set(asked[2 * steps :]) == {Stream.EVAL}
    assert not torch.equal(mixing.alpha["normal"], alpha) and record["ops"]["normal"] == weights()["normal"].ops.tolist()
    for stream in Stream:
        one, other = (weights(stream)["normal"].ops for _ in range(2))
        assert torch.equal(one, other) == (stream not in streams)


def test_relaxation_may_add_to_alpha_loss() -> None:
    class Without(Dirichlet):
        def penalty(self) -> None:
            return None

    found = []
    for relaxation in (Dirichlet, Without):
        search = searched(relaxation)
        train, val = next(search.train_loader), next(search.val_loader)
        with torch.no_grad():
            search.relaxation.alpha["normal"].add_(1)
        torch.manual_seed(1)
        loss, grads = search.bilevel.first_order_gradient(search.step, train, val)
        found.append((loss, grads))
    penalty = Dirichlet.penalty(search.relaxation)
    (loss, grads), (without, fewer) = found
    assert loss.item() == pytest.approx(without.item() + penalty.item(), rel=1e-6) and penalty.item() > 1
    want = torch.autograd.grad(penalty, search.relaxation.parameters())
    for all_of_it, part, more in zip(grads, fewer, want, strict=True):
        torch.testing.assert_close(all_of_it - part, more, rtol=1e-4, atol=1e-5)


def test_relaxation_may_decide_after_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, also where the evaluation after it is broken off and the search goes on from what it was then."""
    search, other = (searched(Greedy, epochs=3) for _ in range(2))
    records = [search.run_epoch() for _ in range(3)]
    for kind in ("normal", "reduce"):
        assert records[0]["ops"][kind][0] == pytest.approx([0.2] * 5, abs=0.01)  # alpha rests
        assert [row.index(max(row)) for row in records[2]["ops"][kind][:2]] == [1, 1]
        assert max(records[1]["ops"][kind][0]) > 0.85 and max(records[1]["ops"][kind][1]) < 0.6
    other.run_epoch()
    with monkeypatch.context() as patch:
        patch.setattr(other, "_architecture", broken_off)
        with pytest.raises(KeyboardInterrupt):
            other.run_epoch()
    again = searched(Greedy, epochs=3)
    again.load_state_dict(deepcopy(other.state_dict()))
    for record in records[1:]:
        assert again.run_epoch()["ops"] == record["ops"]


def broken_off(*_: object) -> None:
    raise KeyboardInterrupt


def test_finite_differences_share_one_sample() -> None:
    """Or its difference, divided by the distance between them, would be of samples more than of weights."""
    search = searched(Smoothed)
    train, val = next(search.train_loader), next(search.val_loader)
    asked, weights = [], search.relaxation.weights
    search.relaxation.weights = lambda stream=Stream.EVAL: asked.append(stream) or weights(stream)
    search.bilevel.unrolled_gradient(search.step, train, val)
    assert asked == [Stream.TRAIN, Stream.VAL, Stream.TRAIN]  # the virtual step, the loss after it, both sides


def test_sampling_relaxation_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row more is a method more on the command line."""
    monkeypatch.setitem(METHODS, "dirichlet", replace(METHODS["darts-1st"], relaxation=Dirichlet))
    tree = write_tree(tmp_path / "images", images=8)
    argv = ["--data", str(tree), *TINY, *SPLIT, "--method", "dirichlet", "--epochs", "1", "--begin", "0"]
    assert main([*argv, "--save", str(tmp_path / "run")]) == 0
