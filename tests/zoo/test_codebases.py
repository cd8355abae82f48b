"""Each network of the zoo does what is particular to its codebase."""

from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.naive import assert_close
from tests.zoo import darts, deciding, frameworks, images, nasbench201, operations, probes, robust
from tests.zoo.moved import BY_NAME, double, loss, moved, random
from tests.zoo.partial import DrnasMixedOp
from tests.zoo.pdarts import PDarts

pytestmark = pytest.mark.usefixtures("one_thread")


def without_gradient(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    return [name for name, p in named if p.grad is None]


@pytest.mark.parametrize("skips", [True, False])
def test_zero_weight_candidates(skips: bool) -> None:
    """Where zeros are skipped its BatchNorms stay and its gradients are missing; else they move and are zero."""
    op = double(deciding.SkippingMixedOp if skips else darts.MixedOp, 4, 1)
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


def test_pdarts_zeros_are_detached_with_dropout() -> None:
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


def test_pc_darts_imagenet_updates_statistics_twice() -> None:
    model = BY_NAME["pcdarts_imagenet"].make(1)
    loss(model, BY_NAME["pcdarts_imagenet"])
    counts = {name: int(t) for name, t in model.state_dict().items() if name.endswith("num_batches_tracked")}
    assert {t for name, t in counts.items() if "_ops" in name} == {2}
    assert {t for name, t in counts.items() if "_ops" not in name} == {1}


@pytest.mark.parametrize("perturb", [darts.random_alpha, darts.pgd_alpha])
def test_sdarts_passes_raw_weights_and_restores(perturb: Callable[[nn.Module, Tensor, Tensor], None]) -> None:
    model = BY_NAME["sdarts_adv"].make(1)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    before = [a.detach().clone() for a in model.arch_parameters()]
    with model.perturbed(perturb, *images(0, 16, torch.float64)):
        weights = model.cell_arguments(model.cells[0])[0]
        assert weights is model.alphas_normal
        assert not torch.allclose(weights.sum(dim=-1), torch.ones(5, dtype=torch.float64), atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(model.arch_parameters(), before, strict=True))
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_fairdarts_starts_at_half_and_gaea_stays_on_simplex() -> None:
    fair = BY_NAME["fairdarts"].make(1)
    assert bool((fair.cell_arguments(fair.cells[0])[0] == 0.5).all())
    for alpha in BY_NAME["gaea"].arch(moved("gaea")[0]):
        assert_close(alpha.sum(dim=-1), torch.ones(5, dtype=torch.float64))


def test_rdarts_drops_paths_in_place_and_differentiates_twice() -> None:
    x = torch.ones(64, 2, 2, 2, dtype=torch.float64)
    out = robust.drop_path(x, 0.5)
    assert out is x and set(out.unique().tolist()) == {0.0, 2.0}
    assert bool((out == out[:, :1, :1, :1]).all())
    model = BY_NAME["rdarts"].make(1)
    x, y = images(3, 16, torch.float64)
    torch.manual_seed(5)
    products = probes.hessian_product(model, x, y)
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


def test_candidate_lists_shrink() -> None:
    model, _, _ = moved("shrinking")
    assert {len(op._ops) for cell in model.cells for op in cell._ops} == {6}
    assert {len(row) for cell in model.cells for row in model.cell_arguments(cell)[0]} == {6}


@pytest.mark.parametrize("index", [0, 3, 4])
def test_gdas_passes_gradient_to_other_weights(index: int) -> None:
    op, x, g = double(nasbench201.GdasMixedOp, 4, 1), random(2, 4, 8, 8), random(2, 4, 8, 8, seed=1)
    weights = F.one_hot(torch.tensor(index), 8).double().requires_grad_()
    out = op(x, weights, index)
    assert_close(out, op._ops[index](x))
    (gradient,) = torch.autograd.grad((g * out).sum(), weights)
    want = g.sum().expand(8).clone()
    want[index] = (g * op._ops[index](x)).sum()
    assert_close(gradient, want)


def test_nasbench201_sums_nodes_with_batch_statistics() -> None:
    cell = double(nasbench201.NB201Cell, 4)
    assert not list(cell.buffers())
    weights = torch.zeros(6, 5, dtype=torch.float64)
    weights[:, 1] = torch.tensor([2, 3, 5, 7, 11, 13])  # 1<-0, 2<-0, 2<-1, 3<-0, 3<-1, 3<-2
    x = random(2, 4, 8, 8)
    assert_close(cell(x, weights), x * (7 + 11 * 2 + 13 * (3 + 5 * 2)))


def test_framework_alphas_are_shared_per_cell_kind() -> None:
    for name, count in (("naslib", 10), ("nni", 10), ("archai", 10), ("pt_darts", 4)):
        model = BY_NAME[name].make(1)
        assert len(model.arch_parameters()) == count
        assert all(isinstance(a, nn.Parameter) for a in model.arch_parameters())
        alpha = model.arch_parameters()[0]
        assert sum(p is alpha for p in model.parameters()) == 1
    choices = [m for m in BY_NAME["nni"].make(1).modules() if isinstance(m, frameworks.LayerChoice)]
    assert len({id(m.alpha) for m in choices}) == 10 < len(choices)
