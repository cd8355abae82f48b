"""The zoo itself: every network moves all that it should; DARTS and PC-DARTS are the formulas of tests/support/naive.py."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.support import naive
from tests.support.naive import assert_all_close, assert_close
from tests.zoo import ZOO, Entry, bilevel_steps, darts, default_dtype, furthest, images, operations
from tests.zoo.moved import BY_NAME, moved, random
from tests.zoo.partial import PcDarts, PcDartsImageNet

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLED = ("nasbench201_gdas", "gdas", "gdas_argmax")  # only the sampled candidates run


def test_entries_are_distinct() -> None:
    assert len(BY_NAME) == len(ZOO)
    assert {entry.fuses for entry in ZOO} == {"cell", "op", "left alone"}
    assert all(entry.why for entry in ZOO)


@pytest.mark.parametrize("entry", ZOO, ids=list(BY_NAME))
def test_steps_update_everything(entry: Entry) -> None:
    """Momentum and decay skip a missing gradient, so what moved has one; alpha's is not zero."""
    model, seen, before = moved(entry.name)
    assert all(bool(value.isfinite().all()) for value in seen.values())
    assert {value.dtype for value in seen.values()} == {torch.float64, torch.int64}
    idle = [name for name, value in before.items() if name in seen and torch.equal(seen[name], value)]
    if entry.name in SAMPLED:
        assert len(idle) < len(before)
        assert not [name for name in idle if name.startswith("alpha")]
    else:
        assert idle == []
    assert all(bool(a.grad.any()) for a in entry.arch(model) if a.requires_grad)
    assert not {id(a) for a in entry.arch(model)} & {id(p) for p in entry.weights(model)}


@pytest.mark.parametrize("name", ["drnas", "pdarts_3", "darts_pt", "nasbench201_gdas"])
def test_seed_determines_all_draws(name: str) -> None:
    entry = BY_NAME[name]
    state = torch.get_rng_state()
    again = bilevel_steps(entry.make(1), entry, entry.length, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    first = moved(name)[1]
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    other = bilevel_steps(entry.make(1), entry, 1, seed=3)
    assert not torch.equal(other["step 0 valid"], first["step 0 valid"])


@pytest.mark.parametrize("name", ["pcdarts_imagenet", "pdarts_3"])
def test_rounding_errors_do_not_grow(name: str) -> None:
    """So that two ways to compute the same can be compared over many steps."""
    entry = BY_NAME[name]
    model = entry.make(1)
    for p in entry.weights(model):
        p.data.mul_(1 + 2e-15 * random(*p.shape))
    error, _ = furthest(moved(name)[1], bilevel_steps(model, entry, entry.length, seed=2))
    assert 0 < error < 1e-11


@pytest.mark.parametrize(
    ("network", "net"),
    [
        (lambda: darts.Network(steps=4), naive.Net(C=4, layers=3)),
        (lambda: PcDarts(layers=3, steps=4), naive.Net(C=8, layers=3, k=4)),
        (lambda: PcDartsImageNet(layers=3, steps=4), naive.Net(C=4, layers=3, k=2, stem="imagenet")),
    ],
    ids=["darts", "pcdarts", "pcdarts-imagenet"],
)
def test_darts_and_pc_darts_match_formulas(network: Callable[[], nn.Module], net: naive.Net) -> None:
    """Names, logits and the gradients of weights, alpha and beta."""
    with default_dtype(torch.float64):
        model = network()
    theta, stats = naive.random_checkpoint(net, 10, seed=0)
    model.load_state_dict(naive.flat_checkpoint(theta, stats))
    x, weighing = images(1, 32 if net.stem == "imagenet" else 8, torch.float64)[0], random(3, 10)
    for a in model.arch_parameters():
        a.data.mul_(1e3)
    arch = naive.leaves({f"arch {i}": a.detach().clone() for i, a in enumerate(model.arch_parameters())})
    kinds = "normal", "reduce"
    rows = {kind: naive.edge_rows(arch[f"arch {i}"], net, kind) for i, kind in enumerate(kinds)}
    betas = {kind: naive.edge_betas(arch[f"arch {i}"]) for i, kind in enumerate(kinds, start=2)} if net.k > 1 else None
    theta = naive.leaves(theta)
    feature = naive.Run(theta, stats).network(net, x, rows, betas)[-1]
    want = naive.head(feature, theta["classifier.weight"], theta["classifier.bias"])
    got = model(x)
    assert_close(got, want, "logits")
    mine = dict(model.named_parameters()) | dict(zip(arch, model.arch_parameters(), strict=True))
    assert_all_close(naive.gradients((got * weighing).sum(), mine), naive.gradients((want * weighing).sum(), theta | arch))


@pytest.mark.parametrize("table", [operations.NESTED_OPS, operations.SEQUENTIAL_OPS, operations.OPS | operations.POOL_BN])
@pytest.mark.parametrize("stride", [1, 2])
def test_candidate_variants_are_equivalent(table: dict[str, operations.Build], stride: int) -> None:
    x = random(3, 4, 8, 8)
    for name in operations.PRIMITIVES:
        plain, other = operations.OPS[name](4, stride).double(), table[name](4, stride).double()
        for p, q in zip(plain.parameters(), other.parameters(), strict=True):
            q.data.copy_(p.data)
        assert torch.equal(plain(x), other(x))


@pytest.mark.parametrize("name", ["darts_second_order", "pcdarts", "pdarts_3", "drnas", "darts_pt", "pt_darts"])
def test_new_keeps_alpha_and_reinitialises_weights(name: str) -> None:
    entry, model = BY_NAME[name], moved(name)[0]
    with default_dtype(torch.float64):
        new = model.new()
    shapes = [{key: t.shape for key, t in m.state_dict().items()} for m in (new, model)]
    assert shapes[0] == shapes[1]
    assert all(torch.equal(a, b) for a, b in zip(entry.arch(new), entry.arch(model), strict=True))
    assert not torch.equal(new.classifier.weight, model.classifier.weight)
