"""Flags of a command: one per setting, under its group's title, and --config; the parser class of all commands."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from shutil import get_terminal_size
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

from fastdarts.settings.values import choices, kind, parser

if TYPE_CHECKING:
    from fastdarts.settings.fields import Settings

METAVARS: dict[type, str] = {int: "N", float: "X", str: "TEXT"}
CONFIG = "settings from a file: YAML or JSON of names and values, or a run's settings.json (all but its --save); flags win"


class Formatter(argparse.HelpFormatter):
    """Print each flag once, under its setting's name, with its value type; --NAME and --no-NAME for a switch."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=min(120, get_terminal_size((120, 24)).columns - 2))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrap(text, width, break_on_hyphens=False)  # names contain hyphens

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return ", ".join(action.option_strings[:2])
        if isinstance(action, argparse._HelpAction) or not action.option_strings:
            return super()._format_action_invocation(action)
        return f"{action.option_strings[0]} {self._format_args(action, str(action.metavar))}"


class OrBare(argparse.Action):
    """Store the value of a flag; without one store `bare`, unless the flag was already given."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, bare: Any, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs="?", **options)
        self.bare = bare

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        """Store it."""
        setattr(namespace, self.dest, getattr(namespace, self.dest, self.bare) if values is None else values)


class Parser(argparse.ArgumentParser):
    """Parser that reports invalid arguments in one line, like all other invalid input."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def make(cls: "type[Settings]", prog: str, description: str, titles: Mapping[str, str]) -> Parser:
    """Return the parser of a settings class, which returns only the given flags.

    titles  group titles by setting; settings without a title are in no group
    """
    positional = [f.name.upper() for f in fields(cls) if f.metadata["positional"]]
    made = Parser(
        prog=prog,
        usage=" ".join(["%(prog)s", *positional, "[--config FILE] [--SETTING VALUE ...]"]),
        description=description,
        epilog="Dashes and underscores are interchangeable in flag names.",
        formatter_class=Formatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    made.add_argument("--config", metavar="FILE", help=CONFIG)
    groups, hints = {title: made.add_argument_group(title) for title in dict.fromkeys(titles.values())}, get_type_hints(cls)
    for f in fields(cls):
        if f.metadata["positional"]:
            made.add_argument(f.name, nargs="?", help=_help(f), metavar=f.name.upper())
            continue
        place = groups[titles[f.name]] if f.name in titles else made
        names = [spelt for name in (f.name, *f.metadata["also"]) for spelt in (name, name.replace("_", "-"))]
        spellings = dict.fromkeys(map(_dashed, names))
        if hints[f.name] is bool:
            place.add_argument(*spellings, dest=f.name, help=_help(f), action=argparse.BooleanOptionalAction)
        else:
            known, parse, bare = choices(f, hints[f.name]), parser(f, hints[f.name]), f.metadata["bare"]
            metavar = _metavar(f, hints[f.name])
            options: dict[str, Any] = {"dest": f.name, "help": _help(f), "type": parse, "choices": known, "metavar": metavar}
            place.add_argument(*spellings, **options, **({} if bare is None else {"action": OrBare, "bare": bare}))
    return made


def _dashed(name: str) -> str:
    return f"-{name}" if len(name) == 1 else f"--{name}"


def _metavar(f: Field[Any], hint: Any) -> str:
    """Return the choices of a Literal, NAME if the help lists them, or the type."""
    if f.metadata["among"] is not None:
        return "NAME"
    known = choices(f, hint)
    return f"{{{','.join(known)}}}" if known else METAVARS[kind(hint)]


def _help(f: Field[Any]) -> str:
    text, among, or_else = (f.metadata[name] for name in ("help", "among", "or_else"))
    if among is not None:
        text += f": {among.described()}" + (f", or {or_else}" if or_else else "")
    default = "" if f.default is None else f" (default: {f.default})"
    if also := f.metadata["also"]:
        default += f"; also {', '.join(map(_dashed, also))}"
    return (text + default).replace("%", "%%")
