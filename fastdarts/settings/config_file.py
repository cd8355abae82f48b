"""Read the file of --config: names and values in YAML or JSON, or a run's settings.json."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from fastdarts.settings.values import ConfigError, of_file
from fastdarts.textfile import TextFileError, read

if TYPE_CHECKING:
    from fastdarts.settings.fields import Settings


class Given(NamedTuple):
    """Values set by a command line, by field.

    flags   values from the command line
    config  values from the file of --config
    whole   the file is a run's settings.json, which contains all settings, chosen or not
    """

    flags: dict[str, Any]
    config: dict[str, Any]
    whole: bool

    @property
    def values(self) -> dict[str, Any]:
        """Return the values of both; flags take precedence."""
        return self.config | self.flags

    @property
    def asked(self) -> set[str]:
        """Return the settings chosen explicitly."""
        return set(self.flags) | (set() if self.whole else set(self.config))


def given(cls: "type[Settings]", flags: Mapping[str, Any]) -> Given:
    """Combine the flags of a settings class with their --config file. Raises ConfigError, which names the file."""
    chosen = {name: value for name, value in flags.items() if name != "config"}
    if "config" not in flags:
        return Given(chosen, {}, False)
    file = f"--config {flags['config']}"
    values, whole = read_values(flags["config"])
    hints, known = get_type_hints(cls), {f.name: f for f in fields(cls)}
    if unknown := [name for name in values if name not in known]:
        raise ConfigError(f"{file}: unknown settings of this command: {', '.join(unknown)}")
    try:
        config = {name: of_file(known[name], value, hints[name]) for name, value in values.items()}
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    for name, value in chosen.items() if whole else ():
        if known[name].metadata["brings"] and value != config.get(name):
            theirs = f"without --{name}" if config.get(name) is None else f"with --{name} {config[name]}"
            raise ConfigError(f"--{name} {value}: {file} is a run {theirs} and sets everything: give only one of the two")
    return Given(chosen, config, whole)


def read_values(file: str) -> tuple[dict[str, Any], bool]:
    """Return names and values, unchecked, and whether they are a run's, then without its folder. Raises ConfigError."""
    try:
        record = read(Path(file).expanduser(), as_text=True)
    except TextFileError as error:
        raise ConfigError(f"--config {error}") from error
    whole = isinstance(record, dict) and isinstance(record.get("settings"), dict)
    values = record["settings"] if whole else record
    if not isinstance(values, dict):
        raise ConfigError(f"--config {file}: expected names and values of settings, or a run's settings.json")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    return {name: value for name, value in values.items() if not (whole and name == "save")}, whole
