"""Captured steps on a GPU: the same run as uncaptured, no host synchronisation, updates skipped inside a replay, memory.

In float64, where two orders of summation stay together (fp32 runs drift apart: a last bit decides a ReLU), and in float32
with deterministic algorithms, to the bit: float64 has no fused kernels.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdarts import provenance
from fastdarts.engine import algorithms
from fastdarts.optim import tf32
from fastdarts.optim.optimizers import arch_optimizer, set_rate, weight_optimizer
from fastdarts.optim.updates import non_finite, step_if_finite
from fastdarts.search import Bilevel
from fastdarts.search_imagenet import main
from fastdarts.steps import CapturedSteps, CaptureError
from tests.support import bilevels, trainings
from tests.support.bilevels import MADE_OF, differing, everything
from tests.test_search_imagenet import SPLIT, TINY, write_tree

pytestmark = pytest.mark.gpu

STEPS = 20


def make(**settings: Any) -> Bilevel:
    return bilevels.make(device="cuda", **({"dtype": torch.float64} | settings))


def step_of(number: int, with_val: bool = True) -> tuple[Any, ...]:
    train, val = (bilevels.batch(2 * number + i, device="cuda") for i in range(2))
    return bilevels.number(number, "cuda"), train, val if with_val else None


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert ours.keys() == theirs.keys()
    for name, want in theirs.items():
        if not want.is_floating_point():
            assert torch.equal(ours[name], want), name
        elif want.numel():
            scale = float(want.abs().max().clamp(min=1e-3))
            assert float((ours[name] - want).abs().max()) <= tolerance * scale, name


@contextmanager
def synchronisation_is_an_error() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def in_a_process(work: Callable[..., Any], *args: Any) -> Any:
    """What `work` returns in a process of its own, in which nothing has touched the GPU before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *args).result()


VARIANTS: dict[str, dict[str, Any]] = {
    "masked": {},
    "supervised": {"masked": False, "k": 1},
    "masked, second order": {"unrolled": True, "arch_grad_clip": 5.0},
    "supervised, second order": {"unrolled": True, "masked": False, "weights_first": True},
    "masked, random channels": {"sampling": "random"},
    "supervised, random channels, second order": {"sampling": "random", "masked": False, "unrolled": True},
}


@pytest.mark.parametrize("begin", [0, 3])
@pytest.mark.parametrize("settings", (VARIANTS | MADE_OF).values(), ids=VARIANTS | MADE_OF)
def test_captured_steps_match_uncaptured(settings: dict[str, Any], begin: int) -> None:
    """Alpha begins in the first or fourth step, the rate changes in the tenth, another size of batch comes in the fifteenth."""
    captured, plain = (make(**settings) for _ in range(2))
    run = CapturedSteps(captured, "on")
    for number in range(STEPS):
        if number == 10:
            for bilevel in (captured, plain):
                set_rate(bilevel.weight_optimizer, 2.0**-7)
        arguments = step_of(number, number >= begin)
        if number == 15:
            arguments = arguments[0], *(type(b)(*(t[:4] for t in b)) for b in arguments[1:])
        rng = torch.cuda.get_rng_state()
        ours = run(*arguments)
        drawn = torch.cuda.get_rng_state()
        torch.cuda.set_rng_state(rng)  # what either draws, noise or dropout, is the same
        theirs = plain(*arguments)
        assert torch.equal(torch.cuda.get_rng_state(), drawn)
        for mine, other in zip(ours, theirs, strict=True):
            assert (mine is None) == (other is None)
            assert mine is None or float(mine) == pytest.approx(float(other), rel=1e-9)
    assert run.captured and run.reason is None
    assert_same(everything(captured), everything(plain))
    assert captured.skipped.tolist() == [0, 0]


def test_captured_training_is_bitwise_identical() -> None:
    """One update and a moving average: steps of any training are captured as a search's are."""
    captured, plain = (trainings.make(device="cuda", dtype=torch.float64) for _ in range(2))
    run = CapturedSteps(captured, "on")
    for number in range(STEPS):
        if number == 10:
            for training in (captured, plain):
                set_rate(training.optimizer, 2.0**-5)
        arguments = step_of(number, with_val=False)
        ours, theirs = run(*arguments), plain(*arguments)
        assert ours[1] is None and float(ours[0]) == pytest.approx(float(theirs[0]), rel=1e-9)
    assert run.captured and captured.skipped.tolist() == [0]
    assert_same(trainings.everything(captured), trainings.everything(plain))


def differing_when_deterministic(settings: dict[str, Any]) -> list[str]:
    """What eight captured steps and eight uncaptured ones leave differently."""
    with tf32(False), algorithms(True, "cuda"):
        captured, plain = (make(dtype=torch.float32, **settings) for _ in range(2))
        run = CapturedSteps(captured, "on")
        for number in range(8):
            rng = torch.cuda.get_rng_state()
            ours = run(*step_of(number, number >= 2))
            torch.cuda.set_rng_state(rng)
            theirs = plain(*step_of(number, number >= 2))
            assert [x if x is None else float(x) for x in ours] == [x if x is None else float(x) for x in theirs]
        return differing(everything(captured), everything(plain))


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("name", ["masked", "masked, second order", "supervised, random channels, second order"])
def test_fused_captured_steps_are_bitwise_identical(name: str, amp: str) -> None:
    assert in_a_process(differing_when_deterministic, VARIANTS[name] | {"amp": amp}) == []


@pytest.mark.parametrize("name", [name for name in MADE_OF if name != "colourisation"])
def test_captured_steps_of_other_objectives_are_bitwise_identical(name: str) -> None:
    """Not colourisation's: upsampling its logits backward adds up in any order."""
    assert in_a_process(differing_when_deterministic, MADE_OF[name]) == []


def test_capture_changes_no_state() -> None:
    """Not even in the generator: warm-up and capture, then everything is as before the first replay."""
    bilevel = make()
    run = CapturedSteps(bilevel, "on")
    before, rng = everything(bilevel), torch.cuda.get_rng_state()
    arguments = step_of(0)
    run._begin(*arguments[:2])
    assert run._fits(*arguments[1:])
    run._copy(*arguments)
    run._record("alpha")
    run._record("weights")
    assert differing(everything(bilevel), before) == []
    assert torch.equal(torch.cuda.get_rng_state(), rng)


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("masked", [True, False])
def test_replayed_step_does_not_synchronise(masked: bool, unrolled: bool) -> None:
    run = CapturedSteps(make(masked=masked, unrolled=unrolled, sampling="random", dtype=torch.float32), "on")
    run(*step_of(0))
    steps = [step_of(number) for number in range(1, 4)]
    with synchronisation_is_an_error():
        losses = [run(*arguments) for arguments in steps]
    assert all(torch.isfinite(loss) for pair in losses for loss in pair)
    assert len({float(loss) for pair in losses for loss in pair}) == 6


@pytest.mark.parametrize("unrolled", [False, True])
def test_uncaptured_step_does_not_synchronise(unrolled: bool) -> None:
    bilevel = make(unrolled=unrolled, arch_grad_clip=5.0, dtype=torch.float32)
    for number in range(2):
        bilevel(*step_of(number))
    arguments = step_of(2)
    with synchronisation_is_an_error():
        bilevel(*arguments)


@pytest.mark.parametrize("unrolled", [False, True])
def test_nan_in_replay_changes_no_state(unrolled: bool) -> None:
    bilevel = make(unrolled=unrolled, dtype=torch.float32)
    factor = torch.ones((), device="cuda")
    bilevel.supernet.cells[0].register_forward_hook(lambda _, __, out: out * factor)
    run = CapturedSteps(bilevel, "on")
    run(*step_of(0))
    before = everything(bilevel)
    for value in (torch.nan, torch.inf):
        factor.fill_(value)
        assert not any(map(torch.isfinite, run(*step_of(1))))
        assert differing(everything(bilevel), before) == []
    assert bilevel.skipped.tolist() == [2, 2]
    factor.fill_(1.0)
    assert all(map(torch.isfinite, run(*step_of(1))))
    assert bilevel.skipped.tolist() == [2, 2] and differing(everything(bilevel), before) != []


def test_nan_in_first_step_leaves_no_uninitialised_state() -> None:
    """Nothing that was never written to may be left in an optimizer's state."""
    bilevel = make(dtype=torch.float32)
    factor = torch.full((), torch.nan, device="cuda")
    bilevel.supernet.cells[0].register_forward_hook(lambda _, __, out: out * factor)
    before = everything(bilevel)
    CapturedSteps(bilevel, "on")(*step_of(0))
    assert differing(everything(bilevel), before) == []


@pytest.mark.parametrize("first_bad", [0, 2])
@pytest.mark.parametrize("kind", ["SGD", "Adam", "foreach SGD"])
def test_optimizers_skip_on_device(kind: str, first_bad: int) -> None:
    """Steps with a skipped one among them end where the others alone end, to the bit."""
    g = torch.Generator().manual_seed(0)
    grads = [torch.randn(300, generator=g).cuda() for _ in range(4)]
    one, ends = torch.ones((), device="cuda"), []
    for skipping in (True, False):
        p = [torch.ones(300, device="cuda", requires_grad=True)]
        optimizer = {
            "SGD": lambda p=p: weight_optimizer(p, 0.125, momentum=0.9, weight_decay=0.01),
            "Adam": lambda p=p: arch_optimizer(p, 0.125, weight_decay=0.01),
            "foreach SGD": lambda p=p: torch.optim.SGD(p, 0.125, momentum=0.9, foreach=True),
        }[kind]()
        for number, grad in enumerate(grads):
            if number == first_bad and not skipping:
                continue
            p[0].grad = grad.clone()
            if number == first_bad:
                p[0].grad[17] = torch.inf
            step_if_finite(non_finite(one, [p[0].grad], one), optimizer)
        ends.append([p[0], *(t for t in optimizer.state[p[0]].values() if isinstance(t, Tensor))])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_lower_precision_is_captured(amp: str) -> None:
    low, full = make(amp=amp, dtype=torch.float32), make(dtype=torch.float32)
    run = CapturedSteps(low, "on")
    for number in range(8):
        losses = run(*step_of(number))
        reference = full(*step_of(number))
        assert all(map(torch.isfinite, losses)) and losses[0].dtype == torch.float32
        if number == 0:
            assert [float(x) for x in losses] == pytest.approx([float(x) for x in reference], rel=0.05)
    assert {t.dtype for t in everything(low).values()} == {torch.float32, torch.int64}
    if amp == "fp16":  # what overflowed was skipped, and halved the scale
        skipped = int(low.skipped.sum())
        assert float(low.precision.scale.value) == 2.0 ** (16 - skipped) and skipped < 8


class Waits(torch.nn.Module):
    """An objective that reads a number from the device."""

    def __init__(self, objective: torch.nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, *args: Any) -> Tensor:
        loss = self.objective(*args)
        return loss * (1.0 if loss.item() > 0 else 2.0)


def test_synchronising_objective_runs_uncaptured() -> None:
    captured, plain = make(), make()
    for bilevel in (captured, plain):
        bilevel.objective = Waits(bilevel.objective)
    run = CapturedSteps(captured)
    for number in range(3):
        ours, theirs = run(*step_of(number)), plain(*step_of(number))
        assert [float(x) for x in ours] == pytest.approx([float(x) for x in theirs], rel=1e-9)
    assert "waits for the device" in run.reason and not run.captured
    assert_same(everything(captured), everything(plain))
    with pytest.raises(CaptureError, match="waits for the device"):
        CapturedSteps(captured, "on")(*step_of(3))


def fail_to_capture() -> None:
    captured, plain = make(), make()
    inner = captured.objective

    class Late(torch.nn.Module):
        def forward(self, *args: Any) -> Tensor:
            loss = inner(*args)
            if torch.cuda.is_current_stream_capturing():
                loss.item()
            return loss

    captured.objective = Late()
    run = CapturedSteps(captured)
    for number in range(3):
        ours, theirs = run(*step_of(number)), plain(*step_of(number))
        assert [float(x) for x in ours] == pytest.approx([float(x) for x in theirs], rel=1e-9)
    assert "failed" in run.reason and not run.captured
    torch.cuda.empty_cache()
    assert torch.rand(3, device="cuda").isfinite().all()
    again = CapturedSteps(plain, "on")
    assert all(map(torch.isfinite, again(*step_of(3)))) and again.captured


def test_failed_capture_continues_uncaptured() -> None:
    """What the warm-up does not see: here a wait that happens only while capturing. torch itself goes on as before."""
    in_a_process(fail_to_capture)


def test_graphs_share_memory_pool() -> None:
    """Alpha's graph adds little to what the weights' graph holds, and both together little to an uncaptured step."""

    def reserved() -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    big = {"count": 256, "side": 32, "device": "cuda"}
    train, val, number = bilevels.batch(0, **big), bilevels.batch(1, **big), bilevels.number(0, "cuda")
    plain = make(dtype=torch.float32, k=4)
    plain(number, train, val)
    del plain
    start = reserved()
    torch.cuda.reset_peak_memory_stats()
    plain = make(dtype=torch.float32, k=4)
    plain(number, train, val)
    uncaptured = torch.cuda.max_memory_reserved() - start
    del plain
    start = reserved()
    run = CapturedSteps(make(dtype=torch.float32, k=4), "on")
    run(number, train, None)
    one = reserved() - start
    run(number, train, val)
    both = reserved() - start
    slack = 2**28  # cuBLAS keeps a workspace for each stream
    assert both <= 1.5 * one + slack
    assert both <= 1.5 * uncaptured + slack


@pytest.mark.parametrize(
    "flags", ["--backend triton", "--amp bf16 --cuda_graph on", "--amp fp16", "--tf32 --unrolled --cuda_graph on"]
)
def test_command_captures_steps(flags: str, tmp_path: Path) -> None:
    """A search of three epochs, alpha from the second on; the finished run goes on to load its checkpoint."""
    tree = write_tree(tmp_path / "images")
    argv = ["--data", str(tree), *TINY, *SPLIT, "--epochs", "3", "--begin", "1", "--device", "cuda", *flags.split()]
    for _ in range(2):
        assert main([*argv, "--save", str(tmp_path / "run")]) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    for part in ("weights", "alpha"):
        assert log.count(f"the update of {part} is captured in a CUDA graph") == 1
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert len([line for line in lines if line["kind"] == "epoch"]) == 3


@pytest.mark.parametrize("objective", ["mae", "supervised"])
def test_deterministic_searches_are_bitwise_reproducible(objective: str, tmp_path: Path, root: Path) -> None:
    tree = write_tree(tmp_path / "images")
    argv = ["--data", str(tree), *TINY, *SPLIT, "--epochs", "3", "--begin", "1", "--device", "cuda", "--deterministic"]
    metrics = []
    for name in ("one", "two"):
        command = [sys.executable, "-m", "fastdarts.search_imagenet", *argv, "--objective", objective]  # a fresh cuBLAS
        ended = subprocess.run([*command, "--save", str(tmp_path / name)], cwd=root, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert "deterministic: disabled cuDNN's" in ended.stdout
        metrics.append((tmp_path / name / "metrics.jsonl").read_bytes())
    assert metrics[0] == metrics[1]


@pytest.mark.skipif(not provenance.apex().startswith(provenance.NVIDIAS), reason=f"apex: {provenance.apex()}")
def test_apex_matches_torch_optimizers() -> None:
    g = torch.Generator().manual_seed(0)
    grads = [torch.randn(300, generator=g).cuda() for _ in range(4)]
    for make_one, how in ((weight_optimizer, {"momentum": 0.9}), (arch_optimizer, {})):
        ends = []
        for backend in ("torch", "apex"):
            p = torch.ones(300, device="cuda", requires_grad=True)
            optimizer = make_one([p], 0.125, weight_decay=0.01, backend=backend, **how)
            for number, grad in enumerate(grads):
                p.grad = grad.clone()
                bad = torch.full((), float(number == 1), device="cuda")
                step_if_finite(bad, optimizer)
            ends.append(p.detach())
        torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)
