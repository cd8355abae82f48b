"""The registries: one row makes a name known everywhere."""

import subprocess
import sys

import pytest

from fastdarts import registry
from fastdarts.objectives.table import Row
from fastdarts.registry import METHODS, OBJECTIVES, RECIPES, RETRAININGS, SPACES, STATISTICS, Registry
from fastdarts.settings import ConfigError, SearchCifarSettings

ROW = Row("distinguish cats from dogs", "Search by cats and dogs", lambda choices: None)


def test_defining_modules_fill_registries() -> None:
    assert "p-darts" in METHODS and "mae" in OBJECTIVES and SPACES["nasbench201"].skeleton == "nasbench201"
    assert "mae-nas-imagenet" in RECIPES and "darts-cifar10" in RETRAININGS and STATISTICS["svhn"] and not STATISTICS["auto"]
    found = [value for value in vars(registry).values() if isinstance(value, Registry)]
    assert len({each.kind for each in found}) == len(found) and all(found)
    assert METHODS.described().startswith("darts-1st (Liu et al., ICLR 2019), darts-2nd (")


def test_defining_module_is_imported_on_first_use() -> None:
    program = "import sys; from fastdarts.registry import SPACES; assert 'fastdarts.spaces' not in sys.modules"
    program += "; assert 's0' in SPACES and 'fastdarts.spaces.names' in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_added_row_becomes_choice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ConfigError, match="--objective: 'cats' is not one of mae, "):
        SearchCifarSettings(objective="cats")
    monkeypatch.setitem(OBJECTIVES, "cats", ROW)
    assert SearchCifarSettings(objective="cats").objective == "cats"
    assert SearchCifarSettings.given(["--objective", "cats"], "prog", "") == {"objective": "cats"}
    with pytest.raises(SystemExit):
        SearchCifarSettings.given(["--help"], "prog", "")
    assert "cats (distinguish cats from dogs)" in " ".join(capsys.readouterr().out.split())


def test_names_are_unique() -> None:
    with pytest.raises(ValueError, match="method 'pc-darts' already exists"):
        METHODS["pc-darts"] = METHODS["darts-1st"]
    toys = Registry("toy", registry.__name__)
    toys |= {"a": 1, "b": 2}
    assert dict(toys) == {"a": 1, "b": 2} and toys.described() == "a, b" and repr(toys) == "<Registry of each toy: a, b>"
    with pytest.raises(KeyError):
        toys["c"]
