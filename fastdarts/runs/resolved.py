"""Resolved settings of a run: the objects that settings name, looked up once and passed on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from fastdarts.inputs.source import DataSet
from fastdarts.search import Stage, stages_of
from fastdarts.settings import AnySearch, ConfigError, RetrainSettings
from fastdarts.spaces import Architecture, Space, SpaceError, named
from fastdarts.spaces.file import to_dict
from fastdarts.spaces.genotype import Genotype


@dataclass(frozen=True)
class Resolved:
    """Settings of a search and the objects they name.

    settings  settings of the command
    dataset   row of the data set
    space     search space
    stages    stages of the search
    """

    settings: AnySearch
    dataset: DataSet
    space: Space
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, settings: AnySearch, dataset: DataSet) -> Self:
        """Look up space and stages. Raises ConfigError for an unknown space, and for stages unsuitable for it."""
        try:
            space = named(settings.space)
        except SpaceError as error:
            raise ConfigError(f"--space: {error}") from error
        return cls(settings, dataset, space, stages_of(settings, settings.layers, space))

    def kept(self, saved: Mapping[str, Any]) -> Self:
        """Return a copy with a saved run's choices for automatic settings."""
        return replace(self, settings=self.settings.kept(saved))

    def replaced(self, **changes: Any) -> Self:
        """Return a copy with changed settings that affect neither space nor stages: sizes of images and batches."""
        return replace(self, settings=replace(self.settings, **changes))

    def content(self) -> dict[str, Any]:
        """Return, by flag, the content of files that settings name, which must agree on all ranks."""
        return {"--space": to_dict(self.space)}


@dataclass(frozen=True)
class ResolvedRetrain:
    """Settings of a retraining and the objects they name.

    settings      settings of the command; `genotype` is the architecture's text
    dataset       row of the data set
    architecture  trained architecture
    """

    settings: RetrainSettings
    dataset: DataSet
    architecture: Genotype | Architecture

    def kept(self, saved: Mapping[str, Any]) -> Self:
        """Return a copy with a saved run's choices for automatic settings."""
        return replace(self, settings=self.settings.kept(saved))

    def replaced(self, **changes: Any) -> Self:
        """Return a copy with changed settings that do not affect the architecture."""
        return replace(self, settings=replace(self.settings, **changes))

    def content(self) -> dict[str, Any]:
        """Return nothing: the architecture's text is a setting."""
        return {}


AnyResolved = Resolved | ResolvedRetrain
