"""Evaluate a trained network on test images: of a retraining's folder, of one of its checkpoints, or a published one."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from fastdarts.engine import SignalHandler, World
from fastdarts.engine.checkpoints import BEST, NEWEST, DamagedCheckpoint, load_checkpoint
from fastdarts.inputs.source import DATASETS, DataSet, Statistics, statistics_of
from fastdarts.networks import CheckpointError, DiscreteNetwork, architecture_of, load_published
from fastdarts.networks.checkpoint import contradiction
from fastdarts.optim import Precision
from fastdarts.runs.build_retrain import network_of
from fastdarts.runs.resolved import ResolvedRetrain
from fastdarts.settings import ConfigError, EvaluateSettings, RetrainSettings
from fastdarts.training.augment import Prepare
from fastdarts.training.evaluation import Scores, evaluate
from fastdarts.training.results import accuracies

CLASSES_SHOWN = 20  # on the screen; JSON has all
log = logging.getLogger("fastdarts")


@dataclass(frozen=True)
class Evaluated:
    """Evaluation: settings, and the files and data they name.

    run      settings.json of the retraining whose checkpoint it is; None for a published checkpoint
    file     the checkpoint
    dataset  row of the data set
    """

    settings: EvaluateSettings
    run: Mapping[str, Any] | None
    file: Path
    dataset: DataSet

    @classmethod
    def of(cls, settings: EvaluateSettings) -> Self:
        """Find the checkpoint and its run. Raises ConfigError."""
        if settings.checkpoint is None:
            raise ConfigError("which network? give the run folder of a retraining, or a checkpoint")
        path = Path(settings.checkpoint)
        if not path.exists():
            raise ConfigError(f"{path} does not exist: give the run folder of a retraining, or a checkpoint")
        folder = path if path.is_dir() else path.parent
        file = folder / (BEST if settings.weights == "best" else NEWEST) if path.is_dir() else path
        run = None if settings.genotype is not None else _settings_of(folder, path)
        if not file.is_file():
            best = "; without --val_fraction or --best_on_test no epoch is chosen" if settings.weights == "best" else ""
            raise ConfigError(f"{path}: there is no {file.name}{best}")
        return cls(settings, run, file, DATASETS[run["settings"]["dataset"] if run else settings.dataset])

    def kept(self, saved: Mapping[str, Any]) -> Self:
        """Return itself: nothing is chosen automatically."""
        return self

    def content(self) -> dict[str, Any]:
        """Return nothing that the settings lack."""
        return {}

    @property
    def images(self) -> EvaluateSettings:
        """Return the settings of the images: data and size of the run, where none are given."""
        s = self.settings
        then = self.run["settings"] if self.run else {}
        size = s.image_size or then.get("image_size", 0)
        return replace(s, data=s.data if s.data is not None else then.get("data"), image_size=size)

    def network(self, num_classes: int) -> DiscreteNetwork:
        """Return the network with its weights, on the CPU. Raises ConfigError if the file does not fit."""
        try:
            network = self._published() if self.run is None else self._of_run(self.run, num_classes)
        except (CheckpointError, DamagedCheckpoint) as error:
            raise ConfigError(str(error)) from error
        if (classes := network.shape.num_classes) != num_classes:
            raise ConfigError(f"{self.file}: a network of {classes} classes, the test images have {num_classes}")
        return network

    def _published(self) -> DiscreteNetwork:
        genotype = self.settings.genotype
        if genotype is None:
            raise ConfigError(f"{self.file}: not in the run folder of a retraining: name its architecture by --genotype")
        try:
            return load_published(self.file, architecture_of(genotype))
        except CheckpointError:
            raise
        except ValueError as error:
            raise ConfigError(f"--genotype: {error}") from error

    def _of_run(self, run: Mapping[str, Any], num_classes: int) -> DiscreteNetwork:
        state = load_checkpoint(self.file)
        weights = _weights(state, self.settings.weights, self.file)
        then = RetrainSettings.make(run["settings"])
        resolved = ResolvedRetrain(then, self.dataset, architecture_of(then.genotype or ""))
        size = self.settings.image_size or then.image_size or run["data"].get("image_size", 0)
        network = network_of(resolved.replaced(image_size=size), len(weights["classifier.bias"]))
        if wrong := contradiction(network, weights):
            raise CheckpointError(f"{self.file}: {wrong}")
        network.load_state_dict(weights)
        return network

    def statistics(self, num_classes: int) -> Statistics:
        """Return mean and standard deviation of the pixels."""
        chosen = self.settings.statistics
        if chosen == "auto" and self.run:
            chosen = self.run["settings"]["statistics"]
        return statistics_of(chosen, self.dataset, num_classes)


def run(name: str, resolved: Evaluated, signals: SignalHandler, world: World) -> Path:
    """Print the scores on all test images of all ranks; returns the checkpoint's path."""
    cores = world.info.threads()
    torch.set_num_threads(resolved.settings.threads)
    classes = resolved.run["data"].get("classes") if resolved.run else None
    with signals.at_once():
        found = resolved.dataset.open_test(resolved.images, threads=cores, world=world, classes=classes)
        names = found.images.index.classes
        network = world.on_all_ranks(lambda: resolved.network(len(names)))
        device = torch.device(resolved.settings.device)
        network = network.to(device).to(memory_format=torch.channels_last)
        mean, std = resolved.statistics(len(names))
        precision, ranks = Precision(resolved.settings.amp, device), None if world.is_single else world
        log.info(found.message)
        scores = evaluate(network, Prepare(mean, std), found.test, len(names), precision=precision, ranks=ranks)
    if world.is_main:
        print(_json(resolved, scores, names) if resolved.settings.json else _text(resolved, scores, names))
    return resolved.file


def _settings_of(folder: Path, path: Path) -> Mapping[str, Any]:
    """Return settings.json of a retraining. Raises ConfigError."""
    try:
        saved = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        if saved["command"] != "retrain":
            raise ConfigError(
                f"{path}: a run of {saved['command']}, which trains no network of its own: retrain its cell first"
            )
    except OSError as error:
        missing = f"no folder of a retraining ({error.strerror})" if path.is_dir() else "not in the folder of a retraining"
        raise ConfigError(f"{path}: {missing}; for a published checkpoint name its architecture by --genotype") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{folder / 'settings.json'} is damaged ({error})") from error
    return saved


def _weights(state: Mapping[str, Any], which: str, file: Path) -> dict[str, Tensor]:
    """Return the network's weights of a checkpoint. Raises CheckpointError."""
    if which == "ema":
        if "ema" not in state:
            raise CheckpointError(f"{file}: it holds no moving average, which --ema_decay of retrain makes")
        return state["ema"]["network"]
    if "network" not in state:
        raise CheckpointError(f"{file}: no checkpoint of a retraining")
    return state["network"]


def _json(resolved: Evaluated, scores: Scores, names: tuple[str, ...]) -> str:
    by_class = {name: {"correct": correct, "images": of} for name, (correct, of) in zip(names, scores.by_class, strict=True)}
    facts = {"checkpoint": str(resolved.file), "weights": resolved.settings.weights} | scores.figures()
    return json.dumps(facts | {"images": scores.images, "by_class": by_class}, indent=2)


def _text(resolved: Evaluated, scores: Scores, names: tuple[str, ...]) -> str:
    rows = sorted(zip(names, scores.by_class, strict=True), key=lambda row: row[1][0] / max(1, row[1][1]))
    shown = rows if len(rows) <= CLASSES_SHOWN else [*rows[: CLASSES_SHOWN // 2], *rows[-CLASSES_SHOWN // 2 :]]
    width = max(len(name) for name, _ in shown)
    lines = [f"  {name:{width}}  {correct / of:8.2%}  {correct} of {of}" for name, (correct, of) in shown if of]
    if len(shown) < len(rows):
        lines.insert(CLASSES_SHOWN // 2, f"  ... {len(rows) - len(shown)} classes between them (--json prints all)")
    return "\n".join([f"{resolved.file}: {accuracies(scores.figures())} on {scores.images} images", *lines])
