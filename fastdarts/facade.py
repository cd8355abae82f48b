"""Run a whole search in one call: `fastdarts.search("mae-nas-cifar10", data=..., save=...)`."""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from fastdarts.registry import RECIPES
from fastdarts.settings import ConfigError
from fastdarts.spaces import Architecture
from fastdarts.spaces.genotype import Genotype, read_architecture_json


class Found(NamedTuple):
    """Result of a search: its cell, and the run folder with everything else."""

    genotype: Genotype | Architecture
    folder: Path


def search(recipe: str | None = None, *, command: str | None = None, **settings: Any) -> Found:
    """Run `fastdarts COMMAND --recipe RECIPE --SETTING VALUE ...` in this process.

    recipe    a published search; None: the command's defaults
    command   "search_imagenet" or "search_cifar"; None: the recipe's, else search_imagenet
    settings  any flag by name: data, save, epochs, ...; the same call with the same `save` continues an interrupted run

    Raises the errors that the command prints in one line: ConfigError, DataError, RunFolderError, DivergedError, Stopped, ...
    """
    if settings.get("dry_run"):
        raise ConfigError("dry_run returns no cell: use --dry_run with the command")
    name = command or (RECIPES[recipe].command if recipe is not None and recipe in RECIPES else "search_imagenet")
    values = settings if recipe is None else settings | {"recipe": recipe}
    folder = import_module(f"fastdarts.{name}").command.call(values)
    return Found(read_architecture_json((folder / "genotype.json").read_text(encoding="utf-8")), folder)
