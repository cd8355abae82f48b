"""Resolve the command line of an evaluation, on the available device."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastdarts.cli.checks import absolute, check_amp, check_cells, device_of
from fastdarts.engine import RankInfo
from fastdarts.runs.evaluate import Evaluated
from fastdarts.settings import EvaluateSettings
from fastdarts.settings.modules import import_modules

PATHS = "data", "val_labels", "checkpoint"


@dataclass(frozen=True)
class EvaluationResolver:
    """Resolve the given values of the command evaluate, by field."""

    command: str = "evaluate"
    settings: type[EvaluateSettings] = EvaluateSettings

    def __call__(self, args: Mapping[str, Any], info: RankInfo = RankInfo()) -> Evaluated:  # noqa: B008 - a tuple
        """Resolve on the rank of `info`. Raises ConfigError."""
        import_modules(args.get("modules"))
        values = dict(args) | {name: absolute(args[name]) for name in PATHS if args.get(name) is not None}
        settings = self.settings.make(values)
        settings = replace(settings, device=device_of(settings.device, info), threads=settings.threads or info.threads())
        check_amp(settings.amp, torch.device(settings.device))
        check_cells(settings.backend, settings.device)
        return Evaluated.of(settings)

    def notice(self, args: Mapping[str, Any]) -> str | None:
        """Return no first line: which images are read is known once the run is."""

    def ignored(self, resolved: Evaluated, asked: Collection[str]) -> list[str]:
        """Return a line for each choice that makes some of the settings `asked` for (by field) meaningless."""
        files = [name for name in ("loader", "cache", "cache_folder", "cache_size") if name in asked]
        why = "test images are decoded by torchvision and not cached"
        lines = [f"ignored: {', '.join(f'--{name}' for name in files)}: {why}"] if files else []
        if resolved.run is not None and "dataset" in asked:
            lines.append("ignored: --dataset: the run names it")
        return lines
