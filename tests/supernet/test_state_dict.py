"""Checkpoints of quark0/darts' and PC-DARTS' search networks, as tests/support/naive.py lists their names and shapes."""

import copy

import pytest
import torch
from torch import Tensor

from fastdarts.spaces import KINDS, S0
from fastdarts.supernet import CellWeights, Supernet
from tests.support import naive
from tests.support.naive import assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

CODEBASES = {
    "darts": naive.Net(C=4, layers=8),
    "pc-darts-cifar": naive.Net(C=8, layers=8, k=4),
    "pc-darts-imagenet": naive.Net(C=4, layers=8, k=2, stem="imagenet"),
    "three-cells": naive.Net(C=4, layers=3),
    "twenty-cells": naive.Net(C=2, layers=20),
}


def supernet(net: naive.Net) -> Supernet:
    return Supernet(S0, C=net.C, layers=net.layers, stem=net.stem, partial_channels=net.k).double()


def saved(net: naive.Net, classes: int | None = 10, batches: int | None = 7, seed: int = 1) -> dict[str, Tensor]:
    return naive.flat_checkpoint(*naive.random_checkpoint(net, classes, seed), batches)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


@pytest.mark.parametrize("net", CODEBASES.values(), ids=CODEBASES)
def test_darts_checkpoint_round_trips(net: naive.Net) -> None:
    checkpoint = saved(net)
    mine = supernet(net)
    assert {n: t.shape for n, t in mine.state_dict().items()} == {n: t.shape for n, t in saved(net, classes=None).items()}
    mine.load_state_dict(checkpoint)
    assert equal(mine.state_dict(), checkpoint)


@pytest.mark.parametrize("classes", [None, 10, 100])
def test_loading_fills_parameters_in_place(classes: int | None) -> None:
    net = CODEBASES["three-cells"]
    mine = supernet(net)
    if classes is not None:
        mine.attach_classifier(classes)
    before = dict(mine.named_parameters())
    mine.load_state_dict(saved(net, classes))
    after = dict(mine.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[n] is before[n] for n in before)


@pytest.mark.parametrize("name", ["darts", "pc-darts-imagenet"])
@pytest.mark.parametrize("batches", [7, None], ids=["today", "torch-0.3"])
@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "data-parallel"])
def test_data_parallel_prefix_and_old_checkpoints_are_loaded(name: str, batches: int | None, prefix: str) -> None:
    """DataParallel prefixes every name; torch 0.3, with which DARTS was published, had no num_batches_tracked."""
    net = CODEBASES[name]
    mine = supernet(net)
    mine.load_state_dict({prefix + n: t for n, t in saved(net, batches=batches).items()})
    assert equal(mine.state_dict(), saved(net, batches=batches or 0))


@pytest.mark.parametrize("name", ["darts", "pc-darts-cifar", "pc-darts-imagenet"])
def test_loaded_network_matches_reference_logits(name: str) -> None:
    """The logits of the formulas with the checkpoint's weights, its running statistics and its classifier."""
    net = CODEBASES[name]
    theta, stats = naive.random_checkpoint(net, 10, 2)
    mine = supernet(net)
    mine.load_state_dict(naive.flat_checkpoint(theta, stats))
    mine.eval()
    side = 8 if net.stem == "cifar" else 32
    g = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, side, side, generator=g, dtype=torch.float64)
    ops = {kind: torch.rand(14, 8, generator=g, dtype=torch.float64) / 4 for kind in KINDS}
    edges = {kind: torch.rand(14, generator=g, dtype=torch.float64) for kind in KINDS} if net.k > 1 else None
    last = naive.Run(theta, stats, train=False).network(net, x, ops, edges)[-1]
    want = naive.head(last, theta["classifier.weight"], theta["classifier.bias"])
    weights = {kind: CellWeights(ops[kind], edges[kind] if edges else None) for kind in KINDS}
    with torch.no_grad():
        got = mine.classifier(mine(x, weights)[-1].mean((2, 3)))
    assert_close(got, want, "logits")


def test_published_networks_have_published_sizes() -> None:
    """Weights of the three networks as their authors ran them (10 classes on CIFAR, 1000 on ImageNet)."""
    runs = {("cifar", 1, 10): 1_930_618, ("cifar", 4, 10): 299_578, ("imagenet", 2, 1000): 956_512}
    for (stem, k, classes), count in runs.items():
        mine = Supernet(S0, C=16, layers=8, stem=stem, partial_channels=k)
        mine.attach_classifier(classes)
        assert sum(p.numel() for p in mine.parameters()) == count


def test_float32_checkpoint_fills_float64_network() -> None:
    net = CODEBASES["three-cells"]
    single = {n: t.float() if t.is_floating_point() else t for n, t in saved(net).items()}
    mine = supernet(net)
    mine.load_state_dict(single)
    assert all(p.dtype == torch.float64 for p in mine.parameters())
    assert all(torch.equal(t.to(single[n]), single[n]) for n, t in mine.state_dict().items())


def test_mismatched_checkpoint_is_rejected() -> None:
    net = CODEBASES["three-cells"]
    whole = saved(net)
    name = "cells.1._ops.0._ops.3.conv_1.weight"
    with pytest.raises(RuntimeError, match=f"Missing.*{name}"):
        supernet(net).load_state_dict({n: t for n, t in whole.items() if n != name})
    with pytest.raises(RuntimeError, match=r"Unexpected.*cells\.9"):
        supernet(net).load_state_dict(whole | {"cells.9.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
        supernet(net).load_state_dict(whole | {name: torch.zeros(4, 4, 1, 1)})
    mine = supernet(net)
    mine.attach_classifier(10)
    with pytest.raises(RuntimeError, match=r"Missing.*classifier\.weight"):
        mine.load_state_dict(saved(net, classes=None))
    with pytest.raises(RuntimeError, match="size mismatch"):
        supernet(net).load_state_dict(saved(CODEBASES["pc-darts-cifar"]), strict=False)


def test_non_strict_load_reports_missing_and_unexpected_keys() -> None:
    net = CODEBASES["three-cells"]
    mine, whole = supernet(net), saved(net, classes=None, batches=None)
    before = copy.deepcopy(mine.state_dict())
    part = {n: t for n, t in whole.items() if n.startswith("cells.1._ops.0.")}
    keys = mine.load_state_dict(part | {"cells.1._ops.0._ops.0.weight": torch.zeros(1)}, strict=False)
    assert keys.unexpected_keys == ["cells.1._ops.0._ops.0.weight"]
    assert set(keys.missing_keys) == set(whole) - set(part)
    assert equal(mine.state_dict(), before | part)


def test_meta_network_is_filled_by_assign() -> None:
    """assign=True, as torch means it: dtype and device are the checkpoint's; the checkpoint itself is not shared by cells."""
    net = CODEBASES["pc-darts-imagenet"]
    with torch.device("meta"):
        mine = Supernet(S0, C=net.C, layers=net.layers, stem=net.stem, partial_channels=net.k)
    checkpoint = saved(net)
    mine.load_state_dict(checkpoint, assign=True)
    assert equal(mine.state_dict(), checkpoint)
    assert all(isinstance(p, torch.nn.Parameter) and p.requires_grad for p in mine.parameters())


def test_torch_save_round_trips(tmp_path) -> None:
    """Also as a whole module, and as a copy."""
    mine = supernet(CODEBASES["three-cells"])
    mine.load_state_dict(saved(CODEBASES["three-cells"]))
    torch.save(mine.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert equal(state, mine.state_dict())
    copied = copy.deepcopy(mine)
    with torch.no_grad():
        for p in mine.parameters():
            p.zero_()
    assert equal(copied.state_dict(), state)


def test_loaded_dictionary_is_not_modified() -> None:
    net = CODEBASES["three-cells"]
    checkpoint = {f"module.{n}": t for n, t in saved(net).items()}
    before = copy.deepcopy(checkpoint)
    mine = supernet(net)
    mine.load_state_dict(checkpoint)
    with torch.no_grad():
        for p in mine.parameters():
            p.zero_()
    assert equal(checkpoint, before)


def test_classifier_is_kept_if_size_matches() -> None:
    mine = supernet(CODEBASES["three-cells"])
    assert mine.classifier is None
    first = mine.attach_classifier(10)
    assert (first.in_features, first.out_features) == (mine.tap_channels[-1], 10)
    assert mine.attach_classifier(10) is first
    with pytest.raises(ValueError, match="has a classifier of 10 classes, requested 11"):
        mine.attach_classifier(11)
    assert mine.classifier is first


def test_stages_end_before_reductions() -> None:
    mine = Supernet(S0, C=16, layers=8)
    assert mine.taps == (1, 4, 7)
    assert mine.tap_channels == [64, 128, 256]
    assert [cell.kind for cell in mine.cells] == ["normal"] * 2 + ["reduce"] + ["normal"] * 2 + ["reduce"] + ["normal"] * 2
