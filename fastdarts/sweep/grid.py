"""What a sweep runs: the combinations of its axes' values, each one the settings of a run, checked before it begins."""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

from fastdarts.engine import RunFolder
from fastdarts.registry import SPACES
from fastdarts.runs.build import benchmark_of, check_buildable
from fastdarts.runs.resolved import Resolved
from fastdarts.settings import ConfigError, SearchCifarSettings, SearchImagenetSettings, Settings

OF_A_SWEEP = {"save": "the sweep names each run's folder itself", "dry_run": "a sweep runs what it starts"}
# what only the machine that runs knows whether it can be done: not checked where another one is asked to
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
    """A sweep that cannot be run as it was asked for; the message says why."""


def check_search(resolved: Resolved, elsewhere: bool, checked: set[Hashable]) -> None:
    """Raise ConfigError where the search could not begin.

    elsewhere  files are not looked for
    checked    what is known to be good, which grows: searches but for their seed, tables of true accuracies
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
        raise ConfigError(f"{missing[0]}: there is no such file or folder")


@dataclass(frozen=True)
class Command:
    """A search command.

    module    has `main(argv)`, which returns the exit status, and `resolve(given)`, whose `settings` are those of the run
    settings  what its flags are made from
    check     as check_search
    """

    module: str
    settings: type[Settings]
    check: Callable[[Any, bool, set[Hashable]], None] = check_search

    @staticmethod
    def compare(resolved: Resolved, run: RunFolder) -> None:
        """Raise DataError or RunFolderError where the images that the settings name are not those that a run began with."""
        resolved.dataset.images.choose(resolved.settings, run)


COMMANDS = {
    "search_imagenet": Command("fastdarts.search_imagenet", SearchImagenetSettings),
    "search_cifar": Command("fastdarts.search_cifar", SearchCifarSettings),
}


@dataclass(frozen=True)
class Combination:
    """One run of a sweep: its name, its value on each axis, its flags without --save, and what they stand for."""

    name: str
    values: dict[str, Any]
    flags: tuple[str, ...]
    resolved: Any

    @property
    def settings(self) -> Settings:
        """Of the run."""
        return self.resolved.settings


@dataclass(frozen=True)
class Grid:
    """What is asked for: a command, the flags that all its runs share (as given, and by field), and the axes' values."""

    command: Command
    flags: tuple[str, ...]
    fixed: dict[str, Any]
    axes: dict[str, tuple[Any, ...]]

    @classmethod
    def parse(cls, command: Command, axes: Sequence[str], flags: Sequence[str], prog: str) -> "Grid":
        """From `AXIS=VALUE,VALUE...` and a command line.

        Raises SweepError; a value of the wrong type and a wrong flag end the process with one line and status 2.
        """
        given = command.settings.parse(flags, prog, "")
        values: dict[str, tuple[Any, ...]] = {}
        for text in axes:
            name, found = _axis(command.settings, text, prog)
            if name in values:
                raise SweepError(f"--grid {name} is given twice: name all its values in one")
            if name in given.flags:
                raise SweepError(f"{name} is swept by --grid and fixed by --{name}: leave one of them out")
            if given.whole and command.settings.brings(name):
                raise SweepError(f"--grid {name}: --config's run sets all that it would bring: leave one of the two out")
            values[name] = found
        for name in OF_A_SWEEP:
            if name in given.flags or given.config.get(name):
                raise SweepError(f"--{name} behind --: {OF_A_SWEEP[name]}")
        fixed = {name: value for name, value in given.values.items() if name not in values}
        return cls(command, tuple(flags), fixed, values)

    def combinations(self, elsewhere: bool = False) -> list[Combination]:
        """All of them, the last axis fastest. Raises SweepError, which names the first that is not valid.

        elsewhere  they will run on other machines: what depends on the machine is not checked
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
        """Raise SweepError, which names the combination, for the first of them whose search could not begin.

        elsewhere  as for `combinations`
        """
        checked: set[Hashable] = set()
        for combination in combinations:
            try:
                self.command.check(combination.resolved, elsewhere, checked)
            except ConfigError as error:
                raise SweepError(f"{combination.name}: {error}") from error

    def _combination(self, values: dict[str, Any], elsewhere: bool) -> Combination:
        name = run_name(values)
        given = self.fixed | values
        try:
            self.command.settings.make(given)
            machine = {n: value for n, value in OF_A_MACHINE.items() if elsewhere and n in given}
            resolved = import_module(self.command.module).resolve(given | machine)
        except ConfigError as error:
            raise SweepError(f"{name}: {error}") from error
        flags = (*self.flags, *(_flag(axis, value) for axis, value in values.items()))
        return Combination(name, values, flags, resolved)

    def moved(self, saved: Mapping[str, Any]) -> list[str]:
        """The shared flags that name another place than `saved`, where the same may be found."""
        places = [f.name for f in fields(self.command.settings) if f.metadata["place"]]
        pairs = {name: (self.fixed.get(name), saved.get(name)) for name in places}
        return [name for name, (now, before) in pairs.items() if now != before and _is_path(now) and _is_path(before)]

    def differences(self, saved: Mapping[str, Any], elsewhere: bool = False) -> list[str]:
        """Lines that name each shared flag which is not as in `saved` and may not change.

        elsewhere  as for `combinations`: what lies at another place is not compared, so it may not change either
        """
        free = {f.name for f in fields(self.command.settings) if f.metadata["resumable"]}
        free |= set() if elsewhere else set(self.moved(saved))
        names = [n for n in {**saved, **self.fixed} if n not in free and saved.get(n) != self.fixed.get(n)]
        told = {n: tuple(repr(d[n]) if n in d else "not given" for d in (self.fixed, saved)) for n in names}
        return [f"--{name} is {now} but was {before}" for name, (now, before) in told.items()]


def _is_path(value: Any) -> bool:
    """Whether a setting is a path, and not a space's name."""
    return isinstance(value, str) and value.strip().lower() not in SPACES


def run_name(values: Mapping[str, Any]) -> str:
    """`mask_ratio=0.2,seed=1`, without what a file name should not have."""
    return ",".join(f"{axis}={_ODD.sub('_', _text(value))}" for axis, value in values.items())


def _axis(settings: type[Settings], text: str, prog: str) -> tuple[str, tuple[Any, ...]]:
    """The setting's name and its values. Raises SweepError."""
    name, equals, listed = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    texts = [value.strip() for value in listed.split(",")]
    if not equals or not all(texts):
        raise SweepError(f"--grid {text}: expected SETTING=VALUE,VALUE,...")
    hints = get_type_hints(settings)
    if name not in {f.name for f in fields(settings)}:
        raise SweepError(f"--grid {text}: there is no setting {name} (the flags behind -- --help are the settings)")
    if name in OF_A_SWEEP:
        raise SweepError(f"--grid {text}: {OF_A_SWEEP[name]}")
    if hints[name] is bool:
        words = {"true": True, "false": False}
        if unknown := [word for word in texts if word not in words]:
            raise SweepError(f"--grid {name}: {unknown[0]!r} is neither true nor false")
        values = tuple(words[word] for word in texts)
    else:
        values = tuple(settings.given([f"--{name}={value}"], f"{prog}: --grid {name}", "")[name] for value in texts)
    twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if twice is not None:
        raise SweepError(f"--grid {name}: {_text(twice)} stands there twice")
    return name, values


def _flag(axis: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{axis}" if value else f"--no-{axis}"
    return f"--{axis}={value}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
