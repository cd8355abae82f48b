"""--modules: what a user's module adds is known by name on the command line, in a --config file and from Python."""

import json
import sys
from pathlib import Path

import pytest

from fastdarts import evaluate, retrain, search_cifar
from fastdarts.registry import METHODS, OBJECTIVES, RETRAININGS
from fastdarts.settings import RetrainSettings, SearchCifarSettings, Settings

MODULE = """
from fastdarts.registry import METHODS, OBJECTIVES, RETRAININGS

METHODS["mine"] = METHODS["darts-2nd"]
OBJECTIVES["mine"] = OBJECTIVES["rotation"]
RETRAININGS["mine"] = RETRAININGS["nasbench201"]
"""
NAMES = ["--objective", "mine", "--method", "mine"]


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `my_rows`, which adds rows called mine; both are gone after the test."""
    (tmp_path / "my_rows.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    for registry in (METHODS, OBJECTIVES, RETRAININGS):
        monkeypatch.setattr(registry, "_rows", dict(registry))
    yield
    sys.modules.pop("my_rows", None)


def test_command_line_knows_added_rows(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        SearchCifarSettings.given(NAMES, "prog", "")
    assert "argument --objective: invalid choice: 'mine'" in capsys.readouterr().err
    values = SearchCifarSettings.given([*NAMES, "--modules=my_rows"], "prog", "")
    assert values == {"modules": "my_rows", "objective": "mine", "method": "mine"}
    assert search_cifar.resolve(values).settings.unrolled, "the method's"


def test_help_lists_added_rows(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        SearchCifarSettings.given(["--modules", "my_rows", "--help"], "prog", "")
    assert "mine (predict by how many quarter turns" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("values", [{"modules": "my_rows", "objective": "mine"}, {"settings": {"modules": "my_rows"}}])
def test_config_file_may_name_modules(values: dict, tmp_path: Path) -> None:
    """Plain, or a run's settings.json."""
    (tmp_path / "config.json").write_text(json.dumps(values))
    argv = ["--config", str(tmp_path / "config.json"), "--objective", "mine"]
    assert SearchCifarSettings.given(argv, "prog", "")["objective"] == "mine"


def test_python_knows_added_rows() -> None:
    assert search_cifar.resolve({"modules": "my_rows", "objective": "mine"}).settings.objective == "mine"
    arch = "|nor_conv_1x1~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
    given = RetrainSettings.given(["--modules", "my_rows", "--recipe", "mine", "--genotype", arch], "prog", "")
    assert retrain.resolve(given).settings.network == "nasbench201"


@pytest.mark.parametrize("command", [search_cifar, retrain, evaluate])
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--modules absent", "--modules: absent cannot be imported: No module named 'absent'; modules are searched for in"),
        ("--modules ./my_rows.py", "--modules ./my_rows.py: './my_rows.py' is not a module name"),
        ("--modules=", "'' is not a module name"),
        ("--modules", "argument --modules: expected one argument"),
        ("--config nowhere.json", "--config nowhere.json cannot be read"),
    ],
)
def test_missing_module_is_one_line(command, flags: str, says: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(flags.split())
    err = capsys.readouterr().err
    assert stop.value.code == 2 and says in err and err.count("\n") == 1
    assert err.startswith(f"python -m fastdarts.{command.resolve.command}: error: ")


def test_errors_of_a_module_propagate(tmp_path: Path) -> None:
    (tmp_path / "wrong_rows.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        SearchCifarSettings.given(["--modules", "wrong_rows"], "prog", "")


def test_commands_without_the_setting_import_nothing(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        Settings.given(["--modules", "my_rows"], "prog", "")
    assert "unrecognized arguments: --modules" in capsys.readouterr().err and "my_rows" not in sys.modules
