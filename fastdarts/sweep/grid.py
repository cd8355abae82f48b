"""Combinations of a sweep's axis values, each the settings of one run, validated before the sweep starts."""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

from fastdarts.engine import RunFolder
from fastdarts.registry import SPACES
from fastdarts.runs.build_search import benchmark_of, check_buildable
from fastdarts.runs.resolved import Resolved
from fastdarts.settings import ConfigError, SearchCifarSettings, SearchImagenetSettings, Settings

OF_A_SWEEP = {"save": "the sweep names its runs' folders", "dry_run": "a sweep always runs its searches"}
# settings that only the executing machine can validate: not checked for runs on other machines
OF_A_MACHINE = {
    "device": "cpu",
    "amp": "off",
    "backend": "auto",
    "cuda_graph": "auto",
    "optimizer_backend": "torch",
    "tensorboard": False,
}
_ODD = re.compile(r"[^\w.+-]+")


class SweepError(ValueError):
    """Sweep that cannot run as requested; the message gives the reason."""


def check_search(resolved: Resolved, elsewhere: bool, checked: set[Hashable]) -> None:
    """Raise ConfigError if the search could not start.

    elsewhere  skip checks for files
    checked    updated set of validated items: searches except for their seed, tables of true accuracies
    """
    settings = resolved.settings
    if (like := replace(settings, seed=0)) in checked:
        return
    check_buildable(resolved)
    checked.add(like)
    if elsewhere:
        return
    if (table := (settings.benchmark, resolved.space.skeleton)) not in checked:
        benchmark_of(resolved)
        checked.add(table)
    paths = {name: getattr(settings, name) for name in ("data", "train_list", "val_list")}
    if missing := [f"--{name} {path}" for name, path in paths.items() if path is not None and not Path(path).exists()]:
        raise ConfigError(f"{missing[0]}: no such file or folder")


@dataclass(frozen=True)
class SweptCommand:
    """Search command.

    module    has `main(argv)`, which returns the exit status, and `resolve(args)`, with the run's `settings`
    settings  settings class of its flags
    check     see check_search
    """

    module: str
    settings: type[Settings]
    check: Callable[[Any, bool, set[Hashable]], None] = check_search

    @staticmethod
    def compare(resolved: Resolved, run: RunFolder) -> None:
        """Raise DataError or RunFolderError if the settings' images differ from those of the existing run."""
        resolved.dataset.images.choose(resolved.settings, run)


COMMANDS = {
    "search_imagenet": SweptCommand("fastdarts.search_imagenet", SearchImagenetSettings),
    "search_cifar": SweptCommand("fastdarts.search_cifar", SearchCifarSettings),
}


@dataclass(frozen=True)
class Combination:
    """One run of a sweep: name, value on each axis, flags without --save, and resolved settings."""

    name: str
    values: dict[str, Any]
    flags: tuple[str, ...]
    resolved: Any

    @property
    def settings(self) -> Settings:
        """Return the settings of the run."""
        return self.resolved.settings


@dataclass(frozen=True)
class Grid:
    """Requested sweep: command, flags shared by all runs (as given, and by field), and axis values."""

    command: SweptCommand
    flags: tuple[str, ...]
    fixed: dict[str, Any]
    axes: dict[str, tuple[Any, ...]]

    @classmethod
    def parse(cls, command: SweptCommand, axes: Sequence[str], flags: Sequence[str], prog: str) -> "Grid":
        """Parse `AXIS=VALUE,VALUE...` and a command line.

        Raises SweepError; a value of the wrong type or an invalid flag ends the process with one line and status 2.
        """
        parsed = command.settings.parse(flags, prog, "")
        values: dict[str, tuple[Any, ...]] = {}
        for text in axes:
            name, found = _axis(command.settings, text, prog)
            if name in values:
                raise SweepError(f"--grid {name} is given twice: give all values in one")
            if name in parsed.flags:
                raise SweepError(f"{name} is swept by --grid and fixed by --{name}: give only one of the two")
            if parsed.whole and command.settings.brings(name):
                raise SweepError(
                    f"--grid {name}: --config's run already sets everything that it would: give only one of the two"
                )
            values[name] = found
        for name in OF_A_SWEEP:
            if name in parsed.flags or parsed.config.get(name):
                raise SweepError(f"--{name} after --: {OF_A_SWEEP[name]}")
        fixed = {name: value for name, value in parsed.values.items() if name not in values}
        return cls(command, tuple(flags), fixed, values)

    def combinations(self, elsewhere: bool = False) -> list[Combination]:
        """Return all combinations, the last axis fastest. Raises SweepError, which names the first invalid one.

        elsewhere  they will run on other machines: skip machine-dependent checks
        """
        found: dict[str, Combination] = {}
        for values in product(*self.axes.values()):
            combination = self._combination(dict(zip(self.axes, values, strict=True)), elsewhere)
            if combination.name in found:
                raise SweepError(f"--grid: two combinations have the name {combination.name}")
            same = next((c.name for c in found.values() if c.settings == combination.settings), None)
            if same is not None and not elsewhere:
                raise SweepError(f"--grid: {same} and {combination.name} are the same search")
            found[combination.name] = combination
        return list(found.values())

    def check(self, combinations: Iterable[Combination], elsewhere: bool = False) -> None:
        """Raise SweepError, which names the combination, for the first one whose search could not start.

        elsewhere  see `combinations`
        """
        checked: set[Hashable] = set()
        for combination in combinations:
            try:
                self.command.check(combination.resolved, elsewhere, checked)
            except ConfigError as error:
                raise SweepError(f"{combination.name}: {error}") from error

    def _combination(self, values: dict[str, Any], elsewhere: bool) -> Combination:
        name = run_name(values)
        args = self.fixed | values
        try:
            self.command.settings.make(args)
            machine = {n: value for n, value in OF_A_MACHINE.items() if elsewhere and n in args}
            resolved = import_module(self.command.module).resolve(args | machine)
        except ConfigError as error:
            raise SweepError(f"{name}: {error}") from error
        flags = (*self.flags, *(_flag(axis, value) for axis, value in values.items()))
        return Combination(name, values, flags, resolved)

    def moved(self, saved: Mapping[str, Any]) -> list[str]:
        """Return the shared place flags that differ from `saved`; their content may be the same."""
        places = [f.name for f in fields(self.command.settings) if f.metadata["place"]]
        pairs = {name: (self.fixed.get(name), saved.get(name)) for name in places}
        return [name for name, (now, before) in pairs.items() if now != before and _is_path(now) and _is_path(before)]

    def differences(self, saved: Mapping[str, Any], elsewhere: bool = False) -> list[str]:
        """Return a line for each shared flag that differs from `saved` and must not change.

        elsewhere  see `combinations`: content at another place is not compared, so places must not change either
        """
        free = {f.name for f in fields(self.command.settings) if f.metadata["resumable"]}
        free |= set() if elsewhere else set(self.moved(saved))
        names = [n for n in {**saved, **self.fixed} if n not in free and saved.get(n) != self.fixed.get(n)]
        changes = {n: tuple(repr(d[n]) if n in d else "not given" for d in (self.fixed, saved)) for n in names}
        return [f"--{name} is {now} but was {before}" for name, (now, before) in changes.items()]


def _is_path(value: Any) -> bool:
    """Return whether a value is a path, and not the name of a space."""
    return isinstance(value, str) and value.strip().lower() not in SPACES


def run_name(values: Mapping[str, Any]) -> str:
    """Return a run name such as `mask_ratio=0.2,seed=1`, without characters unsuitable for file names."""
    return ",".join(f"{axis}={_ODD.sub('_', _text(value))}" for axis, value in values.items())


def _axis(settings: type[Settings], text: str, prog: str) -> tuple[str, tuple[Any, ...]]:
    """Parse an axis into the setting's name and its values. Raises SweepError."""
    name, equals, listed = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    texts = [value.strip() for value in listed.split(",")]
    if not equals or not all(texts):
        raise SweepError(f"--grid {text}: expected SETTING=VALUE,VALUE,...")
    hints = get_type_hints(settings)
    if name not in {f.name for f in fields(settings)}:
        raise SweepError(f"--grid {text}: unknown setting {name} (-- --help lists the settings)")
    if name in OF_A_SWEEP:
        raise SweepError(f"--grid {text}: {OF_A_SWEEP[name]}")
    if hints[name] is bool:
        words = {"true": True, "false": False}
        if unknown := [word for word in texts if word not in words]:
            raise SweepError(f"--grid {name}: {unknown[0]!r} is not true or false")
        values = tuple(words[word] for word in texts)
    else:
        values = tuple(settings.given([f"--{name}={value}"], f"{prog}: --grid {name}", "")[name] for value in texts)
    twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if twice is not None:
        raise SweepError(f"--grid {name}: {_text(twice)} is given twice")
    return name, values


def _flag(axis: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{axis}" if value else f"--no-{axis}"
    return f"--{axis}={value}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
