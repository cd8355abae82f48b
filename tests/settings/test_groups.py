"""Groups of settings: what a command is composed of, its defaults, and its --help."""

from collections import Counter
from dataclasses import asdict, fields

import pytest

from fastdarts.registry import METHODS, OBJECTIVES, SPACES
from fastdarts.settings import (
    ConfigError,
    EvaluateSettings,
    RetrainSettings,
    SearchCifarSettings,
    SearchImagenetSettings,
    Settings,
    composed,
    groups,
    retrain,
)

DEFINED = {**vars(groups), **vars(retrain)}.values()
GROUPS = [each for each in DEFINED if isinstance(each, type) and "title" in vars(each)]
SEARCHES = [SearchImagenetSettings, SearchCifarSettings]
COMMANDS = [*SEARCHES, RetrainSettings, EvaluateSettings]


@composed(epochs=600, batch_size=96, before={"amp": "bf16"})
class Retrain(groups.Watching, groups.Ranks, groups.Run, groups.Optimisation, groups.ImageArrays):
    """A command that trains and searches nothing."""


def names(cls: type[Settings]) -> set[str]:
    return {f.name for f in fields(cls)}


def test_groups_are_independent() -> None:
    assert GROUPS and all(each.__bases__ == (Settings,) for each in GROUPS)


def test_setting_is_in_one_group_of_command() -> None:
    """But those of images of either kind, whose own group replaces them."""
    for command in COMMANDS:
        of_groups = Counter(f.name for each in GROUPS if issubclass(command, each) for f in fields(each))
        assert set(of_groups) == names(command) == set(command.titles())
        twice = {name for name, count in of_groups.items() if count > 1}
        assert twice == ({"data", "image_size"} if issubclass(command, retrain.AnyImages) else set())


def test_command_without_search_has_no_search_flags(capsys: pytest.CaptureFixture) -> None:
    of_search = groups.ArchitectureStep, groups.EarlyStop, groups.Progressive, groups.SearchSpace
    for command in (Retrain, RetrainSettings, EvaluateSettings):
        assert not names(command) & {name for each in of_search for name in names(each)}
    for flag in ("--arch_learning_rate", "--begin", "--space"):
        with pytest.raises(SystemExit):
            Retrain.given([flag, "1"], "retrain", "")
        assert f"unrecognized arguments: {flag}" in capsys.readouterr().err


def test_command_defaults_do_not_change_groups() -> None:
    assert (Retrain().epochs, Retrain().batch_size, Retrain.epochs) == (600, 96, 600)
    assert (groups.Optimisation().epochs, SearchImagenetSettings().epochs, SearchCifarSettings().batch_size) == (50, 50, 64)
    with pytest.raises(ConfigError, match="--epochs: 0 is out of range, it must be at least 1"):
        Retrain(epochs=0)
    with pytest.raises(ConfigError, match="--nesterov"):
        Retrain(nesterov=True, momentum=0)
    old = asdict(Retrain())
    del old["amp"]
    assert Retrain().differences(old) == ["--amp is 'off' but was 'bf16'"]
    with pytest.raises(KeyError, match="speed"):
        composed(speed=11)(type("Wrong", (groups.Run,), {}))


@pytest.mark.parametrize("command", [*COMMANDS, Retrain])
def test_help_has_section_per_group(command: type[Settings], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        command.given(["--help"], "prog", "what it does")
    parts = capsys.readouterr().out.split("\n\n")[2:-1]
    positional = [f.name.upper() for f in fields(command) if f.metadata["positional"]]
    assert [name in parts.pop(0) for name in positional] == [True] * len(positional)
    assert "--config FILE" in parts.pop(0)
    assert [part.splitlines()[0] for part in parts] == [f"{title}:" for title in dict.fromkeys(command.titles().values())]
    for part in parts:
        flags = {line.split()[0].strip(",") for line in part.splitlines() if line.startswith("  --")}
        here = {name for name, title in command.titles().items() if part.startswith(f"{title}:")}
        assert flags == {f"--{name}" for name in here if name.upper() not in positional}


def test_help_lists_registered_names(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        SearchCifarSettings.given(["--help"], "prog", "what it does")
    out = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} ({row.description})" in out for name, row in OBJECTIVES.items())
    assert all(f"{name} ({row.paper})" in out for name, row in METHODS.items())
    assert f"search space: {', '.join(SPACES)}, or a file of candidate lists" in out
