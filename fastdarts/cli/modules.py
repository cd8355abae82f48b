"""Import user modules that register candidates."""

from importlib import import_module

from fastdarts.settings import ConfigError


def import_modules(modules: str | None) -> None:
    """Import the comma-separated modules. Raises ConfigError for a missing one.

    Exceptions from within a module propagate unchanged, with their traceback.
    """
    for name in () if modules is None else map(str.strip, modules.split(",")):
        if not all(map(str.isidentifier, name.split("."))):
            raise ConfigError(f"--modules {modules}: {name!r} is not a module name such as my_candidates or package.module")
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            looked = "modules are searched for in the current folder and on PYTHONPATH"
            raise ConfigError(f"--modules: {name} cannot be imported: {error}; {looked}") from error
