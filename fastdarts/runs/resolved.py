"""A search as its command line stands for it: settings, and what they name, looked up once and handed on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from fastdarts.inputs.source import DataSet
from fastdarts.search import Stage, stages_of
from fastdarts.settings import AnySearch, ConfigError
from fastdarts.spaces import Space, SpaceError, named


@dataclass(frozen=True)
class Resolved:
    """What a search is of.

    settings  of its command
    dataset   the row of its images
    space     where it looks
    stages    in which it does
    """

    settings: AnySearch
    dataset: DataSet
    space: Space
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, settings: AnySearch, dataset: DataSet) -> Self:
        """Raises ConfigError for a space that is not there, and for stages in which it cannot be searched."""
        try:
            space = named(settings.space)
        except SpaceError as error:
            raise ConfigError(f"--space: {error}") from error
        return cls(settings, dataset, space, stages_of(settings, settings.layers, space))

    def kept(self, saved: Mapping[str, Any]) -> Self:
        """With what a saved run has chosen where the settings leave it to the run."""
        return replace(self, settings=self.settings.kept(saved))

    def replaced(self, **changes: Any) -> Self:
        """With other values of settings that neither the space nor the stages depend on: sizes of images and batches."""
        return replace(self, settings=replace(self.settings, **changes))
