"""`fastdarts NAME`: the console script, and `python -m fastdarts NAME`."""

import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from fastdarts.__main__ import COMMANDS, main
from fastdarts.cli.command import Command


def test_console_script_lists_commands(root: Path) -> None:
    scripts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert EntryPoint("fastdarts", scripts["fastdarts"], "console_scripts").load() is main


def test_commands_accept_both_spellings() -> None:
    for name, (module, _) in COMMANDS.items():
        assert callable(import_module(module).main)
        assert module in (f"fastdarts.{name}", f"fastdarts.{name}.__main__")  # python -m fastdarts.NAME


def test_commands_that_train_or_evaluate_are_short(root: Path) -> None:
    """At most 40 lines: a docstring, a resolver, a call."""
    modules = {name: import_module(module) for name, (module, _) in COMMANDS.items()}
    short = [name for name, module in modules.items() if isinstance(getattr(module, "command", None), Command)]
    assert {"search_imagenet", "search_cifar", "retrain", "evaluate"} <= set(short)
    assert all(len((root / "fastdarts" / f"{name}.py").read_text().splitlines()) <= 40 for name in short)
    assert {path.stem for path in (root / "fastdarts").glob("search_*.py")} <= set(short)


@pytest.mark.parametrize("name", ["search_cifar", "search-cifar"])
def test_arguments_are_passed_to_command(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--epochs", "three"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("python -m fastdarts.search_cifar: error: argument --epochs")


def test_help_and_unknown_commands(capsys: pytest.CaptureFixture) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: fastdarts NAME ...") and all(f"  {name} " in out for name in COMMANDS)
    for argv, says in (([], "which command?"), (["train"], "unknown command 'train'")):
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert says in err and "search_imagenet" in err and err.count("\n") == 1


def test_package_runs_as_module() -> None:
    command = [sys.executable, "-m", "fastdarts", "report", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "nowhere" in done.stderr and done.stderr.count("\n") == 1
