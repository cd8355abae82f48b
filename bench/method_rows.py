"""The comparisons of bench.methods: whose step is measured against which."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastdarts.objectives.table import OBJECTIVES
from fastdarts.search import METHODS
from fastdarts.settings import ConfigError
from fastdarts.settings.recipes import NASBENCH201, SUPERVISED

PLAIN = {"method": "darts-1st"} | SUPERVISED
ROBUST = ("s1", "s2", "s3", "s4")
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One comparison.

    own, plain  settings of the two steps, besides sizes and device
    stage       of a search in stages, counted from 0
    """

    group: str
    name: str
    own: Values
    plain: Values = field(default_factory=lambda: PLAIN)
    stage: int = 0


def rows() -> list[Row]:
    """All comparisons."""
    stages = range(len(METHODS["p-darts"].schedule["progressive_layers"].split(",")))
    p_darts = {"method": "p-darts"} | SUPERVISED
    nasbench201 = PLAIN | {name: value for name, value in NASBENCH201.items() if name != "epochs"}
    spaces = [PLAIN | {"space": space} for space in ROBUST] + [nasbench201]
    return [
        *(Row("methods", method, {"method": method} | SUPERVISED) for method in ("darts-2nd", "pc-darts")),
        *(Row("methods", f"p-darts stage {i + 1}", p_darts, stage=i) for i in stages),
        *(Row("methods", f"p-darts stage {i + 1} no dropout", p_darts | {"skip_dropout": False}, stage=i) for i in stages[1:]),
        *(Row("objectives", objective, PLAIN | {"objective": objective}) for objective in OBJECTIVES),
        *(
            Row("spaces", f"{plain['space']} {objective}", plain | {"objective": objective}, plain)
            for plain in spaces
            for objective in ("mae", "joint")
        ),
    ]


def chosen(only: str | None) -> list[Row]:
    """Return the rows that --only names, in the order of rows(). Raises ConfigError."""
    every = rows()
    if only is None:
        return every
    names = [name.strip() for name in only.split(",")]
    known = dict.fromkeys([row.group for row in every] + [row.name for row in every])
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"--only: there is no {unknown[0]!r}; there are {', '.join(known)}")
    return [row for row in every if row.group in names or row.name in names]
