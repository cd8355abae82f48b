"""What a search pays for being watched over: `python -m bench.overheads --record`.

One search runs in its Session: run folder, log, metrics, status, stages, recent steps, checkpoints. Before each of its steps
the same network takes two with nothing around them: "guarded", the library's own, and "bare", whose updates are made whatever
the numbers are. Results are in percent of the bare steps, by row, over blocks as long as the interval of progress lines:

everything            the sum of the rows below it, up to the epoch's end
NaN guard             looking for NaN and Inf, keeping and putting back BatchNorm's buffers, conditional updates
recent steps          keeping what would name a bad step, and looking at it with each line
progress and metrics  the line in log.txt and in metrics.jsonl
status                the status file
the rest              what else the session does after a step: it asks for signals, and whether a checkpoint is due
stages                timing the parts of a step
checkpoint            one every --checkpoint_minutes: copying the state, and how much writing it slows the concurrent steps
epoch's end           its records, genotype.json and checkpoint, once an epoch; without an evaluation and a report
guarded, session      whole steps against bare ones: what the clock may have missed, and the machine's unrest

The parts of a step are timed where they run, by the host's clock, on a CPU; stages around nothing. A checkpoint and an
epoch's end are differences of the session's blocks.
"""

import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from bench.measure import quantiles
from bench.records import RESULTS, append, milliseconds, tagged
from bench.workload import OURS, SUPERNETS, Run, Steps, Workload, WorkloadError, make_objective, make_supernet, resident_batch
from fastdarts.batch import Batch
from fastdarts.engine import Progress, RecentSteps, RunFolder, Session, Stopped, log_to
from fastdarts.engine import session as sessions
from fastdarts.engine.status import Status
from fastdarts.optim import updates
from fastdarts.optim.updates import Buffers, Kept
from fastdarts.protocols import Pieces
from fastdarts.runs.search_session import SearchReporter
from fastdarts.search import Bilevel, Search
from fastdarts.search import bilevel as bilevels
from fastdarts.settings import ConfigError, SearchImagenetSettings, Settings, setting
from fastdarts.steps import CapturedSteps
from fastdarts.steps.stage_timer import StageTimer

PROG = "python -m bench.overheads"
SUPERNET = "mae-imagenet"
EPOCH_IMAGES = 128_000  # that train the weights in an epoch of the main job: a tenth of ImageNet
GUARD = ((Buffers, "kept"), (Kept, "restore_where"), (bilevels, "non_finite"), (updates, "step_if_finite"))
PARTS = {  # what runs between two steps, and the row it counts for
    "recent steps": ((RecentSteps, "note"), (RecentSteps, "look")),
    "progress and metrics": ((Progress, "due"), (Progress, "line"), (RunFolder, "append")),
    "status": ((Status, "running"),),
}
CALLS = 2000  # of the stages around nothing


@dataclass(frozen=True, kw_only=True)
class OverheadsSettings(Settings):
    """Flags of `python -m bench.overheads`."""

    batch: int = setting(32, "images of the training and of the validation batch", at_least=1)
    image_size: int = setting(64, "pixels a side", at_least=1)
    steps: int = setting(20, "of a block, and between progress lines", at_least=2)
    rounds: int = setting(15, "blocks of each side", at_least=1)
    json: bool = setting(False, "print the record as one line of JSON")
    record: bool = setting(False, "append the record to overheads.jsonl in the --results folder")
    results: str | None = setting(None, "folder of --record; without it bench/results")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 where numbers went bad, 2 for wrong input."""
    args = OverheadsSettings.given(argv, PROG, __doc__)
    try:
        settings = OverheadsSettings.make(args)
        workload = Workload(SUPERNET, settings.batch, settings.image_size, SUPERNETS[SUPERNET].partial_channels)
        workload.check(OURS)
        record = tagged(measure(workload, settings.steps, settings.rounds))
    except (ConfigError, WorkloadError) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    except ArithmeticError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(record) if settings.json else text(record))
    if settings.record:
        append(Path(settings.results or RESULTS) / "overheads.jsonl", record)
    return 0


def measure(workload: Workload, steps: int, rounds: int) -> dict[str, Any]:
    """Everything, as plain values: percent by row; bare_ms of a step; checkpoint_ms and epoch_end_ms, what one costs in all."""
    load = os.getloadavg()[0]
    settings = SearchImagenetSettings(
        batch_size=workload.batch, image_size=workload.image_size, epochs=10**6, begin=0, learning_rate=0.025, log_every=steps
    )
    seen = _run(workload, settings, rounds)
    bare, plain = seen.blocks["bare"], seen.blocks["session"]
    checkpoint = [t - p for t, p in zip(seen.blocks["checkpoint"], plain, strict=True)]
    end = [t - p for t, p in zip(seen.blocks["epoch"], plain, strict=True)]
    epoch = EPOCH_IMAGES / workload.batch / steps  # blocks
    shares = {row: [t[row] / b for t, b in zip(seen.parts, bare, strict=True)] for row in ("NaN guard", *PARTS, "the rest")}
    shares |= {
        "stages": [steps * seen.stages / b for b in bare],
        "checkpoint": [t / (60 * settings.checkpoint_minutes) for t in checkpoint],
        "epoch's end": [t / (epoch * b) for t, b in zip(end, bare, strict=True)],
    }
    shares = {"everything": [sum(each) for each in zip(*shares.values(), strict=True)]} | shares
    shares |= {name: [t / b - 1 for t, b in zip(seen.blocks[name], bare, strict=True)] for name in ("guarded", "session")}
    return workload.facts() | {
        "percent": {row: {q: round(100 * v, 3) for q, v in quantiles(values).items()} for row, values in shares.items()},
        "bare_ms": milliseconds([t / steps for t in bare]),
        "checkpoint_ms": milliseconds(checkpoint),
        "epoch_end_ms": milliseconds(end),
        "checkpoint_minutes": settings.checkpoint_minutes,
        "epoch_steps": round(epoch * steps),
        "steps": steps,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "load": round(load, 2),
    }


class Seen(NamedTuple):
    """Seconds: of each block by name, of the parts of each block "session", and of timing the stages of a step."""

    blocks: dict[str, list[float]]
    parts: list[dict[str, float]]
    stages: float


def _run(workload: Workload, settings: SearchImagenetSettings, rounds: int) -> Seen:
    """Run the search in its session, and the other steps in between. Raises ArithmeticError where numbers went bad."""
    torch.manual_seed(0)
    supernet = make_supernet(workload, workload.backend).to(memory_format=torch.channels_last)
    objective = make_objective(workload, supernet, workload.backend)
    numbers = torch.arange(workload.batch)
    train, val = (resident_batch(workload, 1, seed)._replace(index=numbers) for seed in (1, 2))
    loader = Rounds(train, settings.log_every, rounds)
    stages = StageTimer()
    search = Search(
        supernet,
        objective,
        loader,
        Resident(val),
        settings,
        captured=lambda bilevel: CapturedSteps(stages.follow(bilevel)),
    )
    loader.others = {name: Steps(CapturedSteps(_like(search, kind)), train, val) for name, kind in OTHERS.items()}
    with TemporaryDirectory() as place, ExitStack() as stack:
        folder = RunFolder(Path(place))
        stack.enter_context(log_to(folder["log.txt"]))
        stack.enter_context(patch.object(sessions, "REPORT_SECONDS", inf))
        for row, methods in ({"NaN guard": GUARD} | PARTS).items():
            for owner, name in methods:
                stack.enter_context(patch.object(owner, name, loader.timed(row, getattr(owner, name))))
        for optimizer in (search.bilevel.weight_optimizer, search.bilevel.arch_optimizer):
            optimizer.step = loader.timed("update", optimizer.step)
        stack.enter_context(patch.object(Session, "_on_step", loader.timed("between", Session._on_step)))
        reporter = SearchReporter(search, folder, settings, [], network="imagenet", report=_nothing, stages=stages)
        loader.session = Session(search, folder, settings, reporter, files=[str(n) for n in numbers.tolist()])
        with suppress(Stopped):
            loader.session.run()
    if any(search.bilevel.skipped.tolist()) or not all(p.isfinite().all() for p in search.bilevel.weights):
        raise ArithmeticError("numbers went bad, so what was timed is no search")
    return Seen(loader.times, loader.parts, _stages(search))


class Unconditional(Bilevel):
    """First order steps whose updates are made whatever the numbers are."""

    def weight_pieces(self, step: Tensor, train: Batch) -> Pieces[Tensor]:
        yield from ()  # one piece
        loss = self._train_loss(step, train)
        self.weight_optimizer.zero_grad()
        loss.backward(inputs=self.weights)
        self._move(self.weight_optimizer, self.weights, self.grad_clip)
        return loss.detach()

    def arch_pieces(self, step: Tensor, train: Batch, val: Batch) -> Pieces[Tensor]:
        yield from ()
        loss, grads = self.first_order_gradient(step, train, val)
        parameters = self.relaxation.parameters()
        for a, g in zip(parameters, grads, strict=True):
            a.grad = g.contiguous()
        self._move(self.arch_optimizer, parameters, self.arch_grad_clip)
        return loss

    @staticmethod
    def _move(optimizer: torch.optim.Optimizer, parameters: list[Tensor], clip: float) -> None:
        if clip:
            clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad()


BLOCKS = ("epoch", "session", "checkpoint"), ("epoch", "checkpoint", "session")  # of every second round
OTHERS: dict[str, type[Bilevel]] = {"bare": Unconditional, "guarded": Bilevel}


def _like(search: Search, kind: type[Bilevel]) -> Bilevel:
    """Make steps of another kind on the search's own network, alpha and optimizers."""
    b = search.bilevel
    of = b.supernet, b.objective, b.relaxation, b.weight_optimizer, b.arch_optimizer
    return kind(*of, grad_clip=b.grad_clip, arch_grad_clip=b.arch_grad_clip, precision=b.precision)


class Resident:
    """An endless loader of one batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.taken = batch, 0

    def __len__(self) -> int:
        return 1

    def __next__(self) -> Batch:
        self.taken += 1
        return self.batch

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]


class Rounds(Resident):
    """The session's training loader, which times a block of its steps, and those of the others that it takes in between.

    times  seconds of each block by its name: "session" and before each of its steps one of the `others`; then two blocks of
           the session alone: in "epoch" an epoch ends, in "checkpoint" one is taken. What they write is written inside
    parts  of each block "session" the seconds of what `timed` was given
    """

    def __init__(self, batch: Batch, steps: int, rounds: int) -> None:
        super().__init__(batch)
        self.steps = steps
        self.session: Any = None
        self.others: dict[str, Run] = {}
        self.times: dict[str, list[float]] = {}
        self.parts: list[dict[str, float]] = []
        self._now: dict[str, float] = defaultdict(float)
        self._plan = iter([block for number in range(rounds) for block in BLOCKS[number % 2]])
        self._block = "warm-up"
        self._left = len(self) - 1  # so that the next block's first step ends an epoch
        self._began: float | None = None

    def __len__(self) -> int:
        """Return the steps of an epoch: the session's in a round."""
        return 3 * self.steps

    def __next__(self) -> Batch:
        if not self._left:
            self.session.saver.writer.wait()
        if self._began is not None:
            self._now[self._block] += perf_counter() - self._began
        if not self._left:
            self._next_block()
        if self._block in ("session", "warm-up"):
            self._take_others()
        self._left -= 1
        self._began = perf_counter()
        return super().__next__()

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, whose seconds are added to `part`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            began = perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                self._now[part] += perf_counter() - began

        return run

    def _next_block(self) -> None:
        """Note the block that is over and begin the next. Raises Stopped after the last."""
        now, self._now = self._now, defaultdict(float)
        for name in ("bare", "guarded", "session") if self._block == "session" else (self._block,):
            self.times.setdefault(name, []).append(now[name])
        if self._block == "session":
            known = {row: now[row] for row in PARTS}
            rest = now["between"] - sum(known.values())
            self.parts.append({"NaN guard": now["NaN guard"] - now["update"], **known, "the rest": rest})
        self._block, self._left = next(self._plan, ""), self.steps
        if not self._block:
            raise Stopped(signal.SIGTERM)
        if self._block == "checkpoint":
            self.session.saver.saved_at = -inf  # as if its interval were over

    def _take_others(self) -> None:
        """Run a step of each; its times do not count."""
        for name in sorted(self.others, reverse=self._left % 2 == 1):
            before = self._now.copy()
            began = perf_counter()
            self.others[name]()
            self._now = before
            self._now[name] += perf_counter() - began


def _stages(search: Search) -> float:
    """Seconds that timing the parts of a step takes: both its halves, and in each the update."""
    stages = StageTimer()
    bilevel = stages.follow(_like(search, Bilevel))
    began = perf_counter()
    for _ in range(CALLS):
        for update in bilevel.order(with_val=True):
            with bilevel.stage(update), bilevel.stage("optimizer"):
                pass
    return (perf_counter() - began) / CALLS


def _nothing(*_: object) -> None:
    """Do not draw the report."""


def text(record: dict[str, Any]) -> str:
    """Format a record."""
    what = "{supernet}, batch {batch}, {image_size} px, {threads} threads: a bare step of {bare_ms[median]} ms"
    lines = [what.format(**record), f"{'percent of it':24}{'median':>10}{'20 %':>10}{'80 %':>10}"]
    for row, values in record["percent"].items():
        lines.append(f"{row:24}" + "".join(f"{values[q]:10.3f}" for q in ("median", "q20", "q80")))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
