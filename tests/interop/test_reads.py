"""A converted module whose forward reads something besides its arguments is never another than the original."""

import pickle
import random
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from fastdarts.interop import ConvertError, convert
from fastdarts.interop.classes import PLAN
from tests.interop.states import HOLDERS, VALUES, State
from tests.support.backends import needs_native
from tests.zoo.darts import Cell, MixedOp
from tests.zoo.operations import ReLUConvBN, SepConv, batch_norm, separable

pytestmark = [needs_native, pytest.mark.usefixtures("one_thread")]
C, SIDE = 2, 4
BACK = {
    "attribute",
    "Namespace",
    "dict",
    "set",
    "object",
    "class attribute",
    "global",
    "closure",
    "partial",
    "torch's layer within",
}
FUSED = [name for name, holder in HOLDERS.items() if holder.fused]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each fused call."""
    seen: list[int] = []
    for module in ("mixture", "cell"):
        own = __import__(f"fastdarts.interop.{module}", fromlist=["run"]).run
        monkeypatch.setattr(f"fastdarts.interop.{module}.run", lambda *a, own=own: (seen.append(1), own(*a))[1])
    return seen


def candidates(*more: nn.Module) -> list[nn.Module]:
    pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return [nn.Sequential(*separable(C, 3, 1, 2)), nn.Sequential(pool, batch_norm(C)), nn.Identity(), *more]


def arguments(kind: str, rng: random.Random) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(rng.getrandbits(30))
    x = [torch.randn(2, C, SIDE, SIDE, dtype=torch.float64, generator=g) for _ in range(2)]
    if kind == "cell":
        return (*x, torch.rand(2, 8, dtype=torch.float64, generator=g))
    return x[0], torch.rand(4 if kind == "candidate" else 3, dtype=torch.float64, generator=g)


def drawn(rng: random.Random, kind: str, names: list[str]) -> tuple[State, nn.Module, nn.Module]:
    """(the class, what its state is changed at, the module that is called)."""
    own = {"mixture": None, "cell": Cell, "preprocess": ReLUConvBN, "candidate": SepConv}[kind]
    state = State(rng, names, own)
    torch.manual_seed(rng.getrandbits(30))
    if kind == "mixture":
        edge = whole = state.cls(candidates())
    elif kind == "cell":
        edge = whole = state.cls(1, C, C, C, False, False)
    elif kind == "candidate":
        edge = state.cls(C, 3, 1)
        whole = MixedOp(C, 1, ())
        whole._ops.extend(candidates(edge))
    else:
        whole = Cell(1, C, C, C, False, False)
        edge = whole.preprocess0 = state.cls(C, C)
    return state, edge.double(), whole.double()


def assert_never_another(seed: int, kind: str, calls: list[int]) -> bool:
    """Draw a module and changes; returns whether it was fused in the end, with everything as it was."""
    rng = random.Random(seed)
    names = rng.sample(FUSED, rng.randint(1, 3))
    if rng.random() < 0.25:
        names.append(rng.choice(list(HOLDERS)))
    state, edge, whole = drawn(rng, kind, names)
    place = next(n for n, m in whole.named_modules() if m is edge)
    converted = deepcopy(whole)
    try:
        convert(converted)
    except ConvertError:
        assert not state.fused, f"{state.names}: not converted"
        return False
    if not state.fused:
        assert kind in ("candidate", "cell", "preprocess") and PLAN not in vars(converted.get_submodule(place)), state.names
    pairs = [(edge, converted.get_submodule(place))]

    def check(what: str) -> None:
        given = arguments("cell" if kind == "preprocess" else kind, rng)
        calls.clear()
        torch.testing.assert_close(
            converted(*given), whole(*given), rtol=1e-9, atol=1e-9, msg=lambda m: f"{seed} {kind} {state.names} {what}: {m}"
        )

    for step in range(rng.randint(3, 6)):
        what = "as it was"
        if step:
            number, value = rng.randrange(len(names)), rng.choice(VALUES)
            state.put(number, value, *pairs[0])
            what = f"{names[number]} = {value}"
        if rng.random() < 0.3:
            training = not whole.training
            whole.train(training), converted.train(training)
        if rng.random() < 0.15:
            converted = deepcopy(converted)
            pairs = [(edge, converted.get_submodule(place))]
        check(what)
        if not step and state.fused:
            assert calls, f"{state.names}: not fused"
    return bool(calls)


KINDS = {"mixture": 8, "candidate": 3, "cell": 2, "preprocess": 1}  # shares


@pytest.mark.parametrize("part", range(4))
def test_random_changes_are_detected(part: int, calls: list[int]) -> None:
    """Fifty modules each, of which many are fused at the end, since everything is as it was."""
    kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    fused = [assert_never_another(1000 * part + i, kinds[i % len(kinds)], calls) for i in range(50)]
    assert sum(fused) >= 12


@pytest.mark.parametrize("name", HOLDERS)
def test_every_kind_of_state_is_watched(name: str, calls: list[int]) -> None:
    """Fused until it changes and again once it is as before; or left alone, and said why."""
    state, own, _ = drawn(random.Random(0), "mixture", [name])
    converted = deepcopy(own)
    x, row = arguments("mixture", random.Random(1))
    if not HOLDERS[name].fused:
        with pytest.raises(ConvertError, match=r"its forward (depends|sets|may|reads|uses)"):
            convert(converted)
        return
    assert str(convert(converted)).startswith("op")
    for value in (None, 2.0, 0.5, 1.0):
        if value is not None:
            state.put(0, value, own, converted)
        calls.clear()
        torch.testing.assert_close(converted(x, row), own(x, row), rtol=1e-9, atol=1e-9)
        assert bool(calls) or value is not None
    assert bool(calls) or name not in BACK


def test_pickled_copy_is_fused(calls: list[int]) -> None:
    edge = MixedOp(C, 1).double()
    convert(edge)
    copied = pickle.loads(pickle.dumps(edge))
    x, row = torch.randn(2, C, SIDE, SIDE, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    calls.clear()
    torch.testing.assert_close(copied(x, row), edge(x, row), rtol=1e-9, atol=1e-9)
    assert len(calls) == 2
    copied.to(torch.float32)(x.float(), row.float())
    assert len(calls) == 3


class TopK(MixedOp):
    """`k` is no divisor of channels here: with 1, only the heaviest candidate is left."""

    k = 8

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        row = torch.stack(list(weights))
        return super().forward(x, row * (row >= row.topk(self.k).values.min()))


def test_k_that_does_not_divide_channels() -> None:
    own = TopK(C, 1).double()
    own.k = 8
    converted = deepcopy(own)
    convert(converted)
    x, row = torch.randn(2, C, SIDE, SIDE, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    for k in (8, 1, 3):
        own.k = converted.k = k
        torch.testing.assert_close(converted(x, row), own(x, row), rtol=1e-9, atol=1e-9)


@pytest.mark.campaign
def test_many_random_changes_are_detected(calls: list[int]) -> None:
    kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    for i in range(4000):
        assert_never_another(10_000 + i, kinds[i % len(kinds)], calls)
