"""A search in its run folder: what the search commands share. Logs, records, checkpoints and reports each epoch."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, nullcontext
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from fastdarts.batch import Batch
from fastdarts.config import RunSettings
from fastdarts.data import InputStopped
from fastdarts.engine import (
    Asking,
    BadStep,
    Progress,
    RecentSteps,
    RunFolder,
    RunFolderError,
    Stopped,
    Stopping,
    Watch,
    World,
    Writer,
    duration,
    over_ranks,
    rng_state,
    set_rng_state,
    steps_of,
    write_text,
)
from fastdarts.genotype import Genotype, collapse_line, read_architecture
from fastdarts.logs import warn_once
from fastdarts.objectives import Reconstructing
from fastdarts.report import NotDrawn, drawing, picture_grid, write_report
from fastdarts.search import PARTS, DivergedError, Search, StepReport, seeded
from fastdarts.spaces import Architecture
from fastdarts.spaces.lookup import CELLS, Lookup, TableError

REPORT_SECONDS = 20.0  # a report is drawn after an epoch if the last one is older than this, and at the end
PICTURES = 8  # images in the reconstruction picture
SHOWN = 3  # bad steps that are named at a time
REWINDS = 3  # to one checkpoint, before it is given up
TIMING = ("seconds", "input_seconds", "images_per_s")  # what differs between two runs of one seed
log = logging.getLogger("fastdarts")


class Rewind(Exception):
    """The search is to go on from its last checkpoint, with the batches after those of `bad`."""

    def __init__(self, bad: BadStep) -> None:
        super().__init__(bad)
        self.bad = bad


class Session:
    """Runs what is left of `search` and keeps `folder` up to date.

    A session that is killed loses the steps since its last checkpoint, one that is asked to stop none.

    pictures  one batch of images for the reconstruction picture
    files      names by an image's number, to tell of a bad batch
    benchmark  what the genotype is looked up in after each epoch; its rank at the end
    stopping  takes the signals; without it nothing but the end stops the search
    world     the ranks that search together: each has a Session, rank 0's alone reads and writes the folder and reports
    """

    def __init__(
        self,
        search: Search,
        folder: RunFolder,
        settings: RunSettings,
        pictures: Iterable[Batch],
        *,
        files: Sequence[str],
        benchmark: Lookup | None = None,
        stopping: Stopping | None = None,
        world: World | None = None,
    ) -> None:
        self.search, self.folder, self.settings, self.pictures, self.files = search, folder, settings, pictures, files
        self.benchmark, self.stopping, self.world = benchmark, stopping or Stopping(), world or World()
        self.watch: Watch | None = None
        self.recent, self.writer = RecentSteps(), Writer()
        self.best: float | None = None  # lowest validation loss so far
        self.saved = -1  # steps that the last checkpoint knows of
        self.rewound: Counter[int] = Counter()  # by the checkpoint's steps
        folder.checkpoints.keep = settings.keep_checkpoints
        search.on_step, search.on_stage, search.interruptible = self._on_step, self._on_stage, self.stopping.at_once
        self.stopping.alone = self.world.alone
        if not self.world.alone and search.eval_loader is not None:
            search.eval_loader = Asking(search.eval_loader, self._ask, lambda mine: max(self.world.gather(mine)))

    def run(self) -> Path:
        """Continue from the folder's checkpoint to the last epoch; returns the report's path.

        Raises Stopped when it was asked to end, after a checkpoint; RunFolderError for checkpoints that do not serve;
        DivergedError where numbers went bad, leaving the checkpoint before that; OSError when one cannot be written;
        RankLost and RanksDisagree.
        """
        state = self.world.lead(self.folder.restore)
        self.world.together(lambda: self._load(state))
        if state is not None:
            inside = f" and {self.search.part.steps} steps" if self.search.part.steps else ""
            log.info(f"continuing {self.folder.path} after epoch {self.search.epoch} of {self.settings.epochs}{inside}")
        try:
            with self.stopping.deferred():
                if state is None and self.settings.on_bad == "rewind":
                    self._save()  # the beginning, to have something to go back to
                with ExitStack() as watched:
                    if self.world.leads:
                        watch = Watch(self.search, self.folder.path, self.settings, self.folder.last_loss())
                        self.watch = watched.enter_context(watch)
                    self._compare("before the first step")
                    self._search()
                    self._conclude()
                    self.writer.wait()  # a run whose last checkpoint is not written has not finished
        except Stopped:
            good = not self._bad_steps() or self.settings.on_bad == "skip"
            if good and self.saved < self._steps():
                self._save()
            self.writer.wait()
            self.world.wait()  # or torchrun would end rank 0, which writes, because the others have left
            log.info(f"stopped after step {self._steps()}; the last checkpoint is of step {self.saved}")
            raise
        finally:
            self.writer.close()
        if state is not None and steps_of(state) == self._steps():
            log.info(f"nothing is left to search in {self.folder.path}")
        self._tell_truth()
        if stop := self.search.stop:
            log.info(f"early stop after epoch {stop.after}: {stop.why}; the result is the genotype of epoch {stop.epoch}")
        return self._publish()

    def _search(self) -> None:
        """The remaining epochs."""
        published = perf_counter()
        while True:
            try:
                for record in self.search.epochs():
                    self._record(record)
                    if perf_counter() - published > REPORT_SECONDS:
                        with self.stopping.at_once():
                            self._publish()
                        published = perf_counter()
                return
            except Rewind as rewind:
                self._rewind(rewind.bad)
            except InputStopped:  # a signal to all processes of a job may end those that decode, too
                if self.world.alone:
                    self.stopping.check()
                raise

    def _load(self, state: dict[str, Any] | None) -> None:
        """Take the search to `state`, and what goes with it."""
        if state is not None:
            try:
                self.search.load_state_dict(state)
                if self.world.rank < len(state.get("rng", ())):
                    set_rng_state(state["rng"][self.world.rank], self.search.device)
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                reason = " ".join(str(error).split())[:200]
                raise RunFolderError(f"the checkpoint in {self.folder.path} does not fit this search ({reason})") from error
            self.saved, self.best = steps_of(state), state.get("best")
        self.recent.forget(self.search.epoch + 1, self.search.bilevel.skipped.tolist())
        self.progress, self.saved_at = self._progress(), perf_counter()

    def _steps(self) -> int:
        """Finished steps of the whole search."""
        return self.search.epoch * len(self.search.train_loader) + self.search.part.steps

    def _save(self, best: bool = False) -> None:
        """Take a checkpoint: copy the state now, write it beside the next steps."""
        rng = self.world.gather(rng_state(self.search.device))
        self.saved, self.saved_at = self._steps(), perf_counter()
        if self.world.leads:
            state = self.search.state_dict() | {"rng": rng, "best": self.best}
            self.writer.write(state, lambda copy: self.folder.save(copy, best))

    def _bad_steps(self) -> list[BadStep]:
        """The steps since the last look whose numbers went bad, named in the log. Waits for the device."""
        bad = self.recent.look(self.search.seeking())
        if bad:
            bad = over_ranks(self.world.gather(bad))
        if bad and self.world.leads:
            values = torch.cat([p.detach().flatten() for p in self.search.relaxation.parameters()])
            low, high = values.min().item(), values.max().item()
            for step in bad[-SHOWN:]:
                log.warning(step.told(self.files))
            more = f"{len(bad)} such steps since the last look; " if len(bad) > 1 else ""
            kept = f"the last checkpoint is of step {self.saved}" if self.saved >= 0 else "there is no checkpoint yet"
            log.warning(f"{more}alpha and beta lie from {low:.4g} to {high:.4g}; {kept}")
        return bad

    def _look(self) -> None:
        """Name bad steps and do what --on_bad says."""
        bad = self._bad_steps()
        if bad and self.settings.on_bad == "stop":
            raise DivergedError(f"{bad[0].told(self.files)}; --on_bad skip or rewind goes on")
        if bad and self.settings.on_bad == "rewind":
            raise Rewind(bad[-1])

    def _rewind(self, bad: BadStep) -> None:
        """Back to the last checkpoint, and on with the batches after the bad step's."""
        self.writer.wait()
        state = self.world.lead(self.folder.restore, begun=True)
        if state is None:
            raise RunFolderError(f"{self.folder.path} has lost its checkpoints: there is nothing to go back to")
        step = steps_of(state)
        self.rewound[step] += 1
        if self.rewound[step] > REWINDS:
            raise DivergedError(f"{bad.told(self.files)}; went back to step {step} {REWINDS} times and it came to the same")
        self._load(state)
        self.search.move_loaders(bad.positions)
        if self.world.leads:
            log.warning(f"back to step {step}, going on with the images after those of step {bad.step}")

    def _progress(self) -> Progress:
        s, steps = self.settings, len(self.search.train_loader)
        moving, done_moving = (self.search.moving_epochs(epochs) for epochs in (s.epochs, self.search.epoch))
        images = s.batch_size * steps
        done = images * (self.search.epoch + done_moving) + self.search.part.images
        return Progress(s.log_every, s.epochs, images * (s.epochs + moving), done)

    def _on_stage(self) -> None:
        if self.watch is not None:
            self.watch.follow(self.search.take_step)

    def _on_step(self, report: StepReport) -> None:
        self.writer.check()
        self.recent.note(report, self.search.positions)
        due = self.progress.due(report)
        if due:
            self._line(report)
        minutes = self.settings.checkpoint_minutes
        late = bool(minutes) and not self.writer.busy and perf_counter() - self.saved_at >= 60 * minutes
        signal, save = self.world.agree(self.stopping.signal, late)
        last = report.step % len(self.search.train_loader) == 0
        if due or save or signal or last or self.recent.full:
            self._look()
        every = self.settings.check_ranks_every
        if every and report.step % every == 0:
            self._compare(f"after step {report.step}")
        if self.watch is not None:
            self.watch.step(report)
        if signal:
            self._stop(signal)
        if save:
            self._save()

    def _ask(self) -> None:
        """Raise Stopped on all ranks if any has got a signal."""
        signal, _ = self.world.agree(self.stopping.signal, False)
        if signal:
            self._stop(signal)

    def _stop(self, signal: int) -> None:
        self.stopping.signal = signal  # another rank's, perhaps: one that comes while the checkpoint is written changes nothing
        raise Stopped(signal, agreed=True)

    def _compare(self, when: str) -> None:
        """Raise RanksDisagree unless all ranks hold the same weights and alpha."""
        if self.settings.check_ranks_every and not self.world.alone:
            self.world.check_equal(self.world.named(self.search), when)

    def _line(self, report: StepReport) -> None:
        """The line of a step, in the log and in metrics.jsonl."""
        if self.watch is None:
            return
        train = report.train_loss.item()
        alpha = None if report.val_loss is None else report.val_loss.item()
        pace = self.progress.line(report, train, alpha)
        self.watch.logged(report, train, alpha, pace, self.settings.epochs)
        if any(skipped := report.skipped.tolist()):
            told = " and ".join(f"{n} of {what}" for n, what in zip(skipped, PARTS, strict=True) if n)
            log.warning(f"updates skipped so far in this epoch, their gradients were not finite: {told}")
        losses = {"train_loss": train, "alpha_loss": alpha}
        finite = {name: v if v is not None and isfinite(v) else None for name, v in losses.items()}
        self.folder.append("metrics.jsonl", {"kind": "step", "epoch": report.epoch, "step": report.step} | finite)

    def _record(self, record: dict[str, Any]) -> None:
        """Log the epoch, then save it; the checkpoint comes last, so that it never knows more than the files."""
        if self.watch is not None:
            self._tell(record, self.watch)
        self._save(best=self._is_best(record["valid"]))

    def _tell(self, record: dict[str, Any], watch: Watch) -> None:
        """The epoch, in the log and in the folder's files."""
        if self.benchmark is not None:
            record["benchmark"] = self._looked_up(self.benchmark, read_architecture(record["genotype"]))
        timing = watch.timing({name: record.pop(name) for name in TIMING})
        self.folder.append("metrics.jsonl", {"kind": "epoch"} | record)
        self.folder.append("timing.jsonl", {"epoch": record["epoch"]} | timing)
        watch.epoch(record, timing)
        write_text(self.folder["genotype.json"], self._genotype(ranks=False))
        valid = record["valid"] or {}
        figures = "  ".join(f"valid {name} {value:.4f}" for name, value in valid.items())
        waiting = timing["input_seconds"] / timing["seconds"]
        log.info(
            f"epoch {record['epoch']}/{self.settings.epochs} done in {duration(timing['seconds'])}, {waiting:.1%} of it "
            f"waiting for input  {timing['images_per_s']:.1f} images/s  train {record['train_loss']:.4f}  {figures}"
        )
        log.info(record["genotype"])
        for kind, cell in record["cells"].items():
            if cell["skips"] >= collapse_line(cell["operations"]):
                told = f"{cell['skips']} of {cell['operations']} operations are skip connections"
                log.warning(f"the {kind} cell is collapsing: {told}")

    def _conclude(self) -> None:
        """genotype.json of the result, with the ranks, for which a benchmark may take minutes; then the run has finished.

        The other ranks have nothing left to do and leave. From here on this one is alone, so a signal breaks it off.
        """
        if self.world.leads:
            self.world, self.stopping.alone = World(), True
            with nullcontext() if self.benchmark is None else self.stopping.at_once():
                write_text(self.folder["genotype.json"], self._genotype(ranks=True))

    def _tell_truth(self) -> None:
        """What the benchmark knows of the result, in the log."""
        if self.benchmark is None or not self.world.leads:
            return
        figures = self._looked_up(self.benchmark, self.search.result(), ranks=True)
        tests = [name for name in figures if f"{name}_rank" in figures]
        told = [f"{name} {figures[name]:.2f} % (rank {figures[f'{name}_rank']} of {CELLS})" for name in tests]
        if told:
            log.info(f"true accuracy by {self.benchmark.source}: {', '.join(told)}")

    def _is_best(self, valid: dict[str, float] | None) -> bool:
        """Whether these figures of an evaluation have the lowest loss so far, which is remembered."""
        loss = (valid or {}).get("loss")
        if loss is None or not isfinite(loss) or (self.best is not None and loss >= self.best):
            return False
        self.best = loss
        return True

    def _publish(self) -> Path:
        """Draw the reconstruction and write the report."""
        if not self.world.leads:
            return self.folder["report.html"]
        if isinstance(self.search.objective, Reconstructing):
            self._draw_reconstruction(self.search.objective)
        return write_report(self.folder.path)

    def _genotype(self, ranks: bool) -> str:
        """genotype.json: the cell, and what building a network from it needs to know of the search.

        ranks  with the true accuracies' ranks, for which all cells are looked up once
        Without a benchmark, what the file knows of the same cell is kept.
        """
        s, cell = self.settings, self.search.result()
        stop = self.search.stop
        facts = {"epoch": stop.epoch if stop else self.search.epoch, "space": self.search.supernet.space.name}
        layers = self.search.stages[self.search.stage].layers or s.layers
        size = {"layers": layers} if self.search.supernet.space.skeleton == "darts" else {"stage_cells": s.stage_cells}
        facts |= {"init_channels": s.init_channels, **size, "seed": s.seed}
        if self.benchmark is not None:
            facts["benchmark"] = self._looked_up(self.benchmark, cell, ranks)
        elif (stored := self._stored()).get("text") == str(cell) and "benchmark" in stored:
            facts["benchmark"] = stored["benchmark"]
        return cell.to_json(**facts | ({"stopped": stop.facts()} if stop else {}))

    def _stored(self) -> dict[str, Any]:
        """What genotype.json holds, {} where it cannot be read."""
        try:
            stored = json.loads(self.folder["genotype.json"].read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def _looked_up(self, benchmark: Lookup, cell: Genotype | Architecture, ranks: bool = False) -> dict[str, float]:
        """The true accuracies of a cell in percent, and, with `ranks`, their ranks among all cells."""
        try:
            figures: dict[str, float] = benchmark.accuracies(cell)
            if ranks:
                tests = [column for column in benchmark.columns if column.endswith("_test")]
                figures |= {f"{column}_rank": benchmark.rank(cell, column)[0] for column in tests}
        except TableError as error:
            log.warning(f"not looked up: {error}")
            return {}
        return figures

    @torch.no_grad()
    def _draw_reconstruction(self, objective: Reconstructing) -> None:
        self.search.supernet.eval()
        (batch,) = (batch.to(self.search.device) for batch in self.pictures)
        with seeded(self.search.device):  # when a report is drawn depends on the time, and must not change what is searched
            pictures = objective.reconstruct(self.search.supernet, self.search.relaxation.weights(), batch)
        try:
            with drawing():
                picture_grid(*(p.cpu() for p in pictures), self.folder["reconstruction.png"])
        except NotDrawn as error:
            warn_once(f"not drawn: reconstruction: {error}")
