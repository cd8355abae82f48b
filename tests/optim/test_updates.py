"""Updates happen only where loss and gradients are finite, decided on the device, and finite ones as they always did."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode

from fastdarts.ops.philox import Stream
from fastdarts.optim import updates
from fastdarts.optim.updates import Buffers, non_finite, obeys, step_if_finite
from fastdarts.search import Bilevel
from tests.support.bilevels import batch, differing, everything, make, number

pytestmark = pytest.mark.usefixtures("one_thread")

ONE, ZERO = torch.ones(()), torch.zeros(())
BROKEN = [float("nan"), float("inf"), -float("inf")]


def test_finite_gradients_are_accepted() -> None:
    grads = [torch.full((3, 4), 1e38), torch.zeros(0), torch.full((2,), 1e300, dtype=torch.float64)]
    before = [g.clone() for g in grads]
    assert non_finite(torch.tensor(-5.0), grads, ONE).tolist() == 0
    assert all(map(torch.equal, before, grads))
    assert non_finite(torch.tensor([0.5], dtype=torch.bfloat16), [], ONE).shape == ()


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("place", range(4))
def test_single_non_finite_number_is_detected(place: int, value: float) -> None:
    loss = torch.tensor(1.0)
    grads = [
        torch.zeros(70),
        torch.zeros(3, 5, dtype=torch.float64),
        torch.zeros(4, 6, 3, 3).to(memory_format=torch.channels_last),
    ]
    (loss if place == 3 else grads[place]).view(-1)[-1:].fill_(value) if place != 2 else grads[2][1, 5, 2, 0].fill_(value)
    assert non_finite(loss, grads, ONE).tolist() == 1


def test_gradients_are_unscaled() -> None:
    grads = [torch.full((3,), 8.0), torch.full((2,), 4.0, dtype=torch.float64)]
    assert non_finite(ZERO, grads, torch.tensor(0.25)).tolist() == 0
    assert grads[0].tolist() == [2.0] * 3 and grads[1].tolist() == [1.0] * 2


OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "fused SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, fused=True),
    "fused SGD, no momentum": lambda p: torch.optim.SGD(p, 0.1, fused=True),
    "fused Nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, fused=True),
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "foreach SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "fused Adam": lambda p: torch.optim.Adam(p, 0.1, (0.5, 0.999), weight_decay=0.01, fused=True),
    "fused AdamW": lambda p: torch.optim.AdamW(p, 0.1, amsgrad=True, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.01),
    "foreach Adam": lambda p: torch.optim.Adam(p, 0.1, amsgrad=True, foreach=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1, initial_accumulator_value=0.3),
}


@pytest.mark.parametrize("bad_steps", [(0,), (2,), (0, 1), (1, 3)], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_skipped_step_changes_no_state(name: str, bad_steps: tuple[int, ...]) -> None:
    """Steps with skipped ones among them end where the others alone end, to the bit, first steps included."""
    g = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=g) for shape in ((3, 4), (70,), (2, 3, 3, 3))]
    grads = [[torch.randn(p.shape, generator=g) for p in start] for _ in range(5)]
    ends = []
    for skipping in (True, False):
        parameters = [p.clone().requires_grad_() for p in start] + [
            torch.ones(2, requires_grad=True)
        ]  # the last has no gradient
        optimizer = OPTIMIZERS[name](parameters)
        for step, values in enumerate(grads):
            if step in bad_steps and not skipping:
                continue
            for p, value in zip(parameters, values, strict=False):
                p.grad = value.clone()
            if step in bad_steps:
                before = [p.detach().clone() for p in parameters]
                parameters[1].grad[5] = float("nan")
                step_if_finite(non_finite(ZERO, [p.grad for p in parameters[:3]], ONE), optimizer)
                assert all(map(torch.equal, before, parameters))
            elif skipping:
                step_if_finite(non_finite(ZERO, [p.grad for p in parameters[:3]], ONE), optimizer)
            else:
                optimizer.step()  # as it always did
        state = [t for p in parameters[:3] for t in optimizer.state[p].values() if isinstance(t, Tensor)]
        assert not optimizer.state.get(parameters[3]) or name == "Adagrad"
        ends.append([*parameters, *state])
    assert len(ends[0]) == len(ends[1])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_fused_optimizers_skip_on_device() -> None:
    yes = [name for name, optimizer in OPTIMIZERS.items() if obeys(optimizer([torch.zeros(1, requires_grad=True)]))]
    assert yes == [name for name in OPTIMIZERS if name.startswith("fused")]
    dampened = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1, momentum=0.9, dampening=0.5, fused=True)
    assert not obeys(dampened)  # a buffer of zeros is not what its first step starts from


def test_scaler_attributes_are_removed() -> None:
    p = torch.zeros(2, requires_grad=True)
    p.grad = torch.ones(2)
    optimizer = OPTIMIZERS["fused Adam"]([p])
    step_if_finite(ZERO, optimizer)
    assert not hasattr(optimizer, "found_inf") and not hasattr(optimizer, "grad_scale")


@pytest.mark.parametrize("on_host", [True, False], ids=["the host knows", "the device decides"])
def test_buffers_are_restored_only_if_requested(on_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "known", lambda bad: on_host)
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3, affine=False)).double()
    module.register_buffer("plane", torch.zeros(2, 3).double().t())  # any shape and strides
    module.register_forward_hook(lambda module, *_: module.plane.copy_(torch.arange(6.0).view(3, 2)))
    buffers = Buffers(module.float(), module[0])
    module.double()  # makes others
    for bad in (ONE, ZERO):
        before = {n: b.clone() for n, b in module.named_buffers()}
        addresses = [b.data_ptr() for b in module.buffers()]
        saved = buffers.kept()
        module(torch.full((2, 3, 4, 4), float("nan"), dtype=torch.float64))
        moved = {n: b.clone() for n, b in module.named_buffers()}
        saved.restore_where(bad)
        want = before if bad else moved
        assert all(torch.equal(want[n].nan_to_num(7.0), b.nan_to_num(7.0)) for n, b in module.named_buffers())
        assert addresses == [b.data_ptr() for b in module.buffers()]
    Buffers(torch.nn.Linear(2, 2)).kept().restore_where(ONE)  # has none


def by_hand(bilevel: Bilevel, step: int, val_too: bool = True) -> None:
    """A first-order step without any condition, as optimizers are used everywhere."""
    b = bilevel
    if val_too:
        loss = b.objective(b.supernet, b.relaxation.weights(), batch(2 * step + 1), number(step), Stream.VAL)
        for a, g in zip(b.relaxation.parameters(), torch.autograd.grad(loss, b.relaxation.parameters()), strict=True):
            a.grad = g
        clip_grad_norm_(b.relaxation.parameters(), 5.0)
        b.arch_optimizer.step()
    with torch.no_grad():
        weights = b.relaxation.weights()
    b.weight_optimizer.zero_grad()
    b.objective(b.supernet, weights, batch(2 * step), number(step), Stream.TRAIN).backward(inputs=b.weights)
    clip_grad_norm_(b.weights, 0.5)
    b.weight_optimizer.step()
    b.weight_optimizer.zero_grad()


def take(bilevel: Bilevel, step: int) -> tuple[Tensor, Tensor | None]:
    return bilevel(number(step), batch(2 * step), batch(2 * step + 1))


@pytest.mark.parametrize("masked", [True, False])
def test_finite_steps_equal_unconditional_steps(masked: bool) -> None:
    settings = {"masked": masked, "grad_clip": 0.5, "arch_grad_clip": 5.0}
    ours, plain = make(**settings), make(**settings)
    for step in range(4):
        take(ours, step)
        by_hand(plain, step)
    assert differing(everything(ours), everything(plain)) == []
    assert ours.skipped.tolist() == [0, 0]


def break_gradient(bilevel: Bilevel, parameter: Tensor) -> Any:
    """From here on its gradient holds a NaN; returns the hook."""
    return parameter.register_hook(lambda g: g.index_fill(0, torch.tensor([0]), float("nan")))


def break_forward(bilevel: Bilevel, value: float) -> Any:
    """From here on an activation holds `value`, so that statistics and loss are not finite."""
    return bilevel.supernet.cells[0].register_forward_hook(lambda _, __, out: out * torch.tensor(value))


@pytest.mark.parametrize("when", [0, 2])
@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("masked", [True, False])
def test_step_with_non_finite_forward_changes_no_state(masked: bool, unrolled: bool, when: int) -> None:
    """Weights, alpha, both optimizers, BatchNorm's statistics and counters; and the next step goes on from there."""
    broken, plain = (make(masked=masked, unrolled=unrolled) for _ in range(2))
    for step in range(4):
        if step == when:
            before = everything(broken)
            hook = break_forward(broken, float("inf"))
            losses = take(broken, step)
            hook.remove()
            assert not any(map(torch.isfinite, losses))
            assert differing(everything(broken), before) == []
            assert broken.skipped.tolist() == [1, 1]
        else:
            take(broken, step)
            take(plain, step)
    assert differing(everything(broken), everything(plain)) == []


@pytest.mark.parametrize("clip", [0.0, 5.0])
def test_non_finite_weight_gradient_skips_only_weights(clip: float) -> None:
    bilevel = make(grad_clip=clip)
    take(bilevel, 0)
    before = everything(bilevel)
    hook = break_gradient(bilevel, bilevel.weights[-1])
    loss = bilevel.weight_step(number(1), batch(2))
    assert torch.isfinite(loss)
    assert differing(everything(bilevel), before) == [] and bilevel.skipped.tolist() == [1, 0]
    alpha_loss = bilevel.arch_step(number(1), batch(2), batch(3))  # takes no gradient of a weight
    hook.remove()
    moved = differing(everything(bilevel), before)
    assert torch.isfinite(alpha_loss) and bilevel.skipped.tolist() == [1, 0]
    assert {name.split()[0] for name in moved} == {"alpha", "Adam", "supernet"}
    assert all("running" in name or "batches" in name for name in moved if name.startswith("supernet"))


@pytest.mark.parametrize("unrolled", [False, True])
def test_non_finite_alpha_gradient_skips_only_alpha(unrolled: bool) -> None:
    bilevel = make(unrolled=unrolled, arch_grad_clip=5.0)
    take(bilevel, 0)
    before = everything(bilevel)
    hook = break_gradient(bilevel, bilevel.relaxation.parameters()[0])
    bilevel.arch_step(number(1), batch(2), batch(3))
    assert differing(everything(bilevel), before) == [] and bilevel.skipped.tolist() == [0, 1]
    bilevel.weight_step(number(1), batch(2))
    hook.remove()
    assert differing(everything(bilevel), before) != [] and bilevel.skipped.tolist() == [0, 1]
    assert all(p.grad is None for p in [*bilevel.weights, *bilevel.relaxation.parameters()])


class Reads(TorchDispatchMode):
    """Notes the operators that would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"):
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampling", ["first", "random"])
@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("masked", [True, False])
def test_steps_do_not_synchronise(masked: bool, unrolled: bool, sampling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen on the definitions' operators: clipping, conditions, random channels, masks, finite differences."""
    monkeypatch.setattr(updates, "known", lambda bad: False)  # as for a GPU's
    bilevel = make(masked=masked, unrolled=unrolled, sampling=sampling, backend="definition", arch_grad_clip=5.0)
    take(bilevel, 0)
    arguments = number(1), batch(2), batch(3)
    with Reads() as reads:
        bilevel(*arguments)
    assert reads.seen == []
    with Reads() as reads:
        bilevel.skipped.tolist()
        bool(bilevel.skipped.sum())
    assert "aten::_local_scalar_dense" in reads.seen  # or this test would see nothing
