"""Published checkpoints: prefixes, wrappers, old formats, what a file holds, and which gene contradicts a genotype."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdarts.networks import (
    CheckpointError,
    DiscreteNetwork,
    NetworkShape,
    architecture_of,
    build,
    load_published,
    read_published,
)
from fastdarts.spaces import Architecture

pytestmark = pytest.mark.usefixtures("one_thread")
DARTS, FAIR = architecture_of("DARTS_V2"), architecture_of("FairDARTS_g")
CELL = Architecture.from_number(9481)
SHAPES = {
    "cifar": (DARTS, NetworkShape("cifar", 4, 5, 7, True, image_size=32)),
    "cifar without head": (DARTS, NetworkShape("cifar", 5, 3, 7, False, image_size=32)),
    "imagenet": (DARTS, NetworkShape("imagenet", 4, 3, 7, True, image_size=224)),
    "imagenet, BN768": (DARTS, NetworkShape("imagenet", 4, 3, 7, True, True, image_size=224)),
    "fairdarts": (FAIR, NetworkShape("cifar", 4, 3, 7, True, image_size=32)),
    "nasbench201": (CELL, NetworkShape("nasbench201", 4, 2, 7, False, image_size=32)),
}


def made(which: str = "cifar") -> DiscreteNetwork:
    torch.manual_seed(0)
    network = build(*SHAPES[which])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.bias)
    return network


def same(loaded: DiscreteNetwork, network: DiscreteNetwork) -> bool:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert loaded.state_dict().keys() == network.state_dict().keys() and loaded.drop_path_rate == 0
    return torch.equal(loaded.eval()(x).logits, network.eval()(x).logits)


@pytest.mark.parametrize("which", SHAPES)
def test_checkpoint_determines_network_shape(which: str, tmp_path: Path) -> None:
    network = made(which)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    loaded, shape = load_published(tmp_path / "weights.pt", network.architecture), network.shape
    assert same(loaded, network)
    for name in ("kind", "init_channels", "layers", "num_classes", "auxiliary"):
        assert getattr(loaded.shape, name) == getattr(shape, name), name
    assert loaded.shape.image_size == (224 if shape.kind == "imagenet" else 32)


def wrapped(state: dict[str, Tensor], how: str) -> Any:
    """What codebases save."""
    rest = {"epoch": 3, "arch": "darts", "best_acc_top1": 97.4, "optimizer": {"state": {}, "param_groups": []}}
    return {
        "bare": state,
        "state_dict": rest | {"state_dict": state},
        "model": rest | {"model": state},
        "model_state": rest | {"model_state": state},
        "ema alone": {"state_dict_ema": state},
        "two deep": {"model": {"state_dict": state}},
        "module.": {"state_dict": {f"module.{name}": t for name, t in state.items()}},
        "_orig_mod.": {f"_orig_mod.{name}": t for name, t in state.items()},
        "both": {f"module._orig_mod.{name}": t for name, t in state.items()},
        "without counters": {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")},
    }[how]


FORMS = [
    "bare",
    "state_dict",
    "model",
    "model_state",
    "ema alone",
    "two deep",
    "module.",
    "_orig_mod.",
    "both",
    "without counters",
]


@pytest.mark.parametrize("how", FORMS)
@pytest.mark.parametrize("legacy", [False, True])
def test_wrappers_prefixes_and_old_formats_are_read(how: str, legacy: bool, tmp_path: Path) -> None:
    """Old files have no metadata and no counters of batches either, and are no zip archives."""
    network, path = made(), tmp_path / "weights.pt"
    torch.save(wrapped(dict(network.state_dict()), how), path, _use_new_zipfile_serialization=not legacy)
    loaded = load_published(path, DARTS)
    assert same(loaded, network) and same(load_published(wrapped(network.state_dict(), how), DARTS), network)
    assert how != "without counters" or loaded.state_dict()["stem.1.num_batches_tracked"] == 0


def test_state_dicts_round_trip(tmp_path: Path) -> None:
    network, other = made(), build(*SHAPES["cifar"])
    other.load_state_dict(read_published(network.state_dict()).state_dict)
    assert same(other, network)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"cells.1._ops.3.op.1.weight": torch.zeros(8, 1, 5, 5)},
            r"cell 1, gene 3 \(max_pool_3x3 from state 1\): .*_ops.3.op.1.weight: expected absent, found \(8, 1, 5, 5\)",
        ),
        (
            {"cells.0._ops.2.op.5.weight": torch.zeros(4, 1, 5, 5)},
            r"cell 0, gene 2 \(sep_conv_3x3 from state 0\): .*op.5.weight: expected \(4, 1, 3, 3\), found \(4, 1, 5, 5\)",
        ),
        ({"cells.4._ops.7.op.1.weight": None}, r"cell 4, gene 7 \(dil_conv_3x3 from state 2\): .* found absent"),
        ({"cells.4._ops.9.op.1.weight": torch.zeros(1)}, r"cell 4, gene 9: .* expected absent, found \(1,\)"),
        (
            {"cells.2.preprocess1.op.1.weight": torch.zeros(8, 3, 1, 1)},
            r"cell 2: .*expected \(8, 32, 1, 1\), found \(8, 3, 1, 1\)",
        ),
        ({"classifier.bias": torch.zeros(3)}, r"outside the cells: classifier.bias: expected \(7,\), found \(3,\)"),
        ({"fc.weight": torch.zeros(3)}, r"outside the cells: fc.weight: expected absent, found \(3,\)"),
        ({"classifier.weight": None}, "not the weights of a network of DARTS or NAS-Bench-201: it lacks 'classifier.weight'"),
        ({"stem.0.weight": None}, "it lacks 'stem.0.weight'"),
    ],
)
def test_weights_contradicting_genotype_name_their_gene(change: dict[str, Tensor | None], says: str) -> None:
    state = {name: t for name, t in (dict(made().state_dict()) | change).items() if t is not None}
    with pytest.raises(CheckpointError, match=says) as caught:
        load_published(state, DARTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("which", "cells", "says"),
    [
        (
            "cifar",
            "PDARTS",
            r"cell 0, gene 0 \(skip_connect from state 0\): .*expected absent.*, and \d+ others: the weights are of another",
        ),
        (
            "fairdarts",
            "FairDARTS_b",
            r"cell 0, node 3 from state 1: cells.0._ops.3.1.0.op.1.weight: expected \(4, 1, 3, 3\), found a",
        ),
        ("nasbench201", "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", r"cell 0, edge 0 \(none\): .* expected absent"),
        ("nasbench201", "DARTS_V2", "network nasbench201: a genotype is of DARTS' networks"),
        ("imagenet", str(CELL), "network imagenet: a cell of NAS-Bench-201 is of its own network"),
    ],
)
def test_weights_of_other_architecture_are_rejected(which: str, cells: str, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        load_published(made(which).state_dict(), architecture_of(cells))


class Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("made",)


@pytest.mark.parametrize("how", ["whole model", "payload", "payload, pickled"])
def test_files_execute_no_code(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    if how == "payload, pickled":
        path.write_bytes(pickle.dumps(Payload(), protocol=2))
    else:
        torch.save(made() if how == "whole model" else {"state_dict": Payload()}, path)
    with pytest.raises(CheckpointError) as caught:
        load_published(path, DARTS)
    assert not (tmp_path / "made").exists() and "\n" not in str(caught.value)
    assert how == "payload, pickled" or "holds Python objects, such as a whole pickled model" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"", "not a file of torch.save"),
        (b"<!DOCTYPE html><html>Google Drive - Quota exceeded</html>", "not a file of torch.save"),
        (b"PK\x03\x04 broken", "not a file of torch.save"),
        ([1, 2], "holds a list, no state_dict, bare or under state_dict, model"),
        ({"epoch": 3, "net": {}}, "holds a dict of epoch, net, no state_dict"),
        ({}, "holds a dict of , no state_dict"),
        ({"weight": torch.zeros(1)}, "it lacks 'classifier.weight'"),
    ],
)
def test_other_files_are_named(content: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_published(path, DARTS)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
