"""Resolve the command line of a retraining: defaults < recipe < run < sample < --config < flags, on the available device."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fastdarts.cli.checks import absolute, check_cells, check_device, check_watching, device_of
from fastdarts.engine import RankInfo
from fastdarts.inputs.source import DATASETS
from fastdarts.networks import architecture_of
from fastdarts.registry import RETRAININGS
from fastdarts.runs.build_retrain import check_buildable
from fastdarts.runs.resolved import ResolvedRetrain
from fastdarts.settings import ConfigError, RetrainSettings
from fastdarts.settings.modules import import_modules
from fastdarts.settings.retrain_recipes import DEFAULTS, SAMPLE, SAMPLE_LAYERS
from fastdarts.spaces import Architecture
from fastdarts.spaces.genotype import Genotype

PATHS = "data", "train_list", "val_list", "val_labels", "run"
OF_COMMAND = {"search_imagenet": "imagenet", "search_cifar": "cifar"}  # data set of a search
NOTICE = "No --data: this trains on a generated sample of textures and shapes, NOT on {}."


@dataclass(frozen=True)
class RetrainResolver:
    """Resolve the given values of the command retrain, by field."""

    command: str = "retrain"
    settings: type[RetrainSettings] = RetrainSettings

    def __call__(self, args: Mapping[str, Any], info: RankInfo = RankInfo()) -> ResolvedRetrain:  # noqa: B008 - a tuple
        """Resolve on the rank of `info`. Raises ConfigError."""
        import_modules(args.get("modules"))
        args = dict(args) | {name: absolute(args[name]) for name in PATHS if args.get(name) is not None}
        architecture = _architecture(args)
        settings = self.settings.make(_values(args, architecture))
        settings = replace(settings, device=device_of(settings.device, info), threads=settings.threads or info.threads())
        check_device(settings)
        check_cells(settings.backend, settings.device)
        check_watching(settings)
        resolved = ResolvedRetrain(settings, DATASETS[settings.dataset], architecture)
        check_buildable(resolved)
        return resolved

    def notice(self, args: Mapping[str, Any]) -> str | None:
        """Return the first line of a training on the generated sample."""
        run = _of_run(args)
        if args.get("data") is not None or run.get("data") is not None:
            return None
        return NOTICE.format("ImageNet" if args.get("dataset", run.get("dataset")) == "imagenet" else "CIFAR")

    def ignored(self, resolved: ResolvedRetrain, asked: Collection[str]) -> list[str]:
        """Return a line for each choice that makes some of the settings `asked` for (by field) meaningless."""
        s = resolved.settings
        unread = [
            ("neither --train_list nor --val_list", (s.train_list or s.val_list) is not None, "val_fraction"),
            ("--auxiliary", not s.auxiliary, "auxiliary_weight auxiliary_pool"),
            ("DARTS' networks", s.network == "nasbench201", "auxiliary auxiliary_weight auxiliary_pool drop_path"),
            ("--dataset imagenet", s.dataset != "imagenet", "strict loader cache cache_folder cache_size workers"),
            ("--dataset cifar", s.dataset != "cifar", "crop_padding"),
            ("--optimizer sgd", s.optimizer != "sgd", "nesterov optimizer_backend"),
            ("--optimizer rmsprop-tf", s.optimizer != "rmsprop-tf", "optimizer_eps"),
            ("--schedule exponential", s.schedule != "exponential", "lr_decay lr_decay_epochs"),
            ("--schedule cosine or linear", s.schedule not in ("cosine", "linear"), "learning_rate_min"),
            ("--warmup_epochs above 0", not s.warmup_epochs, "warmup_style"),
            ("--warmup_style ramp", not s.warmup_epochs or s.warmup_style != "ramp", "warmup_rate"),
            ("--ema_decay above 0", not s.ema_decay, "ema_warmup"),
        ]
        found = [(what, [f"--{name}" for name in names.split() if name in asked]) for what, holds, names in unread if holds]
        return [f"ignored: {', '.join(flags)}: only for {what}" for what, flags in found if flags]


def _architecture(args: Mapping[str, Any]) -> Genotype | Architecture:
    """Return the architecture of --genotype, else of --run. Raises ConfigError."""
    for flag in ("genotype", "run"):
        if args.get(flag) is not None:
            try:
                return architecture_of(args[flag])
            except ValueError as error:
                raise ConfigError(f"--{flag}: {error}") from error
    raise ConfigError("which cell? give --run, the folder of a search, or --genotype: text, a file or a name, as DARTS_V2")


def _values(args: dict[str, Any], architecture: Genotype | Architecture) -> dict[str, Any]:
    """Return the settings by field: defaults, overridden by recipe, run, sample and given values. Raises ConfigError."""
    run = _of_run(args)
    images = args.get("dataset") or run.get("dataset") or RetrainSettings.dataset
    if images not in SAMPLE:
        raise ConfigError(f"--dataset {images}: give {' or '.join(SAMPLE)}")
    name = args.get("recipe") or _recipe(images, run.get("space"), architecture)
    if name not in RETRAININGS:
        raise ConfigError(f"--recipe {name}: there are {', '.join(RETRAININGS)}")
    published: dict[str, Any] = {f.name: f.default for f in fields(RetrainSettings)} | dict(RETRAININGS[name].settings)
    dataset = args.get("dataset", published["dataset"])
    if run and run["dataset"] != dataset and args.get("data") is None:
        raise ConfigError(f"--recipe {name} is for --dataset {dataset}, the images of --run are {run['dataset']}: give --data")
    source = {}
    if run.get("dataset") == dataset:
        source = {"data": run["data"]} | ({} if run["statistics"] == "auto" else {"statistics": run["statistics"]})
    small: dict[str, Any] = {}
    if args.get("data", source.get("data")) is None:
        small = {"layers": SAMPLE_LAYERS.get(args.get("network", published["network"]), 5), **SAMPLE[dataset]}
    scaled = {}
    if "epochs" in args:
        share = args["epochs"] / published["epochs"]
        warmup, decay = published["warmup_epochs"], published["lr_decay_epochs"]
        scaled = {"warmup_epochs": max(int(share * warmup), min(warmup, 1))}
        scaled |= {"lr_decay_epochs": share * decay} if published["schedule"] == "exponential" else {}
    return published | source | small | scaled | args | {"recipe": name, "genotype": str(architecture)}


def _recipe(dataset: str, space: str | None, architecture: Genotype | Architecture) -> str:
    """Return the recipe of a cell that was searched on `dataset` in `space`, as far as that is known."""
    own = "nasbench201" if isinstance(architecture, Architecture) else space
    return DEFAULTS.get((dataset, own), DEFAULTS[dataset, None])


def _of_run(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return dataset, data, statistics and space of the search --run, {} without. Raises ConfigError."""
    if args.get("run") is None:
        return {}
    path = Path(args["run"]) / "settings.json"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        settings = saved["settings"]
        if saved["command"] not in OF_COMMAND:
            raise ConfigError(f"--run {args['run']}: a run of {saved['command']}, give the folder of a search")
        found = {"dataset": OF_COMMAND[saved["command"]], "data": settings["data"]}
        found |= {"space": settings.get("space", "s0"), "statistics": settings.get("statistics", "auto")}
    except OSError as error:
        raise ConfigError(f"--run {args['run']}: no folder of a search, {path} cannot be read ({error.strerror})") from error
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--run {args['run']}: {path} is not that of a search ({type(error).__name__}: {error})") from error
    return found
