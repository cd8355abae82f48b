"""Whole searches with the kernels compared with the same searches with the definition.

Two float32 runs cannot be compared over many steps: a last bit decides a ReLU, and alpha drifts apart (eager NCHW against
eager channels_last too). So trajectories are compared in float64, and float32 by single steps from states of one run.
"""

import copy
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdarts.batch import Batch
from fastdarts.objectives import Classification, MaskedReconstruction, Objective
from fastdarts.search import Bilevel, SoftmaxRelaxation
from fastdarts.spaces import S0
from fastdarts.supernet import Supernet
from tests.support.backends import needs_native

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_native]

STATES = 100
CLASSES = 4


def batch(seed: int, side: int, count: int = 6) -> Batch:
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, side, side, 3), generator=g, dtype=torch.uint8)
    labels, index = (torch.randint(0, high, (count,), generator=g) for high in (CLASSES, 10**6))
    return Batch(images, labels, index, torch.rand(count, generator=g) < 0.5)


class Run:
    """A bilevel search of a small network, at DARTS' learning rates."""

    def __init__(
        self, backend: str, dtype: torch.dtype, *, masked: bool, k: int, layout: torch.memory_format, side: int = 8
    ) -> None:
        torch.manual_seed(3)
        self.side = side
        self.supernet = Supernet(S0, C=4 * k, layers=3, partial_channels=k, backend=backend)
        self.objective: Objective = (
            MaskedReconstruction(self.supernet.tap_channels, patch_size=4, backend=backend)
            if masked
            else Classification(self.supernet, CLASSES)
        )
        for module in (self.supernet, self.objective):
            module.to(dtype=dtype, memory_format=layout)
        self.relaxation = SoftmaxRelaxation(S0, edge_normalization=k > 1, dtype=dtype)
        self.weights = list(dict.fromkeys([*self.supernet.parameters(), *self.objective.parameters()]))
        self.bilevel = Bilevel(
            self.supernet,
            self.objective,
            self.relaxation,
            torch.optim.SGD(self.weights, 0.025, momentum=0.9, weight_decay=3e-4),
            torch.optim.Adam(self.relaxation.parameters(), 3e-4, betas=(0.5, 0.999), weight_decay=1e-3),
        )
        self.number = 0

    def step(self) -> dict[str, Tensor]:
        """One bilevel step on batches of its own; its losses, and the gradients that both optimizers were given."""
        train, val = (batch(2 * self.number + i, side=self.side) for i in range(2))
        given: dict[str, Tensor] = {}

        def keep(name: str, parameters: list[Tensor]) -> None:
            given.update({f"d {name} {i}": p.grad.clone() for i, p in enumerate(parameters) if p.grad is not None})

        hooks = [
            self.bilevel.weight_optimizer.register_step_pre_hook(lambda *_: keep("weight", self.weights)),
            self.bilevel.arch_optimizer.register_step_pre_hook(lambda *_: keep("arch", self.relaxation.parameters())),
        ]
        losses = self.bilevel(torch.tensor([self.number]), train, val)
        for hook in hooks:
            hook.remove()
        self.number += 1
        return given | {"train loss": losses[0], "val loss": losses[1]}

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter, buffer and alpha."""
        modules: dict[str, nn.Module] = {"supernet": self.supernet, "objective": self.objective}
        named = {f"{m} {n}": t for m, module in modules.items() for n, t in module.state_dict().items()}
        arch = {f"arch {i}": p.detach() for i, p in enumerate(self.relaxation.parameters())}
        return {n: t.clone() for n, t in (named | arch).items() if t.is_floating_point()}

    def load(self, other: "Run") -> None:
        """Continue where `other` is, at one's own dtype."""
        self.supernet.load_state_dict(other.supernet.state_dict())
        self.objective.load_state_dict(other.objective.state_dict())
        self.relaxation.load_state_dict(other.relaxation.state_dict())
        for mine, theirs in (
            (self.bilevel.weight_optimizer, other.bilevel.weight_optimizer),
            (self.bilevel.arch_optimizer, other.bilevel.arch_optimizer),
        ):
            mine.load_state_dict(copy.deepcopy(theirs.state_dict()))
        self.number = other.number


@pytest.mark.parametrize(("steps", "tolerance"), [(10, 1e-11), pytest.param(40, 1e-9, marks=pytest.mark.campaign)])
@pytest.mark.parametrize(("masked", "k"), [(False, 1), (True, 2)], ids=["supervised", "masked-partial"])
def test_float64_steps_match_definition(masked: bool, k: int, steps: int, tolerance: float) -> None:
    ours, definition = (
        Run(backend, torch.float64, masked=masked, k=k, layout=layout)
        for backend, layout in (("auto", torch.channels_last), ("definition", torch.contiguous_format))
    )
    for _ in range(steps):
        mine, theirs = ours.step(), definition.step()
    want = definition.tensors()
    for name, got in ours.tensors().items():
        scale = float(want[name].abs().max().clamp(min=1e-3))
        assert float((got - want[name]).abs().max()) <= tolerance * scale, name
    assert abs(mine["val loss"] - theirs["val loss"]) <= tolerance


@pytest.mark.campaign
def test_steps_from_hundred_states_are_as_exact_as_eager() -> None:
    """Every gradient of the step that follows each state of the definition's float32 run.

    One ReLU whose input rounds to the other side of 0 decides a state's largest error, for eager as for us, so no backend
    meets the rule in all states. Here it must hold for 95 % of all tensors, our typical error must not exceed eager's, and
    the rule must fail no more often than eager fails it when held to our errors.
    """
    how: dict[str, Any] = {"masked": True, "k": 2, "side": 16}
    walk, ours = (Run(backend, torch.float32, layout=torch.channels_last, **how) for backend in ("definition", "auto"))
    nchw = Run("definition", torch.float32, layout=torch.contiguous_format, **how)
    reference = Run("definition", torch.float64, layout=torch.contiguous_format, **how)
    errors = []  # of ours and of eager's worse layout, in units of the largest entry
    for _ in range(STATES):
        for run in (ours, nchw, reference):
            run.load(walk)
        mine, *eager, want = (run.step() for run in (ours, walk, nchw, reference))
        for name, exact in want.items():
            scale = float(exact.abs().max())
            mine_off, *theirs = (float((t[name].double() - exact).abs().max()) / scale for t in (mine, *eager))
            errors.append((mine_off, max(theirs)))
    slack = 4 * torch.finfo(torch.float32).eps
    mine_fails = sum(mine > 2 * theirs + slack for mine, theirs in errors)
    theirs_fail = sum(theirs > 2 * mine + slack for mine, theirs in errors)
    print(f"the rule fails {mine_fails} times of {len(errors)}; eager held to our errors: {theirs_fail}")
    assert mine_fails <= min(0.05 * len(errors), theirs_fail)
    mine_typical, theirs_typical = (median(column) for column in zip(*errors, strict=True))
    assert mine_typical <= theirs_typical
