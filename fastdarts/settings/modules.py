"""Import user modules, which may add methods, objectives, spaces, recipes and candidates, before names are checked."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from fastdarts.settings import config_file
from fastdarts.settings.flags import Parser
from fastdarts.settings.values import ConfigError


def import_modules(modules: Any) -> None:
    """Import the modules of a setting, comma-separated; anything but text names none. Raises ConfigError for a missing one.

    Exceptions from within a module propagate unchanged, with their traceback.
    """
    for name in map(str.strip, modules.split(",")) if isinstance(modules, str) else ():
        if not all(map(str.isidentifier, name.split("."))):
            raise ConfigError(f"--modules {modules}: {name!r} is not a module name such as my_candidates or package.module")
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            looked = "modules are searched for in the current folder and on PYTHONPATH"
            raise ConfigError(f"--modules: {name} cannot be imported: {error}; {looked}") from error


def import_named(argv: Sequence[str] | None, prog: str) -> None:
    """Import the modules that --modules names, on a command line or in its --config file, before it is parsed.

    argv  None: the process' arguments

    An error ends the process: one line, status 2.
    """
    first = Parser(prog=prog, add_help=False, allow_abbrev=False)
    first.add_argument("--modules")
    first.add_argument("--config")
    given, _ = first.parse_known_args(argv)
    try:
        if given.modules is None and given.config is not None:
            given.modules = config_file.read_values(given.config)[0].get("modules")
        import_modules(given.modules)
    except ConfigError as error:
        first.error(str(error))
