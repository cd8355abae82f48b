"""The table of methods: what each row gives, and that what is given explicitly wins."""

from dataclasses import fields
from typing import get_args

import pytest
import torch
from torch import Tensor

from fastdarts.config import ConfigError, MethodName, SearchImagenetSettings
from fastdarts.genotype import Genotype
from fastdarts.search import METHODS, Method, Search, SoftmaxRelaxation, settings_of
from fastdarts.search.methods import in_proportion
from fastdarts.spaces import Kind
from fastdarts.supernet import CellWeights, Supernet
from tests.search.test_progressive import SPACE, Loader, masked, settings

PUBLISHED = {  # epochs, begin, batch, learning rates, alpha's, clip of alpha's gradient, cells, k, edge weights, second order
    "darts-1st": (50, 0, 64, 0.025, 0.001, 3e-4, 0.0, 8, 1, False, False),
    "darts-2nd": (50, 0, 64, 0.025, 0.001, 3e-4, 0.0, 8, 1, False, True),
    "pc-darts": (50, 15, 256, 0.1, 0.0, 6e-4, 0.0, 8, 4, True, False),
    "p-darts": (75, 10, 96, 0.025, 0.0, 6e-4, 5.0, 5, 1, False, False),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_row_gives_the_published_settings(name: str) -> None:
    s = SearchImagenetSettings.make(settings_of(name))
    rates = s.learning_rate, s.learning_rate_min, s.arch_learning_rate, s.arch_grad_clip
    method = s.layers, s.partial_channels, s.edge_normalization, s.unrolled
    assert (s.epochs, s.begin, s.batch_size, *rates, *method) == PUBLISHED[name]
    assert (s.momentum, s.weight_decay, s.arch_weight_decay, s.grad_clip) == (0.9, 3e-4, 1e-3, 5.0)
    assert (s.init_channels, s.warmup_epochs) == (16, 0)
    tricks = (True, True, 2) if name == "p-darts" else (False, False, 0)
    assert (s.progressive, s.skip_dropout, s.skip_limit) == tricks


def test_every_value_of_a_row_is_a_setting() -> None:
    known = {f.name for f in fields(SearchImagenetSettings)}
    for row in METHODS.values():
        assert row.settings.keys() <= known


def test_alpha_begins_in_proportion() -> None:
    assert in_proportion(settings_of("pc-darts"), 10) == {"begin": 3, "warmup_epochs": 0}
    assert in_proportion(settings_of("p-darts"), 30)["begin"] == 4  # of 10 in each stage
    assert in_proportion(settings_of("darts-1st"), 10)["begin"] == 0
    assert in_proportion({"epochs": 50, "begin": 35, "warmup_epochs": 5}, 20) == {"begin": 14, "warmup_epochs": 2}


def test_a_row_is_left_alone() -> None:
    settings_of("p-darts")["skip_limit"] = 0
    assert METHODS["p-darts"].settings["skip_limit"] == 2
    assert set(get_args(MethodName)) == set(METHODS)  # what --method takes


def test_on_imagenet_pc_darts_is_what_the_command_does_anyway() -> None:
    assert SearchImagenetSettings.make(settings_of("pc-darts", "imagenet")) == SearchImagenetSettings()
    plain = SearchImagenetSettings.make(settings_of("darts-2nd", "imagenet") | {"batch_size": 64})
    assert (plain.partial_channels, plain.edge_normalization, plain.unrolled) == (1, False, True)
    assert (plain.epochs, plain.learning_rate, plain.batch_size) == (50, 0.5, 64)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="--method darts: known are darts-1st, darts-2nd, pc-darts, p-darts"):
        settings_of("darts")


class Sharp(SoftmaxRelaxation):
    """What a new row may bring."""

    def weights(self) -> dict[Kind, CellWeights]:
        return {kind: CellWeights(self._sharp(alpha)) for kind, alpha in self.alpha.items()}

    def _sharp(self, alpha: Tensor) -> Tensor:
        return (100 * alpha).softmax(-1)


def test_a_method_of_its_own_is_a_row_and_a_class() -> None:
    cell = (("skip_connect", 0), ("skip_connect", 1)) * 2
    fixed = Genotype(cell, (2, 3), cell, (2, 3))
    row = Method("nobody", relaxation=Sharp, selection=lambda space, weights: fixed, edge={"edge_normalization": False})
    torch.manual_seed(0)
    supernet = Supernet(SPACE, C=4, layers=3)
    search = Search(supernet, masked(supernet), Loader(0), Loader(1), settings(progressive=False, epochs=1), method=row)
    record = search.run_epoch()
    assert record["genotype"] == str(search.genotype()) == str(fixed)
    assert record["cells"]["normal"]["skips"] == 4
    with torch.no_grad():
        want = (100 * search.relaxation.alpha["reduce"]).softmax(-1).tolist()
    assert record["ops"]["reduce"] == want
