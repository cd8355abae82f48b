"""Fields of settings: field = flag = help line = saved setting.

A group is a frozen dataclass of settings on one topic (groups.py); a command's settings combine groups (commands.py). Each
field is made by `setting`, with its help, its range and whether a continued run may change it.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform, get_type_hints

from fastdarts.settings import config_file, flags, modules
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
    also: Sequence[str] = (),
    bare: Any = None,
    positional: bool = False,
) -> Any:
    """Return a dataclass field that is also a flag.

    among      registry whose names are the choices; the help lists them
    or_else    description of further choices besides the names of `among`
    brings     it sets values of other settings
    resumable  a continued run may change its value
    before     value assumed for runs saved before the setting existed
    auto       value of the word "auto": the run chooses, and a continued run keeps the choice
    path       path of a file or folder: a leading ~ is the home folder
    place      path to content that may have moved: a continued run compares the content instead
    also       further names of the flag, as other tools spell it; one letter takes one dash
    bare       value of the flag without a value, unless another flag sets it; None: a value is needed
    positional given without the flag's name, before or between the flags
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
            "also": tuple(also),
            "bare": bare,
            "positional": positional,
        },
    )


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
def group(cls: Class) -> Class:
    """Decorate a group of settings: its `title` heads its flags in --help."""
    return dataclass(frozen=True, kw_only=True)(cls)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
def composed(*, before: Mapping[str, Any] | None = None, **defaults: Any) -> Callable[[Class], Class]:
    """Decorate a command's settings. Its bases are groups; the last one's fields come first.

    before, defaults  values by setting that override its group's
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
    """Base of all settings: checks ranges, parses a command line, compares with saved settings."""

    title: ClassVar[str]

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            if f.metadata["path"] and isinstance(text := getattr(self, f.name), str):
                object.__setattr__(self, f.name, expanded(text))  # the dataclass is frozen
            check(f, getattr(self, f.name), hints[f.name])

    @classmethod
    def given(cls, argv: Sequence[str] | None, prog: str, description: str) -> dict[str, Any]:
        """Return the values set by a command line, by field. An invalid flag or value ends the process: one line, status 2."""
        return cls.parse(argv, prog, description).values

    @classmethod
    def parse(cls, argv: Sequence[str] | None, prog: str, description: str) -> Given:
        """Parse like `given`, with the flags and the --config file separate. The modules of --modules are imported first."""
        if any(f.name == "modules" for f in fields(cls)):
            modules.import_named(argv, prog)
        parser = flags.make(cls, prog, description, cls.titles())
        chosen = vars(parser.parse_args(argv))
        try:
            return config_file.given(cls, chosen)
        except ConfigError as error:
            parser.error(str(error))

    @classmethod
    def titles(cls) -> dict[str, str]:
        """Return the group title of each field in a group, in field order."""
        groups = [base for base in cls.__mro__[::-1] if issubclass(base, Settings) and "title" in vars(base)]
        return {f.name: base.title for base in groups for f in fields(base)}

    @classmethod
    def brings(cls, name: str) -> bool:
        """Return whether a setting sets values of others."""
        return any(f.name == name and f.metadata["brings"] for f in fields(cls))

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """Return a line for each setting that differs from the saved one, except resumable ones and places."""
        own = asdict(self)
        was = {f.name: saved.get(f.name, f.metadata["before"]) for f in fields(self) if not f.metadata["resumable"]}
        autos = {f.name: f.metadata["auto"] for f in fields(self) if f.metadata["auto"] is not None}
        places = {f.name for f in fields(self) if f.metadata["place"]}
        others = [name for name in was if own[name] not in (was[name], autos.get(name, was[name]))]
        others = [name for name in others if not (name in places and _is_place(own[name]) and _is_place(was[name]))]
        return [f"--{name} is {own[name]!r} but was {was[name]!r}" for name in others]

    def kept(self, saved: Mapping[str, Any]) -> Self:
        """Return a copy with a saved run's choices for automatic settings."""
        autos = {f.name: f.metadata["auto"] for f in fields(self) if f.metadata["auto"] is not None}
        chosen = {name: saved[name] for name, auto in autos.items() if name in saved and getattr(self, name) == auto}
        return replace(self, **chosen)

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Self:
        """Construct from plain values, for example a settings.json. Raises ConfigError."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(sorted(unknown))}")
        return cls(**values)


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and os.path.isabs(value)
