"""What settings are made of: field = flag = help line = saved setting.

A group is one frozen dataclass of settings on one topic (groups.py); a command's settings are some of the groups (commands.py).
Each field is made by `setting`, which carries its help, its range and whether a run may be continued with another value.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform, get_type_hints

from fastdarts.settings import config_file, flags
from fastdarts.settings.config_file import Given
from fastdarts.settings.values import ConfigError, check, expanded

Class = TypeVar("Class", bound="type[Settings]")


def setting(
    default: Any,
    help: str,
    *,
    among: Mapping[str, Any] | None = None,
    or_else: str | None = None,
    brings: bool = False,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    resumable: bool = False,
    before: Any = None,
    auto: Any = None,
    path: bool = False,
    place: bool = False,
) -> Any:
    """A dataclass field that is also a flag.

    among      registry whose names are the choices; the help lists them
    or_else    what else it may be, in words: the names of `among` are not all choices then
    brings     it stands for values of other settings
    resumable  a saved run may be continued with another value
    before     assumed of runs that were saved before there was this setting
    auto       the value that the word "auto" gives: the run chooses, and a continued one keeps what was chosen
    path       of a file or folder: ~ at its beginning is the home folder
    place      a path where what the run began with may be found elsewhere: a continued run compares what is there
    """
    bounds = {"at least": at_least, "at most": at_most, "above": above, "below": below}
    return field(
        default=default,
        metadata={
            "help": help,
            "among": among,
            "or_else": or_else,
            "brings": brings,
            "bounds": {name: value for name, value in bounds.items() if value is not None},
            "resumable": resumable,
            "before": before,
            "auto": auto,
            "path": path or place,
            "place": place,
        },
    )


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
def group(cls: Class) -> Class:
    """Decorate a group of settings: its `title` is over its flags in --help."""
    return dataclass(frozen=True, kw_only=True)(cls)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
def composed(*, before: Mapping[str, Any] | None = None, **defaults: Any) -> Callable[[Class], Class]:
    """Decorate a command's settings. Its bases are groups, the last one's fields come first.

    before, defaults  by setting, in place of those of its group
    """
    own_before = before or {}
    own = defaults.keys() | own_before.keys()

    def decorate(cls: Class) -> Class:
        hints, bases = get_type_hints(cls), [base for base in cls.__bases__ if issubclass(base, Settings)]
        theirs = {f.name: f for base in bases for f in fields(base)}
        for name in own:
            f, then = theirs[name], own_before.get(name, theirs[name].metadata["before"])
            setattr(cls, name, field(default=defaults.get(name, f.default), metadata={**f.metadata, "before": then}))
        cls.__annotations__ = cls.__annotations__ | {name: hints[name] for name in own}
        return dataclass(frozen=True, kw_only=True)(cls)

    return decorate


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings: checks its ranges, reads a command line, compares itself with a saved one."""

    title: ClassVar[str]

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            if f.metadata["path"] and isinstance(text := getattr(self, f.name), str):
                object.__setattr__(self, f.name, expanded(text))  # of a frozen dataclass
            check(f, getattr(self, f.name), hints[f.name])

    @classmethod
    def given(cls, argv: Sequence[str] | None, prog: str, description: str) -> dict[str, Any]:
        """What a command line sets, by field name. A wrong flag or value ends the process with one line and status 2."""
        return cls.parse(argv, prog, description).values

    @classmethod
    def parse(cls, argv: Sequence[str] | None, prog: str, description: str) -> Given:
        """As `given`, the flags and the file of --config apart."""
        parser = flags.make(cls, prog, description, cls.titles())
        said = vars(parser.parse_args(argv))
        try:
            return config_file.given(cls, said)
        except ConfigError as error:
            parser.error(str(error))

    @classmethod
    def titles(cls) -> dict[str, str]:
        """The title of the group of each field that is in one, in the order of the fields."""
        groups = [base for base in cls.__mro__[::-1] if issubclass(base, Settings) and "title" in vars(base)]
        return {f.name: base.title for base in groups for f in fields(base)}

    @classmethod
    def brings(cls, name: str) -> bool:
        """Whether that setting stands for values of others."""
        return any(f.name == name and f.metadata["brings"] for f in fields(cls))

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """Lines that name each setting whose value is not the saved one, resumable ones and other places left out."""
        mine = asdict(self)
        was = {f.name: saved.get(f.name, f.metadata["before"]) for f in fields(self) if not f.metadata["resumable"]}
        autos = {f.name: f.metadata["auto"] for f in fields(self) if f.metadata["auto"] is not None}
        places = {f.name for f in fields(self) if f.metadata["place"]}
        others = [name for name in was if mine[name] not in (was[name], autos.get(name, was[name]))]
        others = [name for name in others if not (name in places and _is_place(mine[name]) and _is_place(was[name]))]
        return [f"--{name} is {mine[name]!r} but was {was[name]!r}" for name in others]

    def kept(self, saved: Mapping[str, Any]) -> Self:
        """With what a saved run has chosen where these settings leave it to the run."""
        autos = {f.name: f.metadata["auto"] for f in fields(self) if f.metadata["auto"] is not None}
        chosen = {name: saved[name] for name, auto in autos.items() if name in saved and getattr(self, name) == auto}
        return replace(self, **chosen)

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Self:
        """From plain values (a settings.json, say). Raises ConfigError."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(sorted(unknown))}")
        return cls(**values)


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and os.path.isabs(value)
