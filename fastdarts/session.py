"""A search in its run folder: what the search commands share. Logs, records, checkpoints and reports each epoch."""

import logging
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from fastdarts.config import SearchImagenetSettings
from fastdarts.data import EvalLoader
from fastdarts.engine import Progress, RunFolder, World, duration, write_text
from fastdarts.objectives import MaskedReconstruction
from fastdarts.report import picture_grid, write_report
from fastdarts.search import COLLAPSE_SKIPS, PARTS, Search, StepReport

REPORT_SECONDS = 20.0  # a report is drawn after an epoch if the last one is older than this, and at the end
PICTURES = 8  # images in the reconstruction picture
TIMING = ("seconds", "input_seconds", "images_per_s")  # what differs between two runs of one seed
log = logging.getLogger("fastdarts")


class Session:
    """Runs what is left of `search` and keeps `folder` up to date; a killed session loses the epoch it was in, no more.

    pictures  one batch of images for the reconstruction picture
    world     the ranks that search together: each has a Session, rank 0's alone reads and writes the folder
    """

    def __init__(
        self,
        search: Search,
        folder: RunFolder,
        settings: SearchImagenetSettings,
        pictures: EvalLoader,
        world: World | None = None,
    ) -> None:
        self.search, self.folder, self.settings, self.pictures = search, folder, settings, pictures
        self.world = world or World()
        search.on_step = self._on_step

    def run(self) -> Path:
        """Continue from the folder's checkpoint to the last epoch; returns the report's path."""
        state = self.world.lead(self.folder.restore)
        if state is not None:
            self.search.load_state_dict(state)
            log.info(f"continuing {self.folder.path} after epoch {self.search.epoch} of {self.settings.epochs}")
        self.progress = self._progress()
        published = perf_counter()
        for record in self.search.epochs():
            self._record(record)
            if perf_counter() - published > REPORT_SECONDS:
                self._publish()
                published = perf_counter()
        if state is not None and self.search.epoch == state["epoch"]:
            log.info(f"nothing is left to search in {self.folder.path}")
        return self._publish()

    def _progress(self) -> Progress:
        s, steps = self.settings, len(self.search.train_loader)
        moving = max(s.epochs - s.begin, 0)
        done_moving = max(self.search.epoch - s.begin, 0)
        images = s.batch_size * steps
        return Progress(s.log_every, s.epochs, images * (s.epochs + moving), images * (self.search.epoch + done_moving))

    def _on_step(self, report: StepReport) -> None:
        if not self.world.leads:
            return
        if self.progress.due(report):
            train = report.train_loss.item()
            alpha = None if report.val_loss is None else report.val_loss.item()
            self.progress.line(report, train, alpha)
            if any(skipped := report.skipped.tolist()):
                told = " and ".join(f"{n} of {what}" for n, what in zip(skipped, PARTS, strict=True) if n)
                log.warning(f"updates skipped so far in this epoch, their gradients were not finite: {told}")
            line = {"epoch": report.epoch, "step": report.step, "train_loss": train, "alpha_loss": alpha}
            self.folder.append("metrics.jsonl", {"kind": "step"} | line)

    def _record(self, record: dict[str, Any]) -> None:
        """Log the epoch, then save it; the checkpoint comes last, so that it never knows more than the files."""
        if not self.world.leads:
            return
        timing = {name: record.pop(name) for name in TIMING}
        self.folder.append("metrics.jsonl", {"kind": "epoch"} | record)
        self.folder.append("timing.jsonl", {"epoch": record["epoch"]} | timing)
        write_text(self.folder["genotype.json"], self._genotype())
        self.folder.save(self.search.state_dict())
        valid = record["valid"] or {}
        figures = "  ".join(f"valid {name} {value:.4f}" for name, value in valid.items())
        waiting = timing["input_seconds"] / timing["seconds"]
        log.info(
            f"epoch {record['epoch']}/{self.settings.epochs} done in {duration(timing['seconds'])}, {waiting:.1%} of it "
            f"waiting for input  {timing['images_per_s']:.1f} images/s  train {record['train_loss']:.4f}  {figures}"
        )
        log.info(record["genotype"])
        for kind, cell in record["cells"].items():
            if cell["skips"] >= COLLAPSE_SKIPS:
                total = 2 * self.search.supernet.space.nodes
                log.warning(f"the {kind} cell is collapsing: {cell['skips']} of {total} operations are skip connections")

    def _publish(self) -> Path:
        """Draw the reconstruction and write the report, whose path is returned."""
        if not self.world.leads:
            return self.folder.path
        if isinstance(self.search.objective, MaskedReconstruction):
            self._draw_reconstruction(self.search.objective)
        return write_report(self.folder.path)

    def _genotype(self) -> str:
        """genotype.json: the cell, and what building a network from it needs to know of the search."""
        s = self.settings
        facts = {"epoch": self.search.epoch, "space": self.search.supernet.space.name}
        facts |= {"init_channels": s.init_channels, "layers": s.layers, "seed": s.seed}
        return self.search.genotype().to_json(**facts)

    @torch.no_grad()
    def _draw_reconstruction(self, objective: MaskedReconstruction) -> None:
        self.search.supernet.eval()
        (batch,) = (batch.to(self.search.device) for batch in self.pictures)
        pictures = objective.reconstruct(self.search.supernet, self.search.relaxation.weights(), batch)
        picture_grid(*(p.cpu() for p in pictures), self.folder["reconstruction.png"])
