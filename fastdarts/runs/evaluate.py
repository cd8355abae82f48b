"""Evaluate a trained network on test images: of a retraining's folder or checkpoint, an exported folder, or a published one."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from fastdarts.engine import SignalHandler, World
from fastdarts.engine.checkpoints import BEST, NEWEST, DamagedCheckpoint, load_checkpoint
from fastdarts.inputs.source import DATASETS, DataSet
from fastdarts.inputs.statistics import Statistics
from fastdarts.networks import CheckpointError, DiscreteNetwork, Exported, architecture_of, load_published, read_network
from fastdarts.networks.checkpoint import contradiction
from fastdarts.networks.folder import WEIGHTS, is_exported
from fastdarts.optim import Precision
from fastdarts.runs.build_retrain import network_of, pixel_statistics
from fastdarts.runs.resolved import ResolvedRetrain
from fastdarts.settings import ConfigError, EvaluateSettings, RetrainSettings
from fastdarts.training.augment import Prepare
from fastdarts.training.evaluation import Scores, evaluate
from fastdarts.training.results import accuracies

CLASSES_SHOWN = 20  # on the screen; JSON has all
log = logging.getLogger("fastdarts")


@dataclass(frozen=True)
class Evaluated:
    """Settings of an evaluation and what they name.

    run       settings.json of the retraining whose checkpoint it is; None for a published checkpoint
    file      the checkpoint
    dataset   row of the data set
    exported  network of an exported folder
    """

    settings: EvaluateSettings
    run: Mapping[str, Any] | None
    file: Path
    dataset: DataSet
    exported: Exported | None = None

    @classmethod
    def of(cls, settings: EvaluateSettings) -> Self:
        """Find the checkpoint and its run. Raises ConfigError."""
        if settings.checkpoint is None:
            raise ConfigError("which network? give the run folder of a retraining, or a checkpoint")
        path = Path(settings.checkpoint)
        if not path.exists():
            raise ConfigError(f"{path} does not exist: give the run folder of a retraining, or a checkpoint")
        if is_exported(path):
            return cls._of_folder(settings, path)
        folder = path if path.is_dir() else path.parent
        if settings.weights == "best" and not path.is_dir():
            raise ConfigError(f"{path}: --weights best is of a run folder, this is a file: give the folder")
        file = folder / (BEST if settings.weights == "best" else NEWEST) if path.is_dir() else path
        run = None if settings.genotype is not None else _settings_of(folder, path)
        if not file.is_file():
            best = "; without --val_fraction or --best_on_test no epoch is chosen" if settings.weights == "best" else ""
            raise ConfigError(f"{path}: there is no {file.name}{best}")
        if run is None and settings.data is None:
            raise ConfigError(f"{path}: a published checkpoint says nothing of its images: give --data")
        return cls(settings, run, file, DATASETS[run["settings"]["dataset"] if run else settings.dataset])

    @classmethod
    def _of_folder(cls, settings: EvaluateSettings, path: Path) -> Self:
        if settings.data is None:
            raise ConfigError(f"{path}: an exported network says nothing of its images: give --data")
        if settings.weights != "last" or settings.genotype is not None:
            raise ConfigError(f"{path}: an exported folder has one network, without --weights and --genotype")
        try:
            exported = read_network(path)
        except (CheckpointError, ModuleNotFoundError) as error:
            raise ConfigError(str(error)) from error
        side = settings.image_size or exported.network.shape.image_size
        return cls(replace(settings, image_size=side), None, path / WEIGHTS, DATASETS[settings.dataset], exported)

    def content(self) -> dict[str, Any]:
        """Return nothing: the ranks' settings say all."""
        return {}

    @property
    def is_sample(self) -> bool:
        """Return whether the images are the generated sample."""
        return self.images.data is None

    @property
    def images(self) -> EvaluateSettings:
        """Return the settings of the images: data, labels and size of the run, where none are given."""
        s = self.settings
        if self.run is None:
            return s
        then = self.run["settings"]
        own = {"data": then["data"], "val_labels": then["val_labels"]} if s.data is None else {}
        return replace(s, image_size=s.image_size or then["image_size"], **own)

    def network(self, num_classes: int, side: int) -> DiscreteNetwork:
        """Return the network with its weights, on the CPU. Raises ConfigError if file, classes or sizes do not fit."""
        try:
            network = self.exported.network if self.exported else self._of_file(side)
            network.check_size(side, side)
        except (ValueError, DamagedCheckpoint) as error:
            raise ConfigError(str(error)) from error
        if (classes := network.shape.num_classes) != num_classes:
            raise ConfigError(f"{self.file}: a network of {classes} classes, the test images have {num_classes}")
        return network

    def _of_file(self, side: int) -> DiscreteNetwork:
        return self._published() if self.run is None else self._of_run(self.run, side)

    def _published(self) -> DiscreteNetwork:
        if self.settings.genotype is None:
            raise ConfigError(f"{self.file}: not in the run folder of a retraining: name its architecture by --genotype")
        try:
            architecture = architecture_of(self.settings.genotype)
        except ValueError as error:
            raise ConfigError(f"--genotype: {error}") from error
        return load_published(self.file, architecture, ema=self.settings.weights == "ema")

    def _of_run(self, run: Mapping[str, Any], side: int) -> DiscreteNetwork:
        weights = _weights(load_checkpoint(self.file), self.settings.weights, self.file)
        then = RetrainSettings.make(run["settings"])
        resolved = ResolvedRetrain(then, self.dataset, architecture_of(then.genotype or ""))
        network = network_of(resolved.replaced(image_size=side), len(weights["classifier.bias"]))
        if wrong := contradiction(network, weights):
            raise CheckpointError(f"{self.file}: {wrong}")
        network.load_state_dict(weights)
        return network

    def statistics(self, num_classes: int) -> Statistics:
        """Return mean and standard deviation of the pixels."""
        if self.exported and self.settings.statistics == "auto":
            return self.exported.statistics
        then = self.run["settings"] if self.run else {"statistics": "auto", "network": ""}
        name = then["statistics"] if self.settings.statistics == "auto" else self.settings.statistics
        return pixel_statistics(name, then["network"], self.dataset, num_classes)


def run(name: str, resolved: Evaluated, signals: SignalHandler, world: World) -> Path:
    """Print the scores on all test images of all ranks; returns the checkpoint's path."""
    cores = world.info.threads()
    torch.set_num_threads(resolved.settings.threads)
    exported = resolved.exported
    classes = list(exported.classes) if exported else resolved.run["data"].get("classes") if resolved.run else None
    with signals.at_once():
        found = resolved.dataset.open_test(resolved.images, threads=cores, world=world, classes=classes)
        names = found.images.index.classes
        side = found.images.side(resolved.images)
        network = world.on_all_ranks(lambda: resolved.network(len(names), side))
        device = torch.device(resolved.settings.device)
        network = network.to(device).to(memory_format=torch.channels_last)
        network.set_backend(resolved.settings.backend)
        mean, std = resolved.statistics(len(names))
        precision, ranks = Precision(resolved.settings.amp, device), None if world.is_single else world
        log.info(f"{found.message}, generated ones, NOT a data set" if resolved.is_sample else found.message)
        scores = evaluate(network, Prepare(mean, std), found.test, len(names), precision=precision, ranks=ranks)
    if world.is_main:
        print(_json(resolved, scores, names) if resolved.settings.json else _text(resolved, scores, names))
    return resolved.file


def _settings_of(folder: Path, path: Path) -> Mapping[str, Any]:
    """Return settings.json of a retraining. Raises ConfigError."""
    file = folder / "settings.json"
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        command = saved["command"]
        if command == "retrain":
            then = asdict(RetrainSettings.make(saved["settings"]))  # checks them
            return {"settings": then, "data": dict(saved["data"])}
    except OSError as error:
        missing = f"no folder of a retraining ({error.strerror})" if path.is_dir() else "not in the folder of a retraining"
        raise ConfigError(f"{path}: {missing}; for a published checkpoint name its architecture by --genotype") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is damaged ({type(error).__name__}: {error})") from error
    raise ConfigError(f"{path}: a run of {command}, which trains no network of its own: retrain its cell first")


def _weights(state: Mapping[str, Any], which: str, file: Path) -> dict[str, Tensor]:
    """Return the network's weights of a checkpoint of a retraining. Raises CheckpointError."""
    average = state.get("ema")
    if which == "ema" and not isinstance(average, Mapping):
        raise CheckpointError(f"{file}: it holds no moving average, which --ema_decay of retrain makes")
    weights = (average or {}).get("network") if which == "ema" else state.get("network")
    if not isinstance(weights, Mapping) or not isinstance(weights.get("classifier.bias"), Tensor):
        raise CheckpointError(f"{file}: no checkpoint of a retraining")
    return dict(weights)


def _json(resolved: Evaluated, scores: Scores, names: tuple[str, ...]) -> str:
    by_class = {name: {"correct": correct, "images": of} for name, (correct, of) in zip(names, scores.by_class, strict=True)}
    facts: dict[str, Any] = {"checkpoint": str(resolved.file), "weights": resolved.settings.weights}
    facts |= {"is_sample": resolved.is_sample} | scores.figures()
    return json.dumps(facts | {"images": scores.images, "by_class": by_class}, indent=2)


def _text(resolved: Evaluated, scores: Scores, names: tuple[str, ...]) -> str:
    classes = [(name, correct, of) for name, (correct, of) in zip(names, scores.by_class, strict=True) if of]
    classes.sort(key=lambda row: row[1] / row[2])
    half = CLASSES_SHOWN // 2
    shown = classes if len(classes) <= CLASSES_SHOWN else [*classes[:half], *classes[-half:]]
    width = max(len(name) for name, _, _ in shown)
    lines = [f"  {name:{width}}  {correct / of:8.2%}  {correct} of {of}" for name, correct, of in shown]
    if len(shown) < len(classes):
        lines.insert(half, f"  ... {len(classes) - len(shown)} classes between them (--json prints all)")
    title = f"{resolved.file}: {accuracies(scores.figures())} on {scores.images} images; the worst class first"
    return "\n".join([title, *lines])
