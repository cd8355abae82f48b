"""Registries of named rows: methods, objectives, search spaces, recipes of searches and of trainings, one registry each.

Rows are added at their definition (`METHODS |= {"pc-darts": Method(...)}`). Flags, their choices and help, report titles and
tests read the names from here. This module imports nothing from the project: a registry imports its home, the module that
fills it, on first access.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from fastdarts.objectives.table import Row as ObjectiveRow
    from fastdarts.search.methods import Method
    from fastdarts.settings.recipes import Recipe
    from fastdarts.settings.retrain_recipes import RetrainRecipe
    from fastdarts.spaces.space import Space

Row = TypeVar("Row")


class Registry(MutableMapping[str, Row]):
    """Rows by name, in insertion order. Raises ValueError for a duplicate name.

    kind   kind of the rows, for messages: "method"
    home   module whose import adds the rows
    about  row attribute with a short description; None: the names suffice
    """

    def __init__(self, kind: str, home: str, about: str | None = None) -> None:
        self.kind, self.home, self.about = kind, home, about
        self._rows: dict[str, Row] = {}

    def __getitem__(self, name: str) -> Row:
        return self._filled()[name]

    def __setitem__(self, name: str, row: Row) -> None:
        if name in self._filled():
            raise ValueError(f"{self.kind} {name!r} already exists")
        self._rows[name] = row

    def __delitem__(self, name: str) -> None:
        del self._filled()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._filled())

    def __len__(self) -> int:
        return len(self._filled())

    def __ior__(self, rows: Mapping[str, Row]) -> Self:
        self.update(rows)
        return self

    def __repr__(self) -> str:
        return f"<Registry of each {self.kind}: {', '.join(self)}>"

    def described(self) -> str:
        """Return the names, comma-separated, each with the description of its row."""
        if self.about is None:
            return ", ".join(self)
        return ", ".join(f"{name} ({getattr(row, self.about)})" for name, row in self.items())

    def _filled(self) -> dict[str, Row]:
        import_module(self.home)  # no second import during its own
        return self._rows


METHODS: Registry[Method] = Registry("method", "fastdarts.search.methods", about="paper")
OBJECTIVES: Registry[ObjectiveRow] = Registry("objective", "fastdarts.objectives.table", about="description")
SPACES: Registry[Space] = Registry("space", "fastdarts.spaces.names")
RECIPES: Registry[Recipe] = Registry("recipe", "fastdarts.settings.recipes", about="source")
RETRAININGS: Registry[RetrainRecipe] = Registry("retraining recipe", "fastdarts.settings.retrain_recipes", about="source")
