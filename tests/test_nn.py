"""nn.MixedOp and nn.Cell compared with DARTS' own modules, whose state_dict they load."""

import pytest
import torch
from torch import Tensor, nn

import fastdarts.nn as fused
from tests.support.backends import needs_native
from tests.zoo import darts

E, K = 5, 8  # edges of two nodes, candidates


def image(C: int, side: int = 8) -> Tensor:
    return torch.randn(2, C, side, side, dtype=torch.float64, requires_grad=True)


def filled(mine: nn.Module, own: nn.Module) -> nn.Module:
    """`mine` with the numbers of `own`, by name."""
    assert mine.state_dict().keys() == own.state_dict().keys()
    mine.double().load_state_dict(own.double().state_dict())
    return mine


def assert_same(mine: nn.Module, own: nn.Module, given: list[Tensor]) -> None:
    """Outputs, gradients of the inputs, and the state afterwards."""
    for training in (True, False):
        outs = [module.train(training)(*given) for module in (mine, own)]
        grads = [torch.autograd.grad(out.square().sum(), given) for out in outs]
        for a, b in zip((outs[0], *grads[0]), (outs[1], *grads[1]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    for name, value in own.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value, rtol=1e-10, atol=1e-10)


@needs_native
@pytest.mark.parametrize("stride", [1, 2])
def test_mixed_op_matches_darts(stride: int) -> None:
    torch.manual_seed(0)
    own = darts.MixedOp(4, stride)
    mine = filled(fused.MixedOp(4, stride), own)
    assert_same(mine, own, [image(4), torch.rand(K, dtype=torch.float64, requires_grad=True)])


@needs_native
@pytest.mark.parametrize("reduction_prev", [False, True])
@pytest.mark.parametrize("reduction", [False, True])
def test_cell_matches_darts(reduction: bool, reduction_prev: bool) -> None:
    torch.manual_seed(0)
    own = darts.Cell(2, 8, 8, 4, reduction, reduction_prev)
    mine = filled(fused.Cell(2, 2, 8, 8, 4, reduction, reduction_prev), own)
    states = [image(8, 16 if reduction_prev else 8), image(8)]
    assert_same(mine, own, [*states, torch.randn(E, K, dtype=torch.float64).requires_grad_()])


@needs_native
@pytest.mark.parametrize("stride", [1, 2])
def test_weight_lists_and_partial_channels(stride: int) -> None:
    torch.manual_seed(0)
    mine = fused.MixedOp(8, stride, partial_channels=4).double()
    x, row = image(8), torch.rand(K, dtype=torch.float64, requires_grad=True)
    out = mine.eval()(x, row)
    listed = mine(x, [*row[:4], *row[4:].tolist()])
    torch.testing.assert_close(listed, out)
    first = torch.autograd.grad(listed.sum(), row)[0]
    assert first[:4].any() and not first[4:].any()
    torch.testing.assert_close(first[:4], torch.autograd.grad(out.sum(), row)[0][:4])
    through = torch.nn.functional.max_pool2d(x[:, 2:], 2) if stride == 2 else x[:, 2:]  # C/k = 2 pass by the candidates
    shuffled = fused.channel_shuffle(torch.cat([x.new_zeros(2, 2, *out.shape[2:]), through], 1), 4)
    by = [c for c in range(8) if c % 4]
    torch.testing.assert_close(out[:, by], shuffled[:, by])


@needs_native
def test_multiplier_and_edge_weights() -> None:
    torch.manual_seed(0)
    whole = fused.Cell(2, 2, 8, 8, 4, False, False).double().eval()
    last = fused.Cell(2, 1, 8, 8, 4, False, False).double().eval()
    last.load_state_dict(whole.state_dict())
    s0, s1, rows = image(8), image(8), torch.rand(E, K, dtype=torch.float64)
    betas = torch.rand(E, dtype=torch.float64)
    out = last(s0, s1, rows, betas)
    torch.testing.assert_close(out, whole(s0, s1, rows, betas)[:, 4:])
    torch.testing.assert_close(out, last(s0, s1, list(rows), betas.tolist()))
    torch.testing.assert_close(out, last(s0, s1, rows * betas[:, None]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fused.MixedOp(4, 1, ("none", "sep_conv_9x9")), "unknown primitives sep_conv_9x9"),
        (lambda: fused.MixedOp(6, 1, partial_channels=4), "6 channels are not divisible"),
        (lambda: fused.MixedOp(4, 1, partial_channels=0), "partial_channels = 0"),
        (lambda: fused.MixedOp(4, 3), "stride"),
        (lambda: fused.MixedOp(4, 1, ()), "primitives"),
        (lambda: fused.MixedOp(4, 1)(torch.randn(2, 4, 8, 8), []), "weights"),
        (lambda: fused.Cell(2, 3, 8, 8, 4, False, False), "multiplier = 3"),
        (lambda: fused.Cell(2, 2, 8, 8, 4, False, False, ("maximum",)), "maximum"),
        (lambda: fused.Cell(2, 2, 8, 8, 6, False, False, partial_channels=4), "6 channels are not divisible"),
    ],
)
def test_invalid_use_raises(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
