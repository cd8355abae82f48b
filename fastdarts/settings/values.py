"""Value of one setting: type, choices, range, and conversion from text."""

import argparse
import os
import types
from collections.abc import Callable
from dataclasses import Field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

TYPE_NAMES: dict[type, str] = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
WORDS = {"true": True, "false": False}
NOTHING = ("", "~", "null")  # null values in a file


class ConfigError(ValueError):
    """Unknown setting, or value of the wrong type or out of range; the message names the flag."""


def kind(hint: Any) -> type:
    """Return the type of a setting from its type hint: str for a Literal; None in a union is dropped."""
    if get_origin(hint) is types.UnionType:
        (hint,) = (h for h in get_args(hint) if h is not type(None))
    return str if get_origin(hint) is Literal else hint


def choices(f: Field[Any], hint: Any) -> tuple[str, ...] | None:
    """Return the choices of a Literal, or the names of the registry; None if type and range define the values."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    closed = f.metadata["among"] is not None and f.metadata["or_else"] is None
    return tuple(f.metadata["among"]) if closed else None


def parser(f: Field[Any], hint: Any) -> Callable[[str], Any]:
    """Return the conversion from text: the type, and the word auto if allowed. It raises ValueError."""
    of, auto = kind(hint), f.metadata["auto"]
    if auto is None:
        return of

    def parse(text: str) -> Any:
        return auto if text == "auto" else of(text)

    parse.__name__ = f"{of.__name__} or auto"  # shown in argparse's message
    return parse


def of_file(f: Field[Any], value: Any, hint: Any) -> Any:
    """Convert a value from a file; text is parsed as on a command line, or means None. Raises ConfigError."""
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
    """Raise ConfigError unless the value is valid for the setting."""
    name, bounds = f.name, f.metadata["bounds"]
    if value is None and type(None) in get_args(hint):
        return
    of, known = kind(hint), choices(f, hint)
    if known is not None and value not in known:
        raise ConfigError(f"--{name}: {value!r} is not one of {', '.join(known)}")
    fits = isinstance(value, (int, float) if of is float else of)  # an int is a valid float, a bool is neither
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
    """Expand a leading ~ or ~USER to the home folder, since shells do not after "=".

    An unknown USER leaves it unchanged. Raises ConfigError for ~ if the current user has no home folder.
    """
    found = os.path.expanduser(text)
    if found == text and text.partition("/")[0] == "~":
        raise ConfigError(f"{text}: no home folder for ~: set HOME or give the full path")
    return found


def path_of(text: str) -> Path:
    """Convert a path flag, as an argparse type."""
    try:
        return Path(expanded(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
