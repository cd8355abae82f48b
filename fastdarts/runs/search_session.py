"""Records and reports of a search: genotype, benchmark, signs of collapse, pictures."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from fastdarts.batch import Batch
from fastdarts.engine import Reporter, RunFolder, write_text
from fastdarts.logs import warn_once
from fastdarts.networks import NetworkKind, count, standard_shape
from fastdarts.objectives import Reconstructing
from fastdarts.optim import seeded
from fastdarts.report import NotDrawn, drawing, picture_grid
from fastdarts.search import Search
from fastdarts.settings import RunSettings
from fastdarts.spaces import Architecture, Space
from fastdarts.spaces.genotype import Genotype, collapse_line, read_architecture
from fastdarts.spaces.lookup import CELLS, Lookup, TableError
from fastdarts.steps.stage_timer import StageTimer

PICTURES = 8  # images of the reconstruction picture
log = logging.getLogger("fastdarts")


class SearchReporter(Reporter):
    """Reporter that maintains genotype.json, reconstruction.png and the report of a search.

    pictures   one batch of images for the reconstruction picture
    network    network that DARTS' cells are trained in afterwards
    report     function that draws the report of a run folder
    benchmark  table to look up the genotype after each epoch, and its rank at the end
    stages     timer of the search's steps
    """

    def __init__(
        self,
        search: Search,
        folder: RunFolder,
        settings: RunSettings,
        pictures: Iterable[Batch],
        *,
        network: NetworkKind,
        report: Callable[[Path], object],
        benchmark: Lookup | None = None,
        stages: StageTimer | None = None,
    ) -> None:
        self.search, self.folder, self.settings, self.pictures = search, folder, settings, pictures
        self.network, self.report, self.benchmark, self.stages = network, report, benchmark, stages

    def stage_seconds(self) -> dict[str, float] | None:
        return None if self.stages is None else self.stages.drain()

    def state(self) -> str:
        values = torch.cat([p.detach().flatten() for p in self.search.relaxation.parameters()])
        return f"alpha and beta range from {values.min().item():.4g} to {values.max().item():.4g}"

    def extend(self, record: dict[str, Any]) -> None:
        if self.benchmark is not None:
            record["benchmark"] = looked_up(self.benchmark, read_architecture(record["genotype"]))

    def scalars(self, record: Mapping[str, Any]) -> dict[str, float | None]:
        return scalars(record, self.search.supernet.space)

    def epoch(self, record: Mapping[str, Any]) -> None:
        write_text(self.folder["genotype.json"], self._genotype(ranks=False))
        log.info(record["genotype"])
        for kind, cell in record["cells"].items():
            if cell["skips"] >= collapse_line(cell["operations"]):
                message = f"{cell['skips']} of {cell['operations']} operations are skip connections"
                log.warning(f"the {kind} cell is collapsing: {message}")

    def publish(self) -> None:
        if isinstance(self.search.objective, Reconstructing):
            self._draw_reconstruction(self.search.objective)
        self.report(self.folder.path)

    def conclude(self, interruptible: Callable[[], AbstractContextManager[Any]]) -> None:
        """Write the final genotype.json with ranks, which may take a benchmark minutes."""
        with nullcontext() if self.benchmark is None else interruptible():
            write_text(self.folder["genotype.json"], self._genotype(ranks=True))

    def ending(self) -> str:
        return "early stop" if self.search.stop else ""

    def finished(self) -> None:
        if self.benchmark is not None:
            self._log_accuracies(self.benchmark)
        if stop := self.search.stop:
            log.info(f"early stop after epoch {stop.after}: {stop.why}; the result is the genotype of epoch {stop.epoch}")
        self.publish()

    def _log_accuracies(self, benchmark: Lookup) -> None:
        """Log the benchmark's accuracies of the result."""
        figures = looked_up(benchmark, self.search.result(), ranks=True)
        tests = [name for name in figures if f"{name}_rank" in figures]
        accuracies = [f"{name} {figures[name]:.2f} % (rank {figures[f'{name}_rank']} of {CELLS})" for name in tests]
        if accuracies:
            log.info(f"true accuracy by {benchmark.source}: {', '.join(accuracies)}")

    def _genotype(self, ranks: bool) -> str:
        """Format genotype.json: the cell, and the facts on the search needed to build a network from it.

        ranks  include the ranks of the true accuracies, which looks up all cells once
        Without a benchmark, the file's entries on the same cell are kept.
        """
        s, cell = self.settings, self.search.result()
        stop = self.search.stop
        facts = {"epoch": stop.epoch if stop else self.search.epoch, "space": self.search.supernet.space.name}
        layers = self.search.stages[self.search.stage].layers or s.layers
        size = {"layers": layers} if self.search.supernet.space.skeleton == "darts" else {"stage_cells": s.stage_cells}
        facts |= {"init_channels": s.init_channels, **size, "seed": s.seed} | self._counts(cell)
        if self.search.selection is not None:
            facts["select"] = s.select
        if self.benchmark is not None:
            facts["benchmark"] = looked_up(self.benchmark, cell, ranks)
        elif (stored := self._stored()).get("text") == str(cell) and "benchmark" in stored:
            facts["benchmark"] = stored["benchmark"]
        return cell.to_json(**facts | ({"stopped": stop.facts()} if stop else {}))

    def _counts(self, cell: Genotype | Architecture) -> dict[str, Any]:
        """Return parameters and multiply-adds of the network that papers train from the cell; {} if they are not known."""
        shape = standard_shape(cell, None if isinstance(cell, Architecture) else self.network)
        try:
            counts = count(cell, shape)
        except ValueError as error:
            warn_once(f"genotype.json goes without parameters and multiply-adds: {error}")
            return {}
        return {"params": counts["params"], "macs": counts["macs"], "network": str(shape)}

    def _stored(self) -> dict[str, Any]:
        """Return the content of genotype.json, {} if it cannot be read."""
        try:
            stored = json.loads(self.folder["genotype.json"].read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stored if isinstance(stored, dict) else {}

    @torch.no_grad()
    def _draw_reconstruction(self, objective: Reconstructing) -> None:
        self.search.supernet.eval()
        (batch,) = (batch.to(self.search.device) for batch in self.pictures)
        with seeded(self.search.device):  # reports are drawn at wall-clock times and must not influence the search
            pictures = objective.reconstruct(self.search.supernet, self.search.relaxation.weights(), batch)
        try:
            with drawing():
                masked, reconstructed, original = (p.cpu() for p in pictures)
                picture_grid(masked, reconstructed, original, self.folder["reconstruction.png"])
        except NotDrawn as error:
            warn_once(f"not drawn: reconstruction: {error}")


def looked_up(benchmark: Lookup, cell: Any, ranks: bool = False) -> dict[str, float]:
    """Look up the true accuracies of a cell of that space in percent and, with `ranks`, their ranks among all cells."""
    try:
        figures: dict[str, float] = benchmark.accuracies(cell)
        if ranks:
            tests = [column for column in benchmark.columns if column.endswith("_test")]
            figures |= {f"{column}_rank": benchmark.rank(cell, column)[0] for column in tests}
    except TableError as error:
        log.warning(f"not looked up: {error}")
        return {}
    return figures


def scalars(record: Mapping[str, Any], space: Space) -> dict[str, float | None]:
    """Return TensorBoard scalars of Search.run_epoch's record: eigenvalue, skips, weight of each candidate and edge."""
    found = {"hessian/largest_eigenvalue": record.get("hessian")}
    found |= {f"skips/{kind}": cell["skips"] for kind, cell in record["cells"].items()}
    for kind, rows in record["ops"].items():
        lists = record["candidates"][kind] if "candidates" in record else space.candidates(kind)
        for e, (names, row) in enumerate(zip(lists, rows, strict=True)):
            found |= {f"alpha_{kind}/edge{e}_{name}": weight for name, weight in zip(names, row, strict=False)}
    for kind, row in record.get("edges", {}).items():
        found |= {f"beta_{kind}/edge{e}": weight for e, weight in enumerate(row)}
    return found
