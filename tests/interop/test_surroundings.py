"""What a converted network may run under: gradient checkpointing, global module hooks, torch.compile."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from fastdarts.interop import ConvertError, convert
from fastdarts.nn import MixedOp as OurMixedOp
from tests.support.backends import needs_native
from tests.zoo.darts import Cell, MixedOp
from tests.zoo.nasbench201 import ArgmaxMixedOp

pytestmark = needs_native


def edge() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return MixedOp(4, 1).double(), (torch.randn(2, 4, 8, 8).double(), torch.rand(8).double())


def cell(reduction: bool = False) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 8, 8).double()
    return Cell(2, 8, 8, 4, reduction, False).double(), (x, x.flip(0), torch.rand(5, 8).double())


def outcome(module: nn.Module, call: Callable[..., Tensor], given: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Output, gradients and buffers of two steps."""
    named = {}
    for step in range(2):
        leaves = [t.clone().requires_grad_() for t in given]
        out = call(*leaves)
        out.square().sum().backward()
        named |= {f"{step} out": out.detach()} | {f"{step} gradient {i}": t.grad for i, t in enumerate(leaves)}
    named |= {f"gradient of {n}": p.grad for n, p in module.named_parameters()}
    return named | {n: b.clone() for n, b in module.named_buffers()}


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("reentrant", "early_stop"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("level", ["cell", "op"])
@pytest.mark.parametrize("make", [edge, cell])
def test_checkpointing_updates_statistics_as_original(make: Callable, level: str, reentrant: bool, early_stop: bool) -> None:
    """A recomputation counts as it does in the original, although it stops at the last tensor that was saved."""
    own, given = make()
    converted = deepcopy(own)
    convert(converted, level=level)
    with set_checkpoint_early_stop(early_stop):
        results = [
            outcome(module, lambda *t, m=module: checkpoint(m, *t, use_reentrant=reentrant), given)
            for module in (converted, own)
        ]
    assert_same(*results)
    assert {int(b) for n, b in converted.named_buffers() if n.endswith("num_batches_tracked")} == {4}


def test_checkpointing_own_mixed_operation() -> None:
    counted = []
    for wrapped in (False, True):
        torch.manual_seed(0)
        module = OurMixedOp(4, 1).double()
        x, row = torch.randn(2, 4, 8, 8).double(), torch.rand(8).double().requires_grad_()
        calls = 1 if wrapped else 2
        for _ in range(calls):
            out = checkpoint(module, x, row, use_reentrant=False) if wrapped else module(x, row)
            out.sum().backward()
        counted.append({n: b.clone() for n, b in module.named_buffers()})
    assert_same(*counted)


REGISTER = {
    "forward": lambda seen: modules.register_module_forward_hook(lambda m, *_: seen.append(m)),
    "forward pre": lambda seen: modules.register_module_forward_pre_hook(lambda m, *_: seen.append(m)),
    "backward": lambda seen: modules.register_module_full_backward_hook(lambda m, *_: seen.append(m)),
    "backward pre": lambda seen: modules.register_module_full_backward_pre_hook(lambda m, *_: seen.append(m)),
}


@pytest.mark.parametrize("kind", REGISTER)
@pytest.mark.parametrize("level", ["cell", "op"])
def test_global_module_hooks_see_every_module(kind: str, level: str) -> None:
    own, given = cell()
    converted = deepcopy(own)
    convert(converted, level=level)
    heard: list[list[str]] = []
    results = []
    for module in (converted, own):
        seen: list[nn.Module] = []
        handle = REGISTER[kind](seen)
        try:
            results.append(outcome(module, module, given))
        finally:
            handle.remove()
        names = {m: n for n, m in module.named_modules()}
        heard.append([names[m] for m in seen])
    assert heard[0] == heard[1] and len(heard[0]) > 100
    assert_same(*results)


def test_global_module_hooks_do_not_see_conversion() -> None:
    """Nor do they make a module pass its trial that is no mixed operation."""
    seen: list[nn.Module] = []
    handle = modules.register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        with pytest.raises(ConvertError, match="no mixed operation was recognised"):
            convert(nn.Sequential(ArgmaxMixedOp(4, 1)).double())
        assert convert(edge()[0])[-1].became == "own forward", "the report says so"
        assert not seen and len(modules._global_forward_hooks) == 1
    finally:
        handle.remove()
    assert {line.became for line in convert(edge()[0])} == {"op"}


@pytest.mark.parametrize(("level", "training", "dynamic"), [("cell", True, None), ("cell", False, True), ("op", True, True)])
def test_torch_compile_at_several_sizes(level: str, training: bool, dynamic: bool | None) -> None:
    """Gradients, and running statistics that move once in each forward, whichever size came first."""
    own, given = cell(reduction=True)
    own.train(training)
    converted = deepcopy(own)
    convert(converted, level=level)
    compiled = torch.compile(converted, backend="aot_eager", dynamic=dynamic)
    x, *_, rows = given
    sizes = [x, torch.cat([x, -x]), x[..., :4, :4], x]
    for s in sizes:
        assert_same(outcome(converted, compiled, (s, s.flip(0), rows)), outcome(own, own, (s, s.flip(0), rows)))


def test_torch_compile_with_dynamic_batch() -> None:
    """Sizes that are marked dynamic before the first call."""
    own, given = cell(reduction=True)
    converted = deepcopy(own)
    convert(converted)
    compiled = torch.compile(converted, backend="aot_eager")
    x, *_, rows = given

    def call(*states_and_rows: Tensor) -> Tensor:
        for state in states_and_rows[:2]:
            torch._dynamo.mark_dynamic(state, 0)
        return compiled(*states_and_rows)

    for s in (x, torch.cat([x, -x]), torch.cat([x, x, -x])):
        assert_same(outcome(converted, call, (s, s.flip(0), rows)), outcome(own, own, (s, s.flip(0), rows)))
