"""The value of one setting: its type, its choices, its range, and how a text becomes one."""

import argparse
import os
import types
from collections.abc import Callable
from dataclasses import Field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

TYPE_NAMES: dict[type, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
WORDS = {"true": True, "false": False}
NOTHING = ("", "~", "null")  # in a file


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong type or out of its range; the message names the flag."""


def kind(hint: Any) -> type:
    """The type of a setting of that type hint: str of a Literal; None in a union is dropped."""
    if get_origin(hint) is types.UnionType:
        (hint,) = (h for h in get_args(hint) if h is not type(None))
    return str if get_origin(hint) is Literal else hint


def choices(f: Field[Any], hint: Any) -> tuple[str, ...] | None:
    """What a setting may be: of a Literal, or the names of its registry; None: its type and range say it."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    closed = f.metadata["among"] is not None and f.metadata["or_else"] is None
    return tuple(f.metadata["among"]) if closed else None


def parser(f: Field[Any], hint: Any) -> Callable[[str], Any]:
    """What makes a value of a text: its type, and the word auto where it means something. It raises ValueError."""
    of, auto = kind(hint), f.metadata["auto"]
    if auto is None:
        return of

    def parse(text: str) -> Any:
        return auto if text == "auto" else of(text)

    parse.__name__ = f"{of.__name__} or auto"  # argparse names it in its message
    return parse


def of_file(f: Field[Any], value: Any, hint: Any) -> Any:
    """The value that a file gives to a setting; a text counts as on a command line, or stands for None. Raises ConfigError."""
    if isinstance(value, str):
        if type(None) in get_args(hint) and value in NOTHING:
            value = None
        elif hint is bool:
            value = WORDS.get(value, value)
        else:
            try:
                value = parser(f, hint)(value)
            except ValueError as error:
                raise ConfigError(f"--{f.name}: {value!r} is not {TYPE_NAMES[kind(hint)]}") from error
    check(f, value, hint)
    return value


def check(f: Field[Any], value: Any, hint: Any) -> None:
    """Raise ConfigError unless the setting may have that value."""
    name, bounds = f.name, f.metadata["bounds"]
    if value is None and type(None) in get_args(hint):
        return
    of, known = kind(hint), choices(f, hint)
    if known is not None and value not in known:
        raise ConfigError(f"--{name}: {value!r} is not one of {', '.join(known)}")
    fits = isinstance(value, (int, float) if of is float else of)  # a whole number is a number, a bool is neither
    if not fits or isinstance(value, bool) != (of is bool):
        raise ConfigError(f"--{name}: {value!r} is not {TYPE_NAMES[of]}")
    tests = {
        "at least": lambda bound: value >= bound,
        "at most": lambda bound: value <= bound,
        "above": lambda bound: value > bound,
        "below": lambda bound: value < bound,
    }
    if not all(tests[word](bound) for word, bound in bounds.items()):
        wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items())
        raise ConfigError(f"--{name}: {value} is out of range, it must be {wanted}")


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
