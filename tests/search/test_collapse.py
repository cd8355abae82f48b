"""The figures of a collapsing search, made by hand; the sharpness of losses whose Hessian is known."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastdarts.report.style import family
from fastdarts.search import collapse_figures, dominant_eigenvalue
from fastdarts.spaces import CANDIDATES, S0, SKELETONS, Space
from fastdarts.spaces.candidates import Candidate
from fastdarts.spaces.genotype import COLLAPSE_SKIPS, Genotype, collapse_line
from fastdarts.supernet import CellWeights

NORMAL = [("skip_connect", 0), ("skip_connect", 1)] * 3 + [("sep_conv_3x3", 0), ("skip_connect", 1)]
REDUCE = [("sep_conv_5x5", 0), ("max_pool_3x3", 1)] * 4
GENOTYPE = Genotype(tuple(NORMAL), (2, 3, 4, 5), tuple(REDUCE), (2, 3, 4, 5))


def both(normal: Tensor, reduce: Tensor) -> dict[str, CellWeights]:
    return {"normal": CellWeights(normal), "reduce": CellWeights(reduce)}


def test_figures_match_hand_computation() -> None:
    """normal: all eight equal. reduce: half of the edges all on skip, half 0.1 skip and 0.9 shared by two convolutions."""
    reduce = torch.zeros(14, 8, dtype=torch.float64)
    reduce[:7, 3] = 1.0
    reduce[7:, 3], reduce[7:, 4], reduce[7:, 7] = 0.1, 0.6, 0.3
    figures = collapse_figures(S0, both(torch.full((14, 8), 1 / 8), reduce), GENOTYPE)
    assert figures["normal"] == {
        "operations": 8,
        "skips": 7,
        "entropy": pytest.approx(math.log(8), rel=1e-12),
        "skip_minus_conv": pytest.approx(0, abs=1e-15),
    }
    entropy = -sum(p * math.log(p) for p in (0.1, 0.6, 0.3)) / 2
    assert figures["reduce"] == {
        "operations": 8,
        "skips": 0,
        "entropy": pytest.approx(entropy, rel=1e-12),
        "skip_minus_conv": pytest.approx((1.0 + (0.1 - 0.9 / 4)) / 2, rel=1e-12),
    }
    assert figures["normal"]["skips"] >= COLLAPSE_SKIPS == 5 > figures["reduce"]["skips"]


def test_custom_candidate_counts_as_registered_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the figures and in the drawings, whatever its name."""
    monkeypatch.setitem(CANDIDATES, "conv_that_passes", Candidate("conv_that_passes", "skip", SKELETONS))
    normal = tuple(("conv_that_passes", state) for _, state in NORMAL)
    genotype = replace(GENOTYPE, normal=normal)
    figures = collapse_figures(S0, both(torch.full((14, 8), 1 / 8), torch.full((14, 8), 1 / 8)), genotype)
    assert (figures["normal"]["skips"], figures["reduce"]["skips"]) == (8, 0)
    assert family("conv_that_passes") == "skip" and family("conv_that_is_not_known") == "convolution"
    assert [family(name) for name in S0.normal[0]] == [
        *("other", "pooling", "pooling", "skip", "convolution", "convolution", "dilated convolution", "dilated convolution")
    ]


def test_pools_and_none_are_not_convolutions() -> None:
    ops = torch.zeros(14, 8, dtype=torch.float64)
    ops[:, :4] = torch.tensor([0.4, 0.2, 0.1, 0.3], dtype=torch.float64)
    figures = collapse_figures(S0, both(ops, ops), GENOTYPE)
    assert figures["normal"]["skip_minus_conv"] == pytest.approx(0.3, rel=1e-12)


def test_edges_without_skip_or_convolution_are_excluded() -> None:
    """Only edge 3 has both; the padding of its neighbours' rows counts nowhere."""
    lists = [("sep_conv_3x3", "max_pool_3x3")] * 14
    lists[3] = ("dil_conv_3x3", "skip_connect", "none")
    ops = torch.zeros(14, 3, dtype=torch.float64)
    ops[:, 0] = 1.0
    ops[3] = torch.tensor([0.2, 0.7, 0.1], dtype=torch.float64)
    space = Space("few", tuple(lists), (("sep_conv_3x3",),) * 14)
    figures = collapse_figures(space, both(ops, torch.ones(14, 1)), GENOTYPE)
    assert figures["normal"]["skip_minus_conv"] == pytest.approx(0.5, rel=1e-12)
    assert figures["normal"]["entropy"] == pytest.approx(-sum(p * math.log(p) for p in (0.2, 0.7, 0.1)) / 14)
    assert figures["reduce"] == {"operations": 8, "skips": 0, "entropy": 0, "skip_minus_conv": None}


def test_space_with_one_kind_of_cell() -> None:
    figures = collapse_figures(S0, {"normal": CellWeights(torch.full((14, 8), 1 / 8))}, GENOTYPE)
    assert list(figures) == ["normal"] and figures["normal"]["skips"] == 7


def test_warning_threshold_is_proportional() -> None:
    """5 of 8; of 6 operations 3.75, so 4."""
    assert [collapse_line(n) for n in (8, 6, 4, 10, 16)] == [5, 4, 3, 7, 10]


def rotation(n: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q


@pytest.mark.parametrize(
    ("spectrum", "dominant"),
    [([9, 1, 0.5, -2, 0, 0.1], 9), ([3, -12, 1, 1, 2, -1], -12), ([0.02, 1e-4, 0, 0, 0, 0], 0.02)],
    ids=["positive", "negative", "flat"],
)
def test_eigenvalue_of_quadratic(spectrum: list[float], dominant: float) -> None:
    """Of largest magnitude, with its sign; over two parameters; the point it is taken at does not matter."""
    q = rotation(6)
    hessian = q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ q.T
    parameters = [torch.full((2, 2), 3.0, dtype=torch.float64), torch.tensor([1.0, -7.0], dtype=torch.float64)]
    before = [p.clone() for p in parameters]

    def gradient() -> list[Tensor]:
        flat = hessian @ torch.cat([p.flatten() for p in parameters]) + 1.5
        return [flat[:4].view(2, 2), flat[4:]]

    assert dominant_eigenvalue(gradient, parameters, iterations=30) == pytest.approx(dominant, rel=1e-8)
    assert dominant_eigenvalue(gradient, parameters) == pytest.approx(dominant, rel=1e-2)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_eigenvalue_by_autograd() -> None:
    """Sum of cosh: the Hessian is cosh(x) on the diagonal, its largest entry where |x| is largest."""
    x = torch.tensor([[0.1, -2.0], [0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    value = dominant_eigenvalue(lambda: list(torch.autograd.grad(x.cosh().sum(), x)), [x], iterations=40)
    assert value == pytest.approx(math.cosh(2.0), rel=1e-3)
    smaller = dominant_eigenvalue(lambda: list(torch.autograd.grad(x.cosh().sum(), x)), [x], iterations=40, radius=1e-4)
    assert smaller == pytest.approx(math.cosh(2.0), rel=1e-7)


def test_zero_curvature_gives_zero() -> None:
    x = torch.ones(3)
    assert dominant_eigenvalue(lambda: [torch.ones(3)], [x]) == 0.0


def test_parameters_are_restored_after_failed_gradient() -> None:
    x = torch.ones(3)

    def failing() -> list[Tensor]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        dominant_eigenvalue(failing, [x])
    assert torch.equal(x, torch.ones(3))
