"""Records and reports of a retraining: result.json with the last, the best and the averaged network's accuracies."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdarts.engine import Reporter, RunFolder, write_text
from fastdarts.runs.build_retrain import figures_of
from fastdarts.runs.resolved import ResolvedRetrain
from fastdarts.steps.stage_timer import StageTimer
from fastdarts.training.results import accuracies, results
from fastdarts.training.trainer import Trainer

log = logging.getLogger("fastdarts")


class RetrainReporter(Reporter):
    """Reporter that maintains genotype.json, result.json and the report of a retraining.

    classes  names, in the order of the labels
    report   function that draws the report of a run folder
    stages   timer of the steps
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        resolved: ResolvedRetrain,
        classes: Sequence[str],
        *,
        report: Callable[[Path], object],
        stages: StageTimer | None = None,
    ) -> None:
        self.trainer, self.folder, self.resolved, self.classes = trainer, folder, resolved, classes
        self.report, self.stages = report, stages

    def stage_seconds(self) -> dict[str, float] | None:
        return None if self.stages is None else self.stages.drain()

    def scalars(self, record: Mapping[str, Any]) -> dict[str, float | None]:
        figures = {name: record.get(name) or {} for name in ("test", "test_ema", "valid_ema")}
        return {f"{name}/{figure}": value for name, row in figures.items() for figure, value in row.items()}

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Write genotype.json and result.json; log the accuracies that the epoch's own line lacks."""
        s = self.resolved.settings
        network = {"network": s.network, "init_channels": s.init_channels, "layers": s.layers, "recipe": s.recipe}
        figures = figures_of(self.resolved.architecture, self.trainer.network)
        write_text(self.folder["genotype.json"], self.resolved.architecture.to_json(**network, **figures))
        self._write_result()
        for name in ("test", "test_ema", "valid_ema"):
            if row := record.get(name):
                log.info(f"{name.replace('_ema', ' of the moving average')}: {accuracies(row)}")

    def publish(self) -> None:
        self.report(self.folder.path)

    def finished(self) -> None:
        """Log the accuracies, from the records, which a damaged result.json does not concern."""
        for name, row in self._write_result()["accuracies"].items():
            log.info(f"{name}: {accuracies(row)} (epoch {row['epoch']})")
        self.publish()

    def _write_result(self) -> dict[str, Any]:
        """Write result.json from the records so far; return its content."""
        lines = self.folder["metrics.jsonl"].read_text(encoding="utf-8").splitlines()
        epochs = [line for line in map(json.loads, lines) if line["kind"] == "epoch"]
        scores = self.trainer.scores
        found = {
            "epoch": epochs[-1]["epoch"],
            "of": self.trainer.total.epochs,
            "accuracies": results(epochs, self.resolved.settings.best_on_test),
            "classes": list(self.classes),
            # (correct, images) of each class in the last evaluation
            "by_class": {name: row.by_class for name, row in scores.items()} if scores else self._stored("by_class"),
        }
        write_text(self.folder["result.json"], json.dumps(found, indent=2) + "\n")
        return found

    def _stored(self, name: str) -> Any:
        """Return an entry of result.json as it is, {} if it cannot be read."""
        try:
            return json.loads(self.folder["result.json"].read_text(encoding="utf-8"))[name]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
