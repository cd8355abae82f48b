"""What a user changes after the conversion: the converted network does what the original does after the same change."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastdarts.interop import ConvertError, convert
from fastdarts.interop.mixture import FusedMixture
from tests.interop.test_convert import outcome
from tests.support.backends import needs_native
from tests.zoo.darts import Cell, MixedOp, Network
from tests.zoo.driver import default_dtype
from tests.zoo.operations import Identity, SepConv, Zero

pytestmark = needs_native
Change = Callable[[nn.Module], None]


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]), default_dtype(torch.float64):
        torch.manual_seed(0)
        return Network()


def candidates(model: nn.Module, edge: int = 0) -> nn.ModuleList:
    return model.cells[0]._ops[edge]._ops


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.cells.modules() if isinstance(m, nn.BatchNorm2d)]


CHANGES: dict[str, Change] = {}


def change(act: Change) -> Change:
    CHANGES[act.__name__.replace("_", " ")] = act
    return act


@change
def zero_becomes_identity(model: nn.Module) -> None:
    candidates(model)[0] = Identity()


@change
def identity_becomes_zero(model: nn.Module) -> None:
    candidates(model)[3] = Zero(1)


@change
def identity_becomes_a_convolution(model: nn.Module) -> None:
    torch.manual_seed(1)
    candidates(model)[3] = SepConv(4, 3, 1).double()


@change
def pools_change_places(model: nn.Module) -> None:
    listed = candidates(model)
    listed[1], listed[2] = listed[2], listed[1]


@change
def a_pool_is_another(model: nn.Module) -> None:
    candidates(model)[1][0] = nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)


@change
def a_dilation_is_edited(model: nn.Module) -> None:
    conv = candidates(model)[6].op[1]
    conv.dilation = conv.padding = (1, 1)


@change
def a_relu_goes(model: nn.Module) -> None:
    candidates(model)[4].op[0] = nn.Identity()


@change
def a_layer_is_added(model: nn.Module) -> None:
    candidates(model)[4].op.append(nn.Hardtanh(-0.1, 0.1))


@change
def norms_have_other_settings(model: nn.Module) -> None:
    for norm in norms(model):
        norm.eps, norm.momentum = 1e-2, 0.3


@change
def norms_stop_tracking(model: nn.Module) -> None:
    for norm in norms(model):
        norm.track_running_stats = False


@change
def a_norm_gets_a_weight(model: nn.Module) -> None:
    candidates(model)[1][1].weight = nn.Parameter(torch.full((4,), 2.0, dtype=torch.float64))


@change
def a_layer_is_listened_to(model: nn.Module) -> None:
    candidates(model)[4].op[1].register_forward_hook(lambda module, given, out: 2 * out)


@change
def gradients_are_listened_to(model: nn.Module) -> None:
    candidates(model)[4].register_full_backward_pre_hook(lambda module, grads: tuple(2 * g for g in grads))


@change
def gradients_of_an_edge_are_listened_to(model: nn.Module) -> None:
    model.cells[0]._ops[0].register_full_backward_pre_hook(lambda module, grads: tuple(2 * g for g in grads))


@change
def a_spectral_norm(model: nn.Module) -> None:
    torch.manual_seed(1)
    nn.utils.parametrizations.spectral_norm(candidates(model)[4].op[2])


@change
def a_forward_is_replaced(model: nn.Module) -> None:
    own = candidates(model)[4]
    own.forward = lambda x: 3 * own.op(x)


@change
def an_edge_is_at_two_places(model: nn.Module) -> None:
    model.cells[0]._ops[1] = model.cells[0]._ops[0]


@change
def a_preprocess_layer_is_listened_to(model: nn.Module) -> None:
    model.cells[0].preprocess0.op[1].register_forward_hook(lambda module, given, out: 2 * out)


@change
def a_preprocess_layer_loses_its_relu(model: nn.Module) -> None:
    model.cells[0].preprocess0.op[0] = nn.Identity()


@change
def weights_are_frozen(model: nn.Module) -> None:
    for p in candidates(model)[4].parameters():
        p.requires_grad_(False)


@change
def a_part_is_in_eval_mode(model: nn.Module) -> None:
    candidates(model)[4].eval()


@change
def parameters_are_assigned(model: nn.Module) -> None:
    model.load_state_dict({n: t.clone() for n, t in model.state_dict().items()}, assign=True)


@pytest.mark.parametrize("level", ["cell", "op"])
@pytest.mark.parametrize("act", CHANGES.values(), ids=CHANGES)
def test_change_after_conversion_is_detected(act: Change, level: str) -> None:
    own, converted = network(), network()
    convert(converted, level=level)
    outcome(own), outcome(converted)
    for model in (own, converted):
        act(model)
    want, got = outcome(own), outcome(converted)
    assert want.keys() == got.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


class Masked(MixedOp):
    """Candidates are dropped by a mask of the module's own; `scale` is nothing at first."""

    def __init__(self, C: int, stride: int, tensor: bool = False) -> None:
        super().__init__(C, stride)
        self.scale: float | None = None
        if tensor:
            self.register_buffer("mask", torch.ones(8, dtype=torch.float64))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        masked = [w * m for w, m in zip(weights, self.mask, strict=False)] if hasattr(self, "mask") else weights
        return super().forward(x, masked) * (1.0 if self.scale is None else self.scale)


def test_module_with_own_mask_is_not_fused() -> None:
    with pytest.raises(ConvertError, match="depends on mask, a tensor besides its parameters"):
        convert(nn.Sequential(Masked(4, 1, tensor=True)).double())


def test_value_that_was_none_is_detected() -> None:
    model = nn.Sequential(Masked(4, 1)).double()
    convert(model)
    x, row = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    before = model[0](x, row)
    model[0].scale = 2.0
    torch.testing.assert_close(model[0](x, row), 2 * before)


class Scaled(SepConv):
    """A separable convolution's layers, and one value more."""

    factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * super().forward(x)


def test_equal_layers_of_other_classes_are_verified_separately() -> None:
    edges = nn.ModuleList(MixedOp(4, 1) for _ in range(2)).double()
    edges[1]._ops[4] = Scaled(4, 3, 1).double()
    Scaled.factor = 2.0
    try:
        report = convert(edges)
    finally:
        Scaled.factor = 1.0
    assert {line.name: line.became for line in report} == {"0": "op", "1": "left alone"}


def test_replicas_do_not_share_layers() -> None:
    """As DataParallel makes them, to run in threads."""
    edge = MixedOp(4, 1).double()
    convert(edge)
    before = edge._fastdarts.found
    replica = edge._replicate_for_data_parallel()
    replica._modules = {"_ops": nn.ModuleList(MixedOp(4, 1)._ops).double()}
    x, row = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    torch.testing.assert_close(replica(x, row), sum(w * op(x) for w, op in zip(row, replica._ops, strict=True)))
    assert edge._fastdarts.found is before and isinstance(replica, FusedMixture)


def test_odd_images_run_own_forward() -> None:
    """FactorizedReduce cannot take them; a list without it can."""
    edge = MixedOp(4, 2, ("max_pool_3x3", "sep_conv_3x3")).double()
    x, row = torch.randn(2, 4, 7, 7, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    want = edge(x, row)
    convert(edge)
    torch.testing.assert_close(edge(x, row), want)


def test_norms_of_other_dtype_run_own_forward() -> None:
    cell = Cell(2, 4, 4, 4, False, False).bfloat16()
    convert(cell)
    for m in cell.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.float()
    x = torch.randn(2, 4, 8, 8).bfloat16()
    assert cell(x, x, torch.rand(5, 8).bfloat16()).dtype == torch.bfloat16
