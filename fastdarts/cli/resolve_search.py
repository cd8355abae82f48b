"""Resolve the command line of a search: defaults < method < recipe < sample < --config < flags, on the available device."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from math import lcm
from pathlib import Path
from typing import Any

import torch

from fastdarts.cli.checks import absolute, check_device, check_fused, check_watching, device_of
from fastdarts.engine import RankInfo
from fastdarts.inputs.source import DataSet
from fastdarts.objectives import OBJECTIVES
from fastdarts.optim import Precision
from fastdarts.registry import METHODS, RECIPES, SPACES
from fastdarts.runs.resolved import Resolved
from fastdarts.search import DirichletRelaxation, GreedyEdges, RandomSmoothing, check_early_stop
from fastdarts.search.hiding import check_hiding
from fastdarts.search.methods import in_proportion, settings_of
from fastdarts.search.perturbation import check_selection
from fastdarts.settings import AnySearch, ConfigError
from fastdarts.settings.modules import import_modules
from fastdarts.spaces import Space
from fastdarts.textfile import SUFFIXES

PATHS = "data", "train_list", "val_list"
PROGRESSIVE = " ".join(f"progressive_{what}" for what in ("layers", "candidates", "dropout", "channels", "carry", "rate"))
SELECT = "select_figure select_batches select_interval select_rate"
OPS = {"patch_mask": False, "masked_loss": False, "relu_conv_bn": True, "mixed_cell": True}  # runs in autocast's dtype


@dataclass(frozen=True)
class SearchResolver:
    """Resolve the given values of a search command, by field.

    command   name of the command
    settings  settings class of its flags
    dataset   row of its data set
    """

    command: str
    settings: type[AnySearch]
    dataset: DataSet

    def __call__(self, args: Mapping[str, Any], info: RankInfo = RankInfo()) -> Resolved:  # noqa: B008 - a tuple
        """Resolve on the rank of `info`. Raises ConfigError."""
        import_modules(args.get("modules"))
        settings = self.settings.make(self._values(dict(args)))
        settings = replace(settings, device=device_of(settings.device, info), threads=settings.threads or info.threads())
        check_device(settings)
        check_watching(settings)
        resolved = Resolved.of(settings, self.dataset)
        check_early_stop(settings, resolved.space)
        _check_method(settings, resolved.space)
        _check_backend(settings)
        return resolved

    def notice(self, args: Mapping[str, Any]) -> str | None:
        """Return the first line of a run with the given values, if any."""
        return self.dataset.notice if args.get("data") is None else None

    def ignored(self, resolved: Resolved, asked: Collection[str]) -> list[str]:
        """Return a line for each choice that makes some of the settings `asked` for (by field) meaningless."""
        return without_effect(resolved, asked)

    def _values(self, args: dict[str, Any]) -> dict[str, Any]:
        """Return the settings by field: defaults, overridden by method, recipe and given values. Raises ConfigError."""
        args |= {name: absolute(args[name]) for name in PATHS if args.get(name) is not None}
        if "space" in args:
            args["space"] = _space(args["space"])
        recipe = self._recipe(args)
        row = settings_of(args.get("method") or recipe.get("method") or self.settings.method, self.dataset.name)
        published = {f.name: f.default for f in fields(self.settings)} | row | recipe
        small = {} if args.get("data") is not None else self._of_sample(published)
        scaled = in_proportion(published, args["epochs"]) if "epochs" in args else {}
        return published | small | scaled | args

    def _of_sample(self, published: Mapping[str, Any]) -> dict[str, Any]:
        """Return the generated sample's settings, as far as the method supports them."""
        sample = self.dataset.sample
        values = in_proportion(published, sample["epochs"]) | dict(sample)
        divisor = lcm(2, published["partial_channels"], *map(int, filter(None, published["progressive_channels"].split(","))))
        channels = values.get("init_channels", self.settings.init_channels)
        values["init_channels"] = -(-channels // divisor) * divisor
        if published["progressive"]:
            values |= {"epochs": 6, "begin": 1}  # two stages of three epochs, or three of two
        return values

    def _recipe(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of --recipe, {} without. Raises ConfigError."""
        name = args.get("recipe")
        if name is None:
            return {}
        own = {name: recipe for name, recipe in RECIPES.items() if recipe.command == self.command}
        if name not in own:
            other = f" belongs to fastdarts.{RECIPES[name].command}" if name in RECIPES else ""
            raise ConfigError(f"--recipe {name}{other}: fastdarts.{self.command} has {', '.join(own)}")
        settings = dict(own[name].settings)
        if args.get("method", settings["method"]) != settings["method"]:
            raise ConfigError(f"--method {args['method']}: --recipe {name} sets another method; give only one of the two")
        return settings


def without_effect(resolved: Resolved, asked: Collection[str]) -> list[str]:
    """Return a line for each choice that makes some of the settings `asked` for (by field) meaningless."""
    s, row = resolved.settings, OBJECTIVES[resolved.settings.objective]
    relaxation = METHODS[s.method].relaxation
    benchmark = resolved.space.skeleton == "nasbench201"
    unread = [
        (f"--objective {s.objective} masks nothing", not row.masks, "mask_ratio patch_size"),
        ("only to --objective mae", s.objective != "mae", "mask_token loss decoder"),
        ("only to NAS-Bench-201's network", not benchmark, "stage_cells cell_norm"),
        ("only to DARTS' network", benchmark, "layers"),
        ("only to --partial_channels above 1", s.partial_channels == 1, "channel_sampling"),
        ("--train_list and --val_list select the images", s.train_list is not None, "train_fraction val_fraction"),
        ("only to --method sdarts-rs and sdarts-adv", not issubclass(relaxation, RandomSmoothing), "smoothing_epsilon"),
        ("only to --method drnas", not issubclass(relaxation, DirichletRelaxation), "dirichlet_kl"),
        ("only to --method sgas-1 and sgas-2", not issubclass(relaxation, GreedyEdges), "sgas_warmup sgas_interval"),
        ("only to --edge_drop_path", not s.edge_drop_path, "edge_cutout"),
        ("only to --early_stop skips", s.early_stop != "skips", "early_stop_skips"),
        ("only to --early_stop eigenvalue", s.early_stop != "eigenvalue", "early_stop_from"),
        ("only to --progressive", not s.progressive, PROGRESSIVE),
        ("only to --select perturbation", s.select != "perturbation", SELECT),
        ("only to --skip_dropout", s.progressive and not s.skip_dropout, "progressive_dropout"),
    ]
    found = [(why, [f"--{name}" for name in names.split() if name in asked]) for why, holds, names in unread if holds]
    return [f"ignored: {_ignored(flags, why)}" for why, flags in found if flags]


def _ignored(flags: list[str], why: str) -> str:
    if not why.startswith("only to "):
        return f"{', '.join(flags)}, because {why}"
    return f"{', '.join(flags)} {'apply' if len(flags) > 1 else 'applies'} {why}"


def _space(text: str) -> str:
    """Return a canonical text for a space, so that any spelling of it continues a run."""
    name = text.strip().lower()
    if name in SPACES:
        return name
    return absolute(text) if Path(name).suffix in SUFFIXES else text


def _check_method(settings: AnySearch, space: Space) -> None:
    """Raise ConfigError if the method cannot search that space with these settings."""
    try:
        METHODS[settings.method].relaxation.check(space, settings)
    except ConfigError as error:
        raise ConfigError(f"--method {settings.method}: {error}") from error
    check_hiding(settings, settings.objective == "supervised")
    check_selection(settings, METHODS[settings.method].relaxation, OBJECTIVES[settings.objective].needs_labels)


def _check_backend(settings: AnySearch) -> None:
    """Raise ConfigError if --backend does not support an op."""
    lower = Precision(settings.amp).dtype or torch.float32
    check_fused(settings.backend, {op: lower if in_lower else torch.float32 for op, in_lower in OPS.items()}, settings.device)
