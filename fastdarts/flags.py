"""What settings are made of: field = flag = help line = saved setting.

A command's settings are one frozen dataclass. Each field is made by `setting`, which carries its help, its range and
whether a run may be continued with another value.
"""

import argparse
import os
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong type or out of its range; the message names the flag."""


def setting(
    default: Any,
    help: str,
    *,
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
            "bounds": {name: value for name, value in bounds.items() if value is not None},
            "resumable": resumable,
            "before": before,
            "auto": auto,
            "path": path or place,
            "place": place,
        },
    )


def other(base: type, name: str, default: Any, help: str | None = None, **more: Any) -> Any:
    """The field `name` of the dataclass `base` again, with another default, and another help line where one is given.

    more  what else is other about it, as arguments of `setting`
    """
    metadata = base.__dataclass_fields__[name].metadata
    return field(default=default, metadata={**metadata, **more} | ({} if help is None else {"help": help}))


class Settings:
    """Base of every command's settings: checks its ranges, reads a command line, compares itself with a saved one."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            if f.metadata["path"] and isinstance(text := getattr(self, f.name), str):
                object.__setattr__(self, f.name, expanded(text))  # of a frozen dataclass
            _check(f.name, getattr(self, f.name), hints[f.name], f.metadata["bounds"])

    @classmethod
    def given(cls, argv: Sequence[str] | None, prog: str, description: str) -> dict[str, Any]:
        """What a command line sets, by field name. A wrong flag or value ends the process with one line and status 2."""
        parser = _Parser(prog=prog, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        hints = get_type_hints(cls)
        for f in fields(cls):
            spellings = dict.fromkeys([f"--{f.name}", f"--{f.name.replace('_', '-')}"])
            default = "" if f.default is None else f" (default: {f.default})"
            text = f.metadata["help"].replace("%", "%%") + default
            if hints[f.name] is bool:
                parser.add_argument(*spellings, help=text, action=argparse.BooleanOptionalAction)
            else:
                kind, choices = _kind(hints[f.name])
                parse = _or_auto(kind, f.metadata["auto"])
                parser.add_argument(
                    *spellings, help=text, type=parse, choices=choices, metavar=None if choices else f.name.upper()
                )
        return vars(parser.parse_args(argv))

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


def expanded(text: str) -> str:
    """A path with ~ or ~USER at its beginning replaced by that home folder, which no shell does behind "=".

    Without a home folder of that name it stays as it is. Raises ConfigError for ~ where this user has none.
    """
    found = os.path.expanduser(text)
    if found == text and text.partition("/")[0] == "~":
        raise ConfigError(f"{text}: there is no home folder that ~ could be, set HOME or write the whole path")
    return found


def path_of(text: str) -> Path:
    """The type of a flag that is a path, for argparse."""
    try:
        return Path(expanded(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def _kind(hint: Any) -> tuple[type, tuple[str, ...] | None]:
    """The type a value is parsed with, and the choices if it is a Literal; None in a union is dropped."""
    if get_origin(hint) is types.UnionType:
        (hint,) = (h for h in get_args(hint) if h is not type(None))
    if get_origin(hint) is Literal:
        return str, get_args(hint)
    return hint, None


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and os.path.isabs(value)


def _or_auto(kind: type, auto: Any) -> Callable[[str], Any]:
    """What parses a value: of that type, or the word auto where it means something."""
    if auto is None:
        return kind

    def parse(text: str) -> Any:
        return auto if text == "auto" else kind(text)

    parse.__name__ = f"{kind.__name__} or auto"  # argparse names it in its message
    return parse


def _check(name: str, value: Any, hint: Any, bounds: dict[str, float]) -> None:
    if value is None and type(None) in get_args(hint):
        return
    kind, choices = _kind(hint)
    if choices is not None and value not in choices:
        raise ConfigError(f"--{name}: {value!r} is not one of {', '.join(choices)}")
    fits = isinstance(value, (int, float) if kind is float else kind)  # a whole number is a number, a bool is neither
    if not fits or isinstance(value, bool) != (kind is bool):
        raise ConfigError(f"--{name}: {value!r} is not {TYPE_NAMES[kind]}")
    tests = {
        "at least": lambda bound: value >= bound,
        "at most": lambda bound: value <= bound,
        "above": lambda bound: value > bound,
        "below": lambda bound: value < bound,
    }
    if not all(tests[word](bound) for word, bound in bounds.items()):
        wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items())
        raise ConfigError(f"--{name}: {value} is out of range, it must be {wanted}")
