"""Read a YAML or JSON file. YAML requires pyyaml; duplicate keys are rejected, since parsers keep only the last."""

import json
from pathlib import Path
from typing import Any

SUFFIXES = (".yaml", ".yml", ".json")
_NOT_YAML = (ValueError, KeyError, AttributeError, RecursionError)  # pyyaml on an invalid date, !!bool or !!timestamp


class TextFileError(ValueError):
    """Unreadable file, or content that does not match its suffix; the message names the file."""


def read(path: Path, *, as_text: bool = False) -> Any:
    """Read a file as plain values: JSON for the suffix .json, else YAML. Raises TextFileError.

    as_text  keep YAML scalars as text: 1e-3 and off stay strings, where YAML reads a string and False
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TextFileError(f"{path} cannot be read: {error}") from error
    return _json(path, text) if path.suffix.lower() == ".json" else _yaml(path, text, as_text)


def _json(path: Path, text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_once(path, [key for key, _ in pairs])
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except (json.JSONDecodeError, RecursionError) as error:
        raise TextFileError(f"{path} is not JSON: {error}") from error


def _yaml(path: Path, text: str, as_text: bool) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise TextFileError(f"{path}: YAML files need the package pyyaml (pip install pyyaml), JSON files nothing") from error
    loader = yaml.BaseLoader if as_text else yaml.SafeLoader
    try:
        tree, record = yaml.compose(text, Loader=yaml.SafeLoader), yaml.load(text, Loader=loader)
    except (*_NOT_YAML, yaml.YAMLError) as error:
        raise TextFileError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if isinstance(tree, yaml.MappingNode):
        _check_once(path, [key.value for key, _ in tree.value])
    return record


def _check_once(path: Path, keys: list[Any]) -> None:
    """Raise on duplicate keys: a parser would silently keep the last."""
    if repeated := {str(key) for key in keys if keys.count(key) > 1}:
        raise TextFileError(f"{path}: {', '.join(sorted(repeated))} given twice")
