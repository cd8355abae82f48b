"""Which tensors keep which dtype under autocast, and the scale of float16's losses."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdarts.optim import Precision, tf32
from fastdarts.optim.precision import LossScale
from fastdarts.search import Bilevel
from fastdarts.supernet import base
from tests.support.bilevels import batch, differing, everything, make, number

pytestmark = pytest.mark.usefixtures("one_thread")

LOW = torch.bfloat16


def features(bilevel: Bilevel) -> list[list[torch.dtype]]:
    """Filled by every forward pass: the dtypes of its three features."""
    seen: list[list[torch.dtype]] = []
    bilevel.supernet.register_forward_hook(lambda _, __, out: seen.append([t.dtype for t in out]))
    return seen


@pytest.mark.parametrize("masked", [True, False])
def test_parameters_and_results_keep_dtype(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bilevel = make(masked=masked, amp="bf16")
    given: list[torch.dtype] = []
    bilevel.weight_optimizer.register_step_pre_hook(lambda *_: given.extend(w.grad.dtype for w in bilevel.weights))
    bilevel.arch_optimizer.register_step_pre_hook(
        lambda *_: given.extend(a.grad.dtype for a in bilevel.relaxation.parameters())
    )
    mixes: list[torch.dtype] = []
    bilevel.supernet.register_forward_pre_hook(lambda _, args: mixes.extend(t.dtype for kind in args[1].values() for t in kind))
    seen = features(bilevel)
    pixels: list[torch.dtype] = []
    of_stem = base.conv_bn_chain
    monkeypatch.setattr(base, "conv_bn_chain", lambda x, *rest, **how: (pixels.append(x.dtype), of_stem(x, *rest, **how))[1])
    stem: list[torch.dtype] = []
    bilevel.supernet.cells[0].register_forward_pre_hook(lambda _, args: stem.append(args[0].dtype))
    losses = bilevel(number(0), batch(0), batch(1))
    assert set(given) == {torch.float32} and len(given) == len(bilevel.weights) + 4
    assert set(mixes) == set(pixels) == {torch.float32}
    assert seen == [[LOW] * 3] * 2 and stem == [LOW] * 2
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses)
    dtypes = {t.dtype for t in everything(bilevel).values()}
    assert dtypes == {torch.float32, torch.int64}
    assert not torch.is_autocast_enabled("cpu")


class Products(TorchDispatchMode):
    """Notes the dtypes that convolutions and matrix products compute in, and those of the loss' last operators."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point():
            self.dtypes.setdefault(func.name().partition(".")[0], set()).add(out.dtype)
        return out


@pytest.mark.parametrize("masked", [True, False])
def test_products_are_low_precision_and_loss_is_not(masked: bool) -> None:
    bilevel = make(masked=masked, amp="bf16", backend="definition")
    with Products() as products, torch.no_grad():
        bilevel._train_loss(number(0), batch(0))
    assert products.dtypes["aten::convolution"] == {LOW}
    assert products.dtypes["aten::addmm" if not masked else "aten::mm"] == {LOW}
    last = "aten::upsample_bilinear2d" if masked else "aten::_log_softmax"
    assert products.dtypes[last] == {torch.float32}


def test_no_amp_keeps_float32() -> None:
    bilevel = make()
    seen = features(bilevel)
    bilevel(number(0), batch(0), batch(1))
    assert seen == [[torch.float32] * 3] * 2


def test_float64_stays_float64() -> None:
    bilevel = make(amp="bf16", dtype=torch.float64, backend="definition")
    loss = bilevel.weight_step(number(0), batch(0))
    assert loss.dtype == torch.float64


def test_finite_differences_are_full_precision() -> None:
    """R = 1e-2 / |v| changes a weight by less than bfloat16 resolves."""
    bilevel = make(amp="bf16", unrolled=True)
    seen = features(bilevel)
    bilevel.arch_step(number(0), batch(0), batch(1))
    assert [set(dtypes) for dtypes in seen] == [{LOW}, {LOW}, {torch.float32}, {torch.float32}]


def test_bf16_step_is_close_to_float32() -> None:
    low, full = make(amp="bf16", masked=False), make(masked=False)
    losses = [[float(x) for x in b(number(0), batch(0), batch(1))] for b in (low, full)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


# ---------------------------------------------------------------------------------------------------- the loss scale


def test_loss_scale_follows_gradscaler() -> None:
    """Compared with torch.amp.GradScaler over good and bad updates."""
    theirs = torch.amp.GradScaler("cpu", growth_interval=LossScale.INTERVAL)
    p = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([p], 0.1, fused=True)
    ours = LossScale("cpu")
    for bad in [1, 1, 0, 1] + [0] * (LossScale.INTERVAL + 5) + [1, 0]:
        p.grad = torch.tensor([float("inf") if bad else 1.0])
        theirs.scale(torch.ones(()))
        theirs.step(optimizer)
        theirs.update()
        ours.update(torch.tensor(float(bad)))
        assert float(ours.value) == theirs.get_scale()
    assert float(ours.inverse()) == 1 / float(ours.value)


def scaled(value: float, **settings: Any) -> Bilevel:
    """In float32, with the scale that float16 would have."""
    bilevel = make(**settings)
    bilevel.precision.scale = LossScale("cpu")
    bilevel.precision.scale.value.fill_(value)
    return bilevel


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("masked", [True, False])
def test_loss_scale_does_not_change_gradients(masked: bool, unrolled: bool) -> None:
    """Powers of two scale exactly."""
    settings = {"masked": masked, "unrolled": unrolled, "grad_clip": 0.5, "arch_grad_clip": 0.01}
    ours, plain = scaled(2.0**10, **settings), make(**settings)
    for step in range(3):
        arguments = number(step), batch(2 * step), batch(2 * step + 1)
        assert ours(*arguments) == plain(*arguments)
    assert differing(everything(ours), everything(plain)) == []
    assert int(ours.precision.scale.good) == 6


@pytest.mark.parametrize("unrolled", [False, True])
def test_overflow_skips_and_halves_scale(unrolled: bool) -> None:
    bilevel = scaled(2.0**127, unrolled=unrolled, masked=False)
    bilevel.objective.register_forward_hook(lambda _, __, loss: 1e6 * loss)
    before = everything(bilevel)
    losses = bilevel(number(0), batch(0), batch(1))
    assert all(map(torch.isfinite, losses))  # the losses themselves are not scaled
    assert differing(everything(bilevel), before) == []
    assert bilevel.skipped.tolist() == [1, 1]
    assert float(bilevel.precision.scale.value) == 2.0**125


def test_scale_is_saved_and_loaded_in_place() -> None:
    one, other = LossScale("cpu"), LossScale("cpu")
    one.update(torch.ones(()))
    one.update(torch.zeros(()))
    address = other.value.data_ptr()
    other.load_state_dict(one.state_dict())
    assert (float(other.value), int(other.good)) == (2.0**15, 1)
    assert other.value.data_ptr() == address
    one.update(torch.ones(()))
    assert float(other.value) == 2.0**15


def test_only_fp16_has_loss_scale() -> None:
    assert [Precision(amp).scale is not None for amp in ("off", "bf16", "fp16")] == [False, False, True]
    assert [Precision(amp).dtype for amp in ("off", "bf16", "fp16")] == [None, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_applies_only_inside_context(allowed: bool) -> None:
    def now() -> list[bool]:
        return [torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32]

    def fail() -> None:
        assert now() == [allowed] * 2
        raise KeyError

    before = now()
    with pytest.raises(KeyError), tf32(allowed):
        fail()
    assert now() == before
