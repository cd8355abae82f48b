"""The zoo itself: every network moves all that it should, and does what its codebase is listed for."""

from collections.abc import Iterable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import naive
from tests.naive import assert_all_close, assert_close
from tests.zoo import ZOO, Entry, bilevel_steps, darts, default_dtype, frameworks, images, nasbench201, operations, robust
from tests.zoo.partial import DrnasMixedOp, PcDarts, PcDartsImageNet
from tests.zoo.pdarts import PDarts

pytestmark = pytest.mark.usefixtures("one_thread")
BY_NAME = {entry.name: entry for entry in ZOO}
SAMPLED = ("nasbench201_gdas", "gdas", "gdas_argmax")  # only the sampled candidates run
EVERY = pytest.mark.parametrize("entry", ZOO, ids=list(BY_NAME))


@cache
def moved(name: str) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """(the network after `entry.length` steps, all that moved, what it was before)."""
    entry = BY_NAME[name]
    model = entry.make(1)
    before = model.state_dict() | {f"alpha {i}": a for i, a in enumerate(entry.arch(model))}
    before = {key: value.detach().clone() for key, value in before.items()}
    return model, bilevel_steps(model, entry, entry.length, seed=2), before


def loss(model: nn.Module, entry: Entry) -> Tensor:
    x, y = images(7, entry.side, torch.float64)
    return F.cross_entropy(model(x), y)


def without_gradient(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    return [name for name, p in named if p.grad is None]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def double(make: type[nn.Module], *arguments: object) -> nn.Module:
    torch.manual_seed(0)
    return make(*arguments).double()


def test_entries_are_told_apart() -> None:
    assert len(BY_NAME) == len(ZOO)
    assert {entry.fuses for entry in ZOO} == {"cell", "op", "left alone"}
    assert all(entry.why for entry in ZOO)


@EVERY
def test_steps_move_everything(entry: Entry) -> None:
    _, seen, before = moved(entry.name)
    assert all(bool(value.isfinite().all()) for value in seen.values())
    assert {value.dtype for value in seen.values()} == {torch.float64, torch.int64}
    idle = [name for name, value in before.items() if seen[name].shape == value.shape and torch.equal(seen[name], value)]
    if entry.name in SAMPLED:
        assert len(idle) < len(before)
        assert not [name for name in idle if name.startswith("alpha")]
    else:
        assert idle == []


@EVERY
def test_gradients_reach_every_weight_and_all_of_alpha(entry: Entry) -> None:
    model = entry.make(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss(model, entry).backward()
    assert bool(without_gradient(model.named_parameters())) == (entry.name in SAMPLED)
    assert all(a.grad is not None and bool(a.grad.any()) for a in entry.arch(model))
    assert not {id(a) for a in entry.arch(model)} & {id(p) for p in entry.weights(model)}


@pytest.mark.parametrize("name", ["drnas", "pdarts_3", "darts_pt", "nasbench201_gdas"])
def test_the_seed_decides_every_draw(name: str) -> None:
    entry = BY_NAME[name]
    state = torch.get_rng_state()
    again = bilevel_steps(entry.make(1), entry, entry.length, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    first = moved(name)[1]
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    other = bilevel_steps(entry.make(1), entry, 1, seed=3)
    assert not torch.equal(other["step 0 valid"], first["step 0 valid"])


@pytest.mark.parametrize(
    ("network", "net"),
    [
        (lambda: darts.Network(steps=4), naive.Net(C=4, layers=3)),
        (lambda: PcDarts(layers=3, steps=4), naive.Net(C=8, layers=3, k=4)),
        (lambda: PcDartsImageNet(layers=3, steps=4), naive.Net(C=4, layers=3, k=2, stem="imagenet")),
    ],
    ids=["darts", "pcdarts", "pcdarts-imagenet"],
)
def test_darts_and_pc_darts_are_the_formulas(network: object, net: naive.Net) -> None:
    """Names, logits and the gradients of weights, alpha and beta."""
    with default_dtype(torch.float64):
        model = network()
    theta, stats = naive.random_checkpoint(net, 10, seed=0)
    model.load_state_dict(naive.flat_checkpoint(theta, stats))
    x, weighing = images(1, 64 if net.stem == "imagenet" else 8, torch.float64)[0], random(3, 10)
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
def test_a_candidates_forms_compute_the_same(table: dict[str, operations.Build], stride: int) -> None:
    x = random(3, 4, 8, 8)
    for name in operations.PRIMITIVES:
        plain, other = operations.OPS[name](4, stride).double(), table[name](4, stride).double()
        for p, q in zip(plain.parameters(), other.parameters(), strict=True):
            q.data.copy_(p.data)
        assert torch.equal(plain(x), other(x))


@pytest.mark.parametrize("name", ["darts_second_order", "pcdarts", "pdarts_3", "drnas", "darts_pt", "pt_darts"])
def test_new_has_this_alpha_and_other_weights(name: str) -> None:
    entry, model = BY_NAME[name], moved(name)[0]
    with default_dtype(torch.float64):
        new = model.new()
    shapes = [{key: t.shape for key, t in m.state_dict().items()} for m in (new, model)]
    assert shapes[0] == shapes[1]
    assert all(torch.equal(a, b) for a, b in zip(entry.arch(new), entry.arch(model), strict=True))
    assert not torch.equal(new.classifier.weight, model.classifier.weight)


@pytest.mark.parametrize("skips", [True, False])
def test_a_candidate_of_weight_zero(skips: bool) -> None:
    """Where zeros are skipped its BatchNorms stay and its gradients are missing; else they move and are zero."""
    op = double(robust.SkippingMixedOp if skips else darts.MixedOp, 4, 1)
    weights = torch.tensor([0.1, 0.2, 0, 0.3, 0, 0.4, 0.5, 0.6], dtype=torch.float64, requires_grad=True)
    op(random(2, 4, 8, 8), weights).sum().backward()
    for number, candidate in enumerate(op._ops):
        idle = skips and number in (2, 4)
        for m in candidate.modules():
            if isinstance(m, nn.BatchNorm2d):
                assert int(m.num_batches_tracked) == (0 if idle else 1)
        for p in candidate.parameters():
            assert (p.grad is None) == idle
            assert idle or bool(p.grad.any()) == (number != 4)


def test_pdarts_zeros_are_detached_and_dropout_follows() -> None:
    x = random(2, 4, 8, 8).requires_grad_()
    assert not operations.DetachedZero(1)(x).requires_grad
    assert operations.Zero(2)(x).requires_grad
    model, _, _ = moved("pdarts_5")
    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert dropouts and all(m.p == 0.0 for m in dropouts)
    assert all(m.p == 0.7 for m in BY_NAME["pdarts_3"].make(1).modules() if isinstance(m, nn.Dropout))
    assert isinstance(model, PDarts)
    assert {len(op.m_ops) for cell in model.cells for op in cell.cell_ops} == {5}


def test_drnas_masks_exactly_and_grows() -> None:
    model, _, _ = moved("drnas")
    weights = model.cell_arguments(model.cells[0])[0]
    assert int((weights == 0).sum()) == 3 * model.edges
    assert_close(weights.sum(dim=-1), torch.ones(model.edges, dtype=torch.float64))
    op = double(DrnasMixedOp, 24, 2, 6)
    before = [p.detach().clone() for p in op.parameters()]
    held = list(op.parameters())
    op(random(2, 24, 8, 8), torch.ones(7, dtype=torch.float64))
    op.wider(4)
    for old, was, new in zip(held, before, op.parameters(), strict=True):
        assert new is not old and new.shape[0] > was.shape[0]
        assert torch.equal(new[: was.shape[0], : was.shape[1]], was)
    assert op(random(2, 24, 8, 8), torch.ones(7, dtype=torch.float64)).shape == (2, 24, 4, 4)


def test_pc_darts_imagenet_moves_statistics_twice() -> None:
    model = BY_NAME["pcdarts_imagenet"].make(1)
    loss(model, BY_NAME["pcdarts_imagenet"])
    counts = {name: int(t) for name, t in model.state_dict().items() if name.endswith("num_batches_tracked")}
    assert {t for name, t in counts.items() if "_ops" in name} == {2}
    assert {t for name, t in counts.items() if "_ops" not in name} == {1}


@pytest.mark.parametrize("perturb", [darts.random_alpha, darts.pgd_alpha])
def test_sdarts_hands_in_raw_weights_and_restores(perturb: object) -> None:
    model = BY_NAME["sdarts_adv"].make(1)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    before = [a.detach().clone() for a in model.arch_parameters()]
    with model.perturbed(perturb, *images(0, 16, torch.float64)):
        weights = model.cell_arguments(model.cells[0])[0]
        assert weights is model.alphas_normal
        assert not torch.allclose(weights.sum(dim=-1), torch.ones(5, dtype=torch.float64), atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(model.arch_parameters(), before, strict=True))
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_fairdarts_starts_at_one_half_and_gaea_stays_on_the_simplex() -> None:
    fair = BY_NAME["fairdarts"].make(1)
    assert bool((fair.cell_arguments(fair.cells[0])[0] == 0.5).all())
    for alpha in BY_NAME["gaea"].arch(moved("gaea")[0]):
        assert_close(alpha.sum(dim=-1), torch.ones(5, dtype=torch.float64))


def test_rdarts_drops_images_in_place_and_differentiates_twice() -> None:
    x = torch.ones(64, 2, 2, 2, dtype=torch.float64)
    out = robust.drop_path(x, 0.5)
    assert out is x and set(out.unique().tolist()) == {0.0, 2.0}
    assert bool((out == out[:, :1, :1, :1]).all())
    model = BY_NAME["rdarts"].make(1)
    x, y = images(3, 16, torch.float64)
    torch.manual_seed(5)
    products = robust.hessian_product(model, x, y)
    torch.manual_seed(5)
    F.cross_entropy(model(x), y)
    directions = [torch.randn_like(a) for a in model.arch_parameters()]
    gradients = []
    for factor in (1e-7, -2e-7):  # so small that no ReLU switches
        for a, v in zip(model.arch_parameters(), directions, strict=True):
            a.data.add_(v, alpha=factor)
        gradients.append(torch.autograd.grad(F.cross_entropy(model(x), y), model.arch_parameters()))
    for product, plus, minus in zip(products.values(), *gradients, strict=True):
        assert_close(product, (plus - minus) / 2e-7, "Hessian product", tol=1e-5)


def test_darts_minus_adds_a_skip() -> None:
    op, x, weights = double(robust.AuxiliaryMixedOp, 4, 2), random(2, 4, 8, 8), random(8)
    op.beta = 0.25
    assert_close(op(x, weights), darts.MixedOp.forward(op, x, weights) + 0.25 * op.auxiliary_op(x))
    model, _, _ = moved("darts_minus_in_cell")
    assert {m.beta for m in model.modules() if isinstance(m, robust.AuxiliaryCell)} == {0.0}


def test_darts_pt_overwrites_decided_rows() -> None:
    model, seen, _ = moved("darts_pt")
    normal, reduce = model.cells[0], model.cells[1]
    assert model.cell_arguments(normal)[0][0].tolist() == [0, 1, 0]
    assert model.cell_arguments(reduce)[0][1].tolist() == [0, 0, 1]
    assert seen["step 2 scores"].unique().numel() == 3
    model.zero_grad()
    loss(model, BY_NAME["darts_pt"]).backward()
    idle = without_gradient(normal._ops[0].named_parameters())
    assert idle == without_gradient(normal._ops[0]._ops[0].named_parameters(prefix="_ops.0"))
    assert without_gradient(reduce._ops[1].named_parameters()) == [n for n, _ in reduce._ops[1].named_parameters()]


def test_sgas_decides_edges() -> None:
    model, _, _ = moved("sgas")
    model.zero_grad()
    for a in model.arch_parameters():
        a.grad = None
    loss(model, BY_NAME["sgas"]).backward()
    decided = [e for e, a in enumerate(model.arch_parameters()) if a.grad is None]
    assert decided == [0, 3, 5, 9]
    normal, reduce = model.cells[0], model.cells[1]
    assert len(without_gradient(normal._ops[3].named_parameters())) == len(list(normal._ops[3].named_parameters())) > 0
    chosen = {name for name, p in reduce._ops[0].named_parameters() if p.grad is not None}
    assert chosen == {f"_ops.4.{name}" for name, _ in reduce._ops[0]._ops[4].named_parameters()}


@pytest.mark.parametrize("index", [0, 3, 4])
def test_gdas_gives_the_other_weights_the_sum_of_the_gradient(index: int) -> None:
    op, x, g = double(nasbench201.GdasMixedOp, 4, 1), random(2, 4, 8, 8), random(2, 4, 8, 8, seed=1)
    weights = F.one_hot(torch.tensor(index), 8).double().requires_grad_()
    out = op(x, weights, index)
    assert_close(out, op._ops[index](x))
    (gradient,) = torch.autograd.grad((g * out).sum(), weights)
    want = g.sum().expand(8).clone()
    want[index] = (g * op._ops[index](x)).sum()
    assert_close(gradient, want)


def test_nasbench201_sums_nodes_by_batch_statistics() -> None:
    cell = double(nasbench201.NB201Cell, 4)
    assert not list(cell.buffers())
    weights = torch.zeros(6, 5, dtype=torch.float64)
    weights[:, 1] = torch.tensor([2, 3, 5, 7, 11, 13])  # 1<-0, 2<-0, 2<-1, 3<-0, 3<-1, 3<-2
    x = random(2, 4, 8, 8)
    assert_close(cell(x, weights), x * (7 + 11 * 2 + 13 * (3 + 5 * 2)))


def test_frameworks_alphas_are_shared_by_the_cells_of_a_kind() -> None:
    for name, count in (("naslib", 10), ("nni", 10), ("archai", 10), ("pt_darts", 4)):
        model = BY_NAME[name].make(1)
        assert len(model.arch_parameters()) == count
        assert all(isinstance(a, nn.Parameter) for a in model.arch_parameters())
        alpha = model.arch_parameters()[0]
        assert sum(p is alpha for p in model.parameters()) == 1
    choices = [m for m in BY_NAME["nni"].make(1).modules() if isinstance(m, frameworks.LayerChoice)]
    assert len({id(m.alpha) for m in choices}) == 10 < len(choices)
